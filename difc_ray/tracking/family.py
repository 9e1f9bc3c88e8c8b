"""A sweep's folder: ``tracking/`` of the sweep itself, and ``trials/<name>/``, each a run folder with its journal."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import last_seq

TRIALS = "trials"

Signature = tuple[int, int]
"""Size and time of a file; another one says that it was written to."""


@dataclass
class Family:
    """The trials of a sweep, as many as there are when one asks.

    Args:
        parent: the tracking files of the sweep itself.
    """

    parent: TrackingFolder
    _waiting: dict[tuple[Path, str], tuple[tuple[Signature, Signature], int]] = field(default_factory=dict)

    def trials(self) -> list[TrackingFolder]:
        """The trials that have a journal, by name."""
        try:
            names = sorted(entry.name for entry in os.scandir(self.parent.run_dir / TRIALS) if entry.is_dir())
        except OSError:
            return []
        found = [TrackingFolder(self.parent.run_dir / TRIALS / name) for name in names]
        return [folder for folder in found if folder.journal.exists()]

    def pending(self, store: str) -> int:
        """Records of all trials that ``store`` does not have; only journals that changed are read again."""
        return sum(self._pending_of(folder, store) for folder in self.trials())

    def _pending_of(self, folder: TrackingFolder, store: str) -> int:
        now = (signature(folder.journal), signature(folder.cursor))
        known = self._waiting.get((folder.run_dir, store))
        if known is None or known[0] != now:
            known = (now, max(0, last_seq(folder.journal) - folder.sent_seq(store)))
            self._waiting[folder.run_dir, store] = known
        return known[1]


def signature(path: Path) -> Signature:
    """Size in bytes and time in ns of a file; (-1, 0) of one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return (-1, 0)
    return (found.st_size, found.st_mtime_ns)


def parent_folder(trial: TrackingFolder) -> TrackingFolder | None:
    """The sweep that a run folder is a trial of, by its place; None: it lies elsewhere."""
    above = trial.run_dir.absolute().parent
    return TrackingFolder(above.parent) if above.name == TRIALS else None
