"""The in-memory twin of the MLflow tracker, for tests of what a run records."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from difc_ray.nested import flat
from difc_ray.tracking.base import SavesFigure, Status, TrackingSummary
from difc_ray.tracking.untracked import Untracked


class MemoryTracker(Untracked):
    """Keeps everything in attributes; no process is started.

    Args:
        run_dir: figures are saved in its folder ``figures``; None: they are only kept.

    >>> tracker = MemoryTracker()
    >>> tracker.start(run_name="r", params={"optimizer": {"lr": 0.1}}, tags={})
    >>> tracker.metrics(3, {"loss": 0.5})
    >>> tracker.recorded_params, tracker.recorded_metrics
    ({'optimizer.lr': 0.1}, {'loss': [(3, 0.5)]})
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        super().__init__(run_dir)
        self.run_name: str | None = None
        self.recorded_params: dict[str, object] = {}
        self.recorded_tags: dict[str, str] = {}
        self.recorded_metrics: dict[str, list[tuple[int, float]]] = {}
        self.recorded_figures: dict[str, SavesFigure] = {}
        self.recorded_artifacts: list[tuple[Path, str]] = []
        self.recorded_models: list[tuple[Path, int]] = []
        self.registered_models: list[tuple[str, int]] = []
        self.status: Status | None = None
        self.error: str | None = None
        self.starts = 0

    def start(self, *, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """See :class:`~difc_ray.tracking.base.Tracker`."""
        self.run_name, self.status = run_name, None
        self.starts += 1
        self.recorded_params.update(flat(params))
        self.recorded_tags.update(tags)

    def metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Append ``(step, value)`` to each key's list."""
        for key, value in values.items():
            self.recorded_metrics.setdefault(key, []).append((step, float(value)))

    def tags(self, values: Mapping[str, str]) -> None:
        """Replace tags."""
        self.recorded_tags.update(values)

    def figure(self, name: str, figure: SavesFigure) -> None:
        """Keep the figure itself, and save it if there is a run folder."""
        self.recorded_figures[name] = figure
        super().figure(name, figure)

    def artifact(self, path: Path, folder: str = "") -> None:
        """Keep the path."""
        self.recorded_artifacts.append((path, folder))

    def model(self, directory: Path, *, step: int, register: str | None = None) -> None:
        """Keep the directory and its step, and the registered name with the step."""
        self.recorded_models.append((directory, step))
        if register is not None:
            self.registered_models.append((register, step))

    def finish(self, status: Status, error: str | None = None, *, drain_s: float | None = None) -> TrackingSummary:
        """Keep the status; nothing is ever pending."""
        self.status, self.error = status, error
        return super().finish(status, error, drain_s=drain_s)
