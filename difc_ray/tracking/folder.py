"""The files of a run that tracking knows: its journal, and ``<run>/tracking``, which the uploader keeps.

A sweep's folder has the same, and ``trials/<name>/``, each a run folder.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difc_ray.files import Lock, read_json
from difc_ray.tracking.journal import FILE, last_record

TRIALS = "trials"


@dataclass(frozen=True)
class TrackingFolder:
    """Paths of one run's files.

    Args:
        run_dir: the run's output folder.
    """

    run_dir: Path
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", self.run_dir / "tracking")

    @property
    def journal(self) -> Path:
        """What the run recorded, one JSON line per record."""
        return self.run_dir / FILE

    @property
    def cursor(self) -> Path:
        """How far each store has it."""
        return self.path / "sent.json"

    @property
    def run(self) -> Path:
        """The MLflow run in each store."""
        return self.path / "run.json"

    @property
    def status(self) -> Path:
        """What the uploader last had to say."""
        return self.path / "status.json"

    @property
    def refused(self) -> Path:
        """Records that MLflow refused for good, each with the reason."""
        return self.path / "refused.jsonl"

    def lock(self) -> Lock:
        """A lock of the process that uploads; the folder of the uploader's files is made."""
        self.path.mkdir(parents=True, exist_ok=True)
        return Lock(
            self.path / "uploader.lock",
            rule="the records of a run must be sent by one process at a time",
            remedy="Wait for it to end, or stop that run first.",
        )

    @property
    def log(self) -> Path:
        """Standard output and error of the uploader."""
        return self.path / "uploader.log"

    @property
    def model(self) -> Path:
        """The model in MLflow's format."""
        return self.run_dir / "model"

    def trials(self) -> list[TrackingFolder]:
        """The trials of a sweep that have a journal, by name; none of a run."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.run_dir / TRIALS) if entry.is_dir())
        except OSError:
            return []
        found = [TrackingFolder(self.run_dir / TRIALS / name) for name in names]
        return [folder for folder in found if folder.journal.exists()]

    def all(self) -> list[TrackingFolder]:
        """This folder, and its trials."""
        return [self, *self.trials()]

    def sweep(self) -> TrackingFolder | None:
        """The sweep that this run is a trial of, by its place; None: it lies elsewhere."""
        above = self.run_dir.absolute().parent
        return TrackingFolder(above.parent) if above.name == TRIALS else None

    @property
    def output(self) -> Path:
        """The output folder of the run, or of the sweep that it is a trial of."""
        return (self.sweep() or self).run_dir.absolute().parent

    def sent_seq(self, store: str) -> int:
        """Number of the last journal record that ``store`` has, 0 for none."""
        return int(read_json(self.cursor).get(store, {}).get("seq", 0))

    def pending(self, store: str) -> int:
        """How many records ``store`` does not have."""
        return max(0, last_record(self.journal).seq - self.sent_seq(store))

    def identity(self, store: str) -> dict[str, Any]:
        """``run_id``, ``experiment_id`` and ``models`` of this run in ``store``; empty before the run exists there."""
        found: dict[str, Any] = read_json(self.run).get("stores", {}).get(store, {})
        return found

    def count_refused(self) -> int:
        """Number of records in :attr:`refused`."""
        try:
            lines = self.refused.read_text("utf-8").splitlines()
        except OSError:
            return 0
        return len({line.split(",", 1)[0] for line in lines})  # {"seq": N: a repetition counts once
