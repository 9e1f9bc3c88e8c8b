"""What a run records with: the journal in its folder; and what it gets back at the end."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, SupportsFloat, runtime_checkable

from difc_ray.errors import CheckpointError
from difc_ray.files import replacing, start_of_this
from difc_ray.secrets import masked
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import JournalWriter, survey
from difc_ray.tracking.names import MAX_TAG, clean_params, clean_tags, clean_text, figure_path
from difc_ray.tracking.uris import without_credentials

Status = Literal["FINISHED", "FAILED", "KILLED"]
_log = logging.getLogger(__name__)


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
    """Tracking URI, credentials masked; ``off`` if the run is recorded in its folder only."""
    experiment: str
    run_id: str | None = None
    """MLflow run, None when the store could not be reached yet."""
    pending: int = 0
    """Journal records that are not in the store yet."""
    refused: int = 0
    """Records that MLflow refused for good; each is in ``refused.jsonl`` with its reason."""
    ui_command: str = ""
    """The command that shows the run."""
    message: str | None = None
    """A sentence for the user when not everything arrived."""


class Tracker:
    """Records one run in its journal, and sends nothing: `tracking.mode=off`, and the trials of a sweep.

    No method waits for a server, none raises because of one.

    * A resumed run continues its journal. What it records once more is sent to MLflow once
      (:mod:`difc_ray.tracking.replay`); a value (metric, step, value) of :meth:`metrics` is not even recorded again.
    * The end of a run whose process died without a word can be told by another: resumed, and finished without a start.
    * Values of parameters and tags that sound like secrets, and credentials in URIs, are replaced by ``***``.
    * A disk that is full costs records, with one warning, and never the run.

    Args:
        run_dir: the run's output folder.
        uri: the MLflow store that the run is meant for, from :func:`~difc_ray.tracking.uris.resolve_uri`; None: none.
        experiment: name of the MLflow experiment.
        resume: continue the run that ``run_dir`` holds.
        notice: takes the warnings, sentences for the user; None: the log.
        parent: the :attr:`key` of the run that this one is nested in; None: of none (a resumed run keeps its own).

    Raises:
        CheckpointError: ``run_dir`` has a journal, and ``resume`` is not set.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str | None,
        experiment: str,
        *,
        resume: bool = False,
        notice: Callable[[str], None] | None = None,
        parent: str | None = None,
    ) -> None:
        self.folder = TrackingFolder(run_dir.absolute())
        self.experiment = experiment
        self._uri, self._store = uri or "off", without_credentials(uri) if uri else None
        self._notice = notice or _log.warning
        if self.folder.journal.exists() and not resume:
            raise CheckpointError(
                f"a run folder must be new unless the run is resumed, got the journal of another run (`{run_dir}`). "
                "Choose another `name`, or resume it."
            )
        self.folder.run_dir.mkdir(parents=True, exist_ok=True)
        self._before = survey(self.folder.journal)
        self._journal = JournalWriter(self.folder.journal, self._before.last_seq)
        self.key = self._before.key or uuid.uuid4().hex
        """What marks this run in every store, from the beginning; the ``parent`` of the runs nested in it."""
        self._parent = parent or self._before.start.get("parent")
        self._lost = 0
        self._started = bool(self._before.start) and not self._before.finished
        self._summary: TrackingSummary | None = None

    def start(self, *, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Begin the run, or continue it.

        Args:
            run_name: its name in MLflow.
            params: the configuration; nested mappings become dotted keys.
            tags: facts about the run (versions, fingerprints).
        """
        self.record("start", {
            "run_name": run_name, "experiment": self.experiment, "store": self._store,
            "params": clean_params(params), "tags": clean_tags(tags),
            "key": self.key, "attempt": self._before.attempts,
            "pid": os.getpid(), "started": start_of_this(), "host": socket.gethostname(),
        } | ({"parent": self._parent} if self._parent else {}))  # fmt: skip
        self._started = True

    def record(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append a record as it is; costs the writing of one line.

        Args:
            kind: one of :mod:`difc_ray.tracking.journal`.
            content: its fields.
        """
        self._on_disk(lambda: self._journal.append(kind, content))

    def metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record values of a step, other than those of the step itself or of its evaluation."""
        held = self._before.points
        numbers = {name: float(value) for name, value in values.items()}
        # as text, in which nan is equal to itself
        fresh = {name: number for name, number in numbers.items() if str(held.get((name, step))) != str(number)}
        if fresh:
            self.record("metrics", {"step": int(step), "values": fresh})

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self.record("tags", {"tags": clean_tags(values)})

    def figure(self, name: str, figure: SavesFigure) -> None:
        """Save a figure as ``<run>/figures/<name>.png`` and record it."""
        path = figure_path(self.folder.run_dir, name)
        if self._on_disk(lambda: save_figure(figure, path)):
            self.artifact(path, "figures")

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or directory, to be in ``folder`` among the run's artifacts.

        One outside of the run's folder is copied into ``<run>/artifacts``.
        """
        if kept := self._keep(path.absolute(), Path("artifacts") / folder):
            self.record("artifact", {"path": kept, "folder": folder})

    def model(self, directory: Path, *, step: int, register: str | None = None) -> None:
        """Record a model, which is saved in MLflow's format as ``<run>/model`` when it is sent.

        Args:
            directory: the model, as :mod:`difc_ray.tracking.model_upload` reads it.
            step: the step at which its weights were taken.
            register: name in the model registry under which it becomes a version; None: it is not registered.
        """
        if kept := self._keep(directory.absolute(), Path("model-weights")):
            name = {"register": register} if register else {}
            self.record("model", {"path": kept, "step": int(step), **name})

    def finish(self, status: Status, error: str | None = None, *, drain_s: float | None = None) -> TrackingSummary:
        """End the run. A second call returns the same summary.

        Args:
            status: how it ended.
            error: the error sentence, for the tag ``error``.
            drain_s: seconds to wait for the last records to arrive; None: the tracker's default.

        Returns:
            Where the run is, and what has not arrived.
        """
        if self._summary is None:
            try:
                if self._started:
                    self.record("finish", {"status": status, "error": clean_text(error, MAX_TAG) if error else None})
                    self._on_disk(self._journal.flush_to_disk)
                    self._drain(drain_s)
            finally:  # also on a second Ctrl-C
                self.close()
            self._summary = self._summarize()
        return self._summary

    def _drain(self, seconds: float | None) -> None:
        """Wait for the last records to arrive; here nobody sends them."""

    def close(self) -> None:
        """Close the journal, without an end of the run."""
        self._journal.close()

    def _summarize(self) -> TrackingSummary:
        return TrackingSummary(uri=masked(self._uri), experiment=self.experiment, message=self._losses() or None)

    def _losses(self) -> str:
        lost = count(self._lost)
        return f"{lost} could not be written to `{self.folder.journal}`: is the disk full?" if self._lost else ""

    def _keep(self, path: Path, shelf: Path) -> str | None:
        """The path relative to the run's folder, copied there if need be; None when it is not there."""
        run_dir = self.folder.run_dir
        if path.is_relative_to(run_dir) and path.exists():
            return path.relative_to(run_dir).as_posix()

        def copy() -> None:
            (run_dir / shelf).mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, run_dir / shelf / path.name, dirs_exist_ok=True)
            else:
                shutil.copy2(path, run_dir / shelf / path.name)

        return (shelf / path.name).as_posix() if self._on_disk(copy) else None

    def _on_disk(self, action: Callable[[], object]) -> bool:
        """Do something with the disk; whether it worked. A disk that fails costs records, not the run."""
        try:
            action()
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                self._notice(f"A record of the run cannot be written: {error}. Free some space; training goes on.")
            return False
        return True


def count(records: int) -> str:
    """So many records, in words."""
    return f"{records} record{'s' if records != 1 else ''}"
