"""The tracker of a run without MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

from difc_ray.tracking.base import SavesFigure, Status, TrackingSummary, save_figure
from difc_ray.tracking.names import figure_path


class Untracked:
    """Saves figures in the run's folder and keeps nothing: the run's own files have the rest.

    Args:
        run_dir: its folder; None: figures are not saved.
    """

    def __init__(self, run_dir: Path | None = None) -> None:
        self.run_dir = run_dir

    def start(self, *, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """See :class:`~difc_ray.tracking.base.Tracker`, here and below."""

    def metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Nothing: a run may have millions of them."""

    def tags(self, values: Mapping[str, str]) -> None:
        """Nothing."""

    def figure(self, name: str, figure: SavesFigure) -> None:
        """Saves it."""
        if self.run_dir is not None:
            save_figure(figure, figure_path(self.run_dir, name))

    def artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def model(self, directory: Path, *, step: int, register: str | None = None) -> None:
        """Nothing."""

    def finish(self, status: Status, error: str | None = None, *, drain_s: float | None = None) -> TrackingSummary:
        """Nothing is ever pending."""
        return TrackingSummary(
            uri="off", experiment="off", run_id=None, pending=0, refused=0, ui_command="", message=None
        )
