"""``difc-ray sync``: send what a run's end left in its journal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difc_ray.errors import CheckpointError, DifcError
from difc_ray.files import process_alive, read_json
from difc_ray.secrets import masked
from difc_ray.tracking.child import EXIT_IN_USE, uploader_command, uploader_environ
from difc_ray.tracking.family import Family
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import JournalSurvey, ends_with_finish, last_seq, survey
from difc_ray.tracking.settings import UploadSettings
from difc_ray.tracking.uris import resolve_uri, ui_command, without_credentials


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What :func:`sync` did."""

    uri: str
    """Tracking URI, credentials masked."""
    run_id: str | None
    sent: int
    """Records sent by this call."""
    pending: int
    """Records that still wait."""
    refused: int
    """Records that MLflow refused for good, in all."""
    ui_command: str
    message: str | None = None
    """Why records still wait."""
    trials: int = 0
    """Trials among what was sent, if the folder is a sweep's."""
    abandoned: int = 0
    """Runs without an end whose processes are gone: they are KILLED in MLflow now."""
    elsewhere: tuple[str, ...] = ()
    """Hosts of runs without an end that nobody here can ask about: those runs stay as they are."""


def sync(run_dir: Path, uri: str | None = None, *, patience_s: float = 30.0) -> SyncReport:
    """Send the rest of a run's journal to MLflow; to another store than before, all of it.

    Of a sweep the journals of all trials are sent too, after its own; the report counts them all. A run whose process
    died without a word gets the status KILLED.

    Args:
        run_dir: the folder of a run or of a sweep.
        uri: where to; None: where the run was recorded before (with the credentials of ``MLFLOW_TRACKING_URI``, if that
            is the same store).
        patience_s: seconds of failures after which to give up.

    Raises:
        CheckpointError: the folder has no journal, or a live process is at work on it.
        ConfigError: ``uri`` cannot be a tracking URI.
    """
    folder = TrackingFolder(run_dir.absolute())
    known = survey(folder.journal)
    if "store" not in known.start:
        raise CheckpointError(
            f"a run folder must have a journal, got none (`{folder.journal}`). Give the folder of a run with "
            "`tracking.mode: on`."
        )
    target = resolve_uri(uri, run_dir.parent, {}) if uri else _former_uri(known, os.environ)
    store = without_credentials(target)
    folders = [folder, *Family(folder).trials()]
    before = sum(each.sent_seq(store) for each in folders)
    _refuse_if_in_use(folder)
    code = _run_uploader(folder, target, patience_s, ["--family"] if len(folders) > 1 else [])
    if code == EXIT_IN_USE:
        _refuse_if_in_use(folder)
    identity, done = folder.identity(store), sum(each.sent_seq(store) for each in folders)
    waiting = [last_seq(each.journal) - each.sent_seq(store) for each in folders]
    pending = sum(max(0, records) for records in waiting)
    abandoned, elsewhere = _without_end(folders)
    return SyncReport(
        uri=masked(target),
        run_id=identity.get("run_id"),
        sent=done - before,
        pending=pending,
        refused=sum(each.count_refused() for each in folders),
        ui_command=ui_command(target, identity.get("experiment_id"), identity.get("run_id")),
        message=read_json(folder.status).get("reason", f"See `{folder.log}`.") if pending else None,
        trials=len(folders) - 1,
        abandoned=0 if pending else abandoned,
        elsewhere=elsewhere,
    )


def _without_end(folders: Sequence[TrackingFolder]) -> tuple[int, tuple[str, ...]]:
    """How many runs have no end although their process is gone, and the other hosts on which such runs were started."""
    gone, elsewhere = 0, []
    for folder in folders:
        if ends_with_finish(folder.journal):
            continue
        start = survey(folder.journal).start
        if start.get("host", socket.gethostname()) != socket.gethostname():
            elsewhere.append(str(start["host"]))
        elif "pid" in start and not process_alive(start["pid"], start["started"], start["host"]):
            gone += 1
    return gone, tuple(dict.fromkeys(elsewhere))


def _former_uri(known: JournalSurvey, environ: Mapping[str, str]) -> str:
    """The store of the last attempt; the environment may know its credentials, which no file does."""
    former = str(known.start["store"])
    current = environ.get("MLFLOW_TRACKING_URI", "")
    return current.rstrip("/") if without_credentials(current.rstrip("/")) == former else former


def _refuse_if_in_use(folder: TrackingFolder) -> None:
    with folder.lock():
        pass


def _run_uploader(folder: TrackingFolder, uri: str, patience_s: float, options: Sequence[str]) -> int:
    """Run the uploader to its end as a child: what it imports, logs and sets stays out of this process."""
    command = uploader_command(folder.run_dir, "--once", "--patience-s", str(patience_s), *options)
    try:
        with folder.log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=uploader_environ(uri, UploadSettings.from_environ()),
            )  # fmt: skip
    except OSError as error:
        raise DifcError(f"the uploader must start, got {error} (sync). Check `{sys.executable}`.") from error
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
