"""Small sweeps on the plug-in's data: their files, how they are run in this process, and what they came to."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difc_ray.config import Config
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.outcome import SweepResult
from difc_ray.sweeps.space import Space, read_space
from difc_ray.sweeps.sweep import run_sweep
from difc_ray.sweeps.trials import Point, base_config, check_sweep, trial_config
from tests.faults import End, end_of, without_faults
from tests.runs import train, write_yaml

CONFIG: dict[str, Any] = {
    "plugins": ["tests.fault_plugin"],
    "dataset": "faulty",
    "sources": ["a", "b"],
    "target": "d",
    "model": "mlp",
    "model_options": {"hidden": [16]},
    "objective": "erm",
    "harmonize": {"rule": "mean"},
    "batch_size": 8,
    "steps": 16,
    "eval_every": 4,
    "checkpoint": {"every": 2, "keep": 20},
    "cluster": {"cpus_per_worker": 0.5},
    "trial": {"engine": "inline", "concurrent": 1},
    "tracking": {"mode": "off"},
}
"""Trials of a fraction of a second, one after the other in one process."""


def space_file(folder: Path, config: Mapping[str, Any] | None = None, **content: Any) -> Path:
    """The file of a space whose trials write and leave their marks below a folder."""
    settings = {**CONFIG, "output": str(folder / "runs"), **(config or {})}
    settings["dataset_options"] = {"folder": str(folder), **settings.get("dataset_options", {})}
    return write_yaml(folder / "space.yaml", {"metric": "val/loss/a", "mode": "min", "config": settings, **content})


@dataclass
class Collected:
    """A display that keeps what it is told, and holds a lock as a live table does: nothing can pickle it."""

    phases: list[str] = field(default_factory=list)
    trials: list[tuple[TrialRecord, dict[str, Any]]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        self.trials.append((record, dict(values)))

    def notice(self, message: str) -> None:
        self.notices.append(message)


@dataclass(frozen=True)
class Swept:
    """A sweep that has ended, and what it was to do."""

    space: Space
    base: Config
    points: list[Point]
    result: SweepResult
    display: Any

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.result.folder)

    def statuses(self) -> list[str]:
        """How the trials ended, by number."""
        return [record.status for record in self.result.records]


def sweep(path: Path, *arguments: str, display: Any = None, resume: bool = False) -> Swept:
    """A sweep as the command line makes it, in this process."""
    space = read_space(path)
    base = base_config(space, None, list(arguments))
    points = check_sweep(space, base, [])
    shown = display or Collected()
    return Swept(space, base, points, run_sweep(space, base, points, shown, resume=resume, register=None), shown)


def alone(folder: Path, base: Config, point: Point) -> End:
    """What a trial comes to as a run of its own, trained in this process and without its faults."""
    config = without_faults(trial_config(base, point, folder / "alone"))
    config = config.model_copy(
        update={"engine": "inline", "tracking": base.tracking.model_copy(update={"mode": "off"})}
    )
    return end_of(train(config).run_dir)


def assert_same_end(found: End, expected: End) -> None:
    """Weights and training state bit for bit, and the accuracies."""
    assert found.weights == expected.weights
    assert found.state == expected.state
    assert found.summary["accuracy"] == expected.summary["accuracy"]
    assert found.summary["selected_step"] == expected.summary["selected_step"]
