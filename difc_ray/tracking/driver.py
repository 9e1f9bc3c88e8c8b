"""The tracker of a run: writes the journal, and watches over the child that sends it."""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, SupportsFloat

import psutil

from difc_ray.errors import CheckpointError, ended
from difc_ray.files import read_json
from difc_ray.secrets import masked
from difc_ray.tracking.base import SavesFigure, Status, TrackingSummary, save_figure
from difc_ray.tracking.child import UploaderProcess
from difc_ray.tracking.family import Family
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import JournalWriter, survey
from difc_ray.tracking.names import MAX_TAG, clean_key, clean_params, clean_tags, clean_text, figure_path
from difc_ray.tracking.settings import UploadSettings
from difc_ray.tracking.uris import ui_command, without_credentials

_log = logging.getLogger(__name__)
_LOOK_S = 2.0
_QUIET_S = 60.0


class MlflowTracker:
    """Records a run in MLflow through a journal on disk and a child process.

    * A metric that is not finite stays in the journal and is not sent (MLflow would store inf as 1.8e308); the tag
      ``difc_ray.nonfinite_metrics`` says at the end how many there were and where they began.
    * A name that MLflow does not allow is changed as :func:`~difc_ray.tracking.names.clean_key` does; the tag
      ``difc_ray.renamed.<new name>`` keeps the old one.
    * A resumed run continues the same MLflow run. Points (metric, step) that an earlier attempt recorded are not
      recorded again: the resumed run computes the same values. Changed parameters become tags ``resume.<n>.<name>``.
    * The end of a run whose process died without a word can be told by another: resumed, and finished without a start.
    * Values of parameters and tags that sound like secrets, and credentials in URIs, are replaced by ``***``.
    * A disk that is full costs records, with one warning, and never the run.

    Args:
        run_dir: the run's output folder.
        uri: where to, from :func:`~difc_ray.tracking.uris.resolve_uri`.
        experiment: name of the MLflow experiment.
        resume: continue the run that ``run_dir`` holds.
        settings: pace and patience of the uploader; None: from the environment.
        notice: takes the warnings, sentences for the user (at most one a minute while a server is out of reach); None:
            the log.
        upload: whether a child process sends the journal; otherwise it is only written, for the uploader of a sweep.
        parent: the :attr:`key` of the run that this one is nested in; None: of none (a resumed run keeps its own).
        family: the child sends the journals of all trials below ``run_dir`` too
            (:class:`~difc_ray.tracking.family.Family`).

    Raises:
        CheckpointError: ``run_dir`` has a journal, and ``resume`` is not set.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str,
        *,
        resume: bool = False,
        settings: UploadSettings | None = None,
        notice: Callable[[str], None] | None = None,
        upload: bool = True,
        parent: str | None = None,
        family: bool = False,
    ) -> None:
        self.folder = TrackingFolder(run_dir.absolute())
        self.experiment = experiment
        self._uri, self._store = uri, without_credentials(uri)
        self._settings = settings or UploadSettings.from_environ()
        self._notice = notice or _log.warning
        if self.folder.journal.exists() and not resume:
            raise CheckpointError(
                f"a run folder must be new unless the run is resumed, got the journal of another run (`{run_dir}`). "
                "Choose another `name`, or resume it."
            )
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self._before = survey(self.folder.journal)
        self._recorded = self._before.last_steps
        self._last_recorded = max(self._recorded.values(), default=-1)
        self._journal = JournalWriter(self.folder.journal, self._before.last_seq)
        self._key = self._before.key or uuid.uuid4().hex
        self._parent = parent or self._before.start.get("parent")
        self._upload = upload
        self._family = Family(self.folder) if family else None
        self._child = UploaderProcess(self.folder, uri, self._settings, ("--family",) if family else ())
        self._names: dict[str, str] = {}
        self._nonfinite: dict[str, tuple[int, int]] = {}
        self._lost = 0
        self._started = bool(self._before.start) and not self._before.finished
        self._next_look = self._next_warning = 0.0
        self._summary: TrackingSummary | None = None

    @property
    def key(self) -> str:
        """What marks this run in every store, from the beginning; the ``parent`` of the runs nested in it."""
        return self._key

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once the uploader has created it."""
        return self.folder.identity(self._store).get("run_id")

    @property
    def uploader_pid(self) -> int | None:
        """Process number of the uploader while it runs."""
        return self._child.pid

    def start(self, *, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """See :class:`~difc_ray.tracking.base.Tracker`."""
        self._append("start", {
            "run_name": run_name, "experiment": self.experiment, "store": self._store,
            "params": clean_params(params), "tags": clean_tags(tags),
            "key": self._key, "attempt": self._before.attempts,
            "pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname(),
        } | ({"parent": self._parent} if self._parent else {}))  # fmt: skip
        self._started = True
        if self._upload:
            self._child.start()

    def metrics(self, step: int, values: Mapping[str, SupportsFloat]) -> None:
        """Record values of a step; costs the writing of one line."""
        known = self._names
        kept: dict[str, float | str] = {}
        for key, value in values.items():
            name = known.get(key) or self._learn(key)
            if step <= self._last_recorded and step <= self._recorded.get(name, -1):
                continue
            number = float(value)
            if math.isfinite(number):
                kept[name] = number
            else:
                kept[name] = str(number)  # JSON has no word for it
                count, first = self._nonfinite.get(name, (0, step))
                self._nonfinite[name] = (count + 1, first)
        if kept:
            self._append("metrics", {"step": int(step), "values": kept})
        self._look_after_child()

    def tags(self, values: Mapping[str, str]) -> None:
        """See :class:`~difc_ray.tracking.base.Tracker`."""
        self._append("tags", {"tags": clean_tags(values)})

    def figure(self, name: str, figure: SavesFigure) -> None:
        """Save a figure as ``<run>/figures/<name>.png`` and record it."""
        path = figure_path(self.folder.run_dir, name)
        if self._on_disk(lambda: save_figure(figure, path)):
            self.artifact(path, "figures")

    def artifact(self, path: Path, folder: str = "") -> None:
        """Record a file or directory; one outside of the run's folder is copied into ``<run>/artifacts``."""
        if kept := self._keep(path.absolute(), "artifacts"):
            self._append("artifact", {"path": kept, "folder": folder})

    def model(self, directory: Path, *, step: int, register: str | None = None) -> None:
        """Record a model; the child saves it in MLflow's format as ``<run>/model``, uploads and registers that."""
        if kept := self._keep(directory.absolute(), "model-weights"):
            name = {"register": register} if register else {}
            self._append("model", {"path": kept, "step": int(step), **name})

    def finish(self, status: Status, error: str | None = None, *, drain_s: float | None = None) -> TrackingSummary:
        """End the run, wait for the last records, end the child. A second call returns the same summary."""
        if self._summary is None:
            try:
                if self._started:
                    self._say_goodbye(status, error)
                    if self._upload:
                        self._drain(self._settings.drain_s if drain_s is None else drain_s)
            finally:  # also on a second Ctrl-C
                self._child.end()
                self._journal.close()
            self._summary = self._summarize()
        return self._summary

    def _say_goodbye(self, status: Status, error: str | None) -> None:
        if self._nonfinite:
            lines = (f"{name}: {count} (first at step {step})" for name, (count, step) in self._nonfinite.items())
            self.tags({"difc_ray.nonfinite_metrics": clean_text("\n".join(lines), MAX_TAG)})
        self._append("finish", {"status": status, "error": clean_text(error, MAX_TAG) if error else None})
        self._on_disk(self._journal.flush_to_disk)

    def _drain(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._pending():
            if self._child.may_start:
                self._child.start()
            if self._child.wait(min(0.1, max(0.0, deadline - time.monotonic()))) and not self._child.may_start:
                return
        # It ends by itself when all is sent; that of a family has yet to close the runs of trials that died.
        left_s = max(0.0, deadline - time.monotonic())
        self._child.wait(min(1.0, left_s) if self._family is None else left_s)

    def _summarize(self) -> TrackingSummary:
        identity = self.folder.identity(self._store)
        pending, refused = self._pending(), self._refused()
        return TrackingSummary(
            uri=masked(self._uri),
            experiment=self.experiment,
            run_id=identity.get("run_id"),
            pending=pending,
            refused=refused,
            ui_command=ui_command(self._uri, identity.get("experiment_id"), identity.get("run_id")),
            message=self._message(pending, refused),
        )

    def _message(self, pending: int, refused: int) -> str | None:
        sentences = []
        if pending and self._upload:
            reason = read_json(self.folder.status).get("reason", f"Its log is `{self.folder.log}`")
            sentences.append(
                f"MLflow at `{masked(self._uri)}` has not taken {_count(pending)} yet. {ended(reason)} "
                f"They are kept; send them with `difc-ray sync {shlex.quote(str(self.folder.run_dir))}`."
            )
        if refused:
            below = (
                f"`{self.folder.refused}`" if self._family is None else f"`refused.jsonl` below `{self.folder.run_dir}`"
            )
            sentences.append(f"MLflow refused {_count(refused)}; the reasons are in {below}.")
        if self._lost:
            sentences.append(f"{_count(self._lost)} could not be written to `{self.folder.path}`: is the disk full?")
        return " ".join(sentences) or None

    def _pending(self) -> int:
        own = max(0, self._journal.last_seq - self.folder.sent_seq(self._store))
        return own + (self._family.pending(self._store) if self._family is not None else 0)

    def _refused(self) -> int:
        folders = [self.folder, *(self._family.trials() if self._family is not None else ())]
        return sum(folder.count_refused() for folder in folders)

    def _learn(self, name: str) -> str:
        """The key for a new name; a name that had to be changed is noted in a tag, once."""
        key = self._names[name] = clean_key(name)
        if key != name and key not in self._before.last_steps:
            self.tags({f"difc_ray.renamed.{key}": name})
        return key

    def _keep(self, path: Path, shelf: str) -> str | None:
        """The path relative to the run's folder, copied there if need be; None when it is not there."""
        if path.is_relative_to(self.folder.run_dir) and path.exists():
            return path.relative_to(self.folder.run_dir).as_posix()
        target = self.folder.run_dir / shelf / path.name

        def copy() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                shutil.copytree(path, target, dirs_exist_ok=True)
            else:
                shutil.copy2(path, target)

        return target.relative_to(self.folder.run_dir).as_posix() if self._on_disk(copy) else None

    def _append(self, kind: str, content: dict[str, Any]) -> None:
        self._on_disk(lambda: self._journal.append(kind, content))

    def _on_disk(self, action: Callable[[], object]) -> bool:
        """Do something with the disk; whether it worked. A disk that fails costs records, not the run."""
        try:
            action()
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                self._notice(f"A record for MLflow cannot be written: {error}. Free some space; training goes on.")
            return False
        return True

    def _look_after_child(self) -> None:
        """Every two seconds: start a child that crashed again, and say once a minute that records wait."""
        now = time.monotonic()
        if now < self._next_look or not self._upload:
            return
        self._next_look = now + _LOOK_S
        if self._child.may_start:
            code = self._child.exit_code
            self._notice(f"The MLflow uploader ended with code {code}. Started again; its log is `{self.folder.log}`.")
            self._child.start()
        status = read_json(self.folder.status)
        if status.get("state") == "waiting" and now >= self._next_warning:
            self._next_warning = now + _QUIET_S
            since = time.strftime("%H:%M", time.localtime(status.get("since", 0.0)))
            self._notice(
                f"MLflow does not take records since {since}; {_count(self._pending())} are kept in "
                f"`{self.folder.journal}`. {status.get('reason', '')}"
            )


def _count(records: int) -> str:
    return f"{records} record{'s' if records != 1 else ''}"
