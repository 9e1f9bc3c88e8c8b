"""What the training loop asks of a tracker, and what it gets back at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, SupportsFloat, runtime_checkable

from difc_ray.files import replacing

Status = Literal["FINISHED", "FAILED", "KILLED"]


@runtime_checkable
class SavesFigure(Protocol):
    """A matplotlib figure, as far as tracking needs one."""

    def savefig(self, fname: Any, **kwargs: Any) -> None:
        """Write the figure to a file: its name, or an open one."""
        ...


def save_figure(figure: SavesFigure, path: Path) -> None:
    """Writes a PNG whole or not at all, and makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png")


@dataclass(frozen=True, kw_only=True)
class TrackingSummary:
    """Where a run is recorded, and whether all of it has arrived."""

    uri: str
    """Tracking URI, credentials masked."""
    experiment: str
    run_id: str | None
    """MLflow run, None when the store could not be reached yet."""
    pending: int
    """Journal records that are not in the store yet."""
    refused: int
    """Records that MLflow refused for good; each is in ``refused.jsonl`` with its reason."""
    ui_command: str
    """The command that shows the run."""
    message: str | None = None
    """A sentence for the user when not everything arrived."""


@runtime_checkable
class Tracker(Protocol):
    """Records one run. No method waits for a server, none raises because of one."""

    def start(self, *, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Begin the run, or continue it.

        Args:
            run_name: its name in MLflow.
            params: the configuration; nested mappings become dotted keys.
            tags: facts about the run (versions, fingerprints).
        """
        ...

    def metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record values of a step. Values that are not finite are counted, not sent; see :class:`MlflowTracker`."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        ...

    def figure(self, name: str, figure: SavesFigure) -> None:
        """Record a figure as ``figures/<name>.png``."""
        ...

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or directory, under ``folder`` among the run's artifacts."""
        ...

    def model(self, directory: Path, *, step: int, register: str | None = None) -> None:
        """Record a model: a directory with ``weights.safetensors`` and ``model.json``.

        Args:
            directory: the model, as :mod:`difc_ray.tracking.model_upload` reads it.
            step: the step at which its weights were taken.
            register: name in the model registry under which it becomes a version; None: it is not registered.
        """
        ...

    def finish(self, status: Status, error: str | None = None, *, drain_s: float | None = None) -> TrackingSummary:
        """End the run.

        Args:
            status: how it ended.
            error: the error sentence, for the tag ``error``.
            drain_s: seconds to wait for the last records to arrive; None: the tracker's default.

        Returns:
            Where the run is, and what has not arrived.
        """
        ...
