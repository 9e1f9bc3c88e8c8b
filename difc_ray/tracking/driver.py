"""The tracker of a run or a sweep that is recorded in MLflow: it watches over the child that sends the journal."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from difc_ray.errors import ended
from difc_ray.files import read_json
from difc_ray.secrets import masked
from difc_ray.tracking.base import Tracker, TrackingSummary, count
from difc_ray.tracking.child import UploaderProcess
from difc_ray.tracking.points import MEASURED
from difc_ray.tracking.settings import UploadSettings
from difc_ray.tracking.uris import sync_command, ui_command, without_credentials

_LOOK_S = 2.0
_QUIET_S = 60.0
_DRAIN_LOOK_S = 0.2


class MlflowTracker(Tracker):
    """Records a run in its journal, and in MLflow by a child process that sends the journal.

    Of a sweep, the child sends the journals of all trials below ``run_dir`` too.

    Args:
        run_dir: the run's output folder.
        uri: where to, from :func:`~difc_ray.tracking.uris.resolve_uri`.
        experiment: name of the MLflow experiment.
        resume: continue the run that ``run_dir`` holds.
        settings: pace and patience of the uploader; None: from the environment.
        notice: takes the warnings (at most one a minute while a server is out of reach); None: the log.

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
    ) -> None:
        super().__init__(run_dir, uri, experiment, resume=resume, notice=notice)
        self._store: str = without_credentials(uri)
        self._settings = settings or UploadSettings.from_environ()
        self._child = UploaderProcess(self.folder, uri, self._settings)
        self._next_look = self._next_warning = 0.0

    @property
    def run_id(self) -> str | None:
        """The MLflow run, once the uploader has created it."""
        return self.folder.identity(self._store).get("run_id")

    @property
    def uploader_pid(self) -> int | None:
        """Process number of the uploader while it runs."""
        return self._child.pid

    def start(self, *, run_name: str, params: Mapping[str, object], tags: Mapping[str, str]) -> None:
        """Begin the run, or continue it, and start the uploader; see :meth:`Tracker.start`."""
        super().start(run_name=run_name, params=params, tags=tags)
        self._child.start()

    def record(self, kind: str, content: Mapping[str, Any]) -> None:
        """Append a record, and with metrics look after the uploader, every two seconds."""
        super().record(kind, content)
        if kind in MEASURED and self._child.started and time.monotonic() >= self._next_look:
            self._look_after_child()

    def _drain(self, seconds: float | None) -> None:
        """Wait until all is sent; the child then ends by itself, that of a sweep when its dead trials are closed."""
        deadline = time.monotonic() + (self._settings.drain_s if seconds is None else seconds)
        while time.monotonic() < deadline and self._pending():
            if self._child.may_start:
                self._child.start()
            left_s = max(0.0, deadline - time.monotonic())
            if self._child.wait(min(_DRAIN_LOOK_S, left_s)) and not self._child.may_start:
                return
        self._child.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End the uploader; what it did not send is still in the journal."""
        self._child.end()
        super().close()

    def _pending(self) -> int:
        return sum(folder.pending(self._store) for folder in self.folder.all())

    def _summarize(self) -> TrackingSummary:
        identity, pending = self.folder.identity(self._store), self._pending()
        refused = sum(folder.count_refused() for folder in self.folder.all())
        sentences = []
        if pending:
            reason = read_json(self.folder.status).get("reason", f"Its log is `{self.folder.log}`")
            sentences.append(
                f"MLflow at `{masked(self._uri)}` has not taken {count(pending)} yet. {ended(reason)} "
                f"They are kept; send them with "
                f"`{sync_command(self.folder.run_dir, self._store, self.folder.output, os.environ)}`."
            )
        if refused:
            below = f"`refused.jsonl` below `{self.folder.run_dir}`"
            sentences.append(f"MLflow refused {count(refused)}; the reasons are in {below}.")
        if self._lost:
            sentences.append(self._losses())
        return TrackingSummary(
            uri=masked(self._uri),
            experiment=self.experiment,
            run_id=identity.get("run_id"),
            pending=pending,
            refused=refused,
            ui_command=ui_command(self._uri, identity.get("experiment_id"), identity.get("run_id")),
            message=" ".join(sentences) or None,
        )

    def _look_after_child(self) -> None:
        """Start a child that crashed again, and say once a minute that records wait."""
        now = time.monotonic()
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
                f"MLflow does not take records since {since}; {count(self._pending())} are kept in "
                f"`{self.folder.journal}`. {status.get('reason', '')}"
            )
