"""``difc-ray sync``: send what a run's end left in its journal, or what is found out about it later."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from difc_ray.errors import CheckpointError, ConfigError, DifcError
from difc_ray.files import process_alive, read_json
from difc_ray.secrets import masked
from difc_ray.tracking.base import Tracker
from difc_ray.tracking.child import EXIT_IN_USE, launch
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import JournalSurvey, ends_with_finish, survey
from difc_ray.tracking.settings import UploadSettings
from difc_ray.tracking.uris import own_uri, resolve_uri, sync_command, ui_command, without_credentials


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
        uri: where to; None: where the run was recorded before, if that is the store of ``MLFLOW_TRACKING_URI`` or the
            database beside the run.
        patience_s: seconds of failures after which to give up.

    Raises:
        CheckpointError: the folder has no journal, or a live process is at work on it.
        ConfigError: ``uri`` cannot be a tracking URI, or there is none and the run was recorded nowhere, or where only
            its folder says.
    """
    folder = TrackingFolder(run_dir.absolute())
    known = survey(folder.journal)
    if "store" not in known.start:
        raise CheckpointError(
            f"a run folder must have a journal, got none (`{folder.journal}`). Give the folder of a run, or of a sweep "
            "with `tracking.mode: on`."
        )
    target = resolve_uri(uri, run_dir.parent, {}) if uri else _former_uri(folder, known, os.environ)
    store = without_credentials(target)
    folders = folder.all()
    before = sum(each.sent_seq(store) for each in folders)
    _refuse_if_in_use(folder)
    code = _run_uploader(folder, target, patience_s)
    if code == EXIT_IN_USE:
        _refuse_if_in_use(folder)
    identity = folder.identity(store)
    pending = sum(each.pending(store) for each in folders)
    abandoned, elsewhere = _without_end(folders)
    return SyncReport(
        uri=masked(target),
        run_id=identity.get("run_id"),
        sent=sum(each.sent_seq(store) for each in folders) - before,
        pending=pending,
        refused=sum(each.count_refused() for each in folders),
        ui_command=ui_command(target, identity.get("experiment_id"), identity.get("run_id")),
        message=read_json(folder.status).get("reason", f"See `{folder.log}`.") if pending else None,
        trials=len(folders) - 1,
        abandoned=0 if pending else abandoned,
        elsewhere=elsewhere,
    )


class _Addition(Tracker):
    """Adds to a journal; here the records are all that is wanted, and what cannot be written is an error."""

    def _on_disk(self, action: Callable[[], object]) -> bool:
        action()
        return True


def add_afterwards(
    run_dir: Path, points: Mapping[int, Mapping[str, float]], files: Sequence[Path], folder: str,
    *, patience_s: float = 10.0,
) -> SyncReport | None:  # fmt: skip
    """Appends to the journal of a run that is not at work any more, and sends it to the store where the run is.

    A point (metric, step, value) that the journal has is not recorded again, and a file replaces one of its name: the
    same findings twice leave MLflow as once. The run's status and the time of its end stay.

    Args:
        run_dir: the run's folder; nobody may train in it meanwhile (see :class:`difc_ray.runs.checkpoint.RunLock`).
        points: step -> metric -> value.
        files: of any place; those outside of the run's folder are copied into `artifacts/` there.
        folder: where the files are to be among the run's artifacts.
        patience_s: seconds of failures after which the rest is left to `difc-ray sync`.

    Returns:
        What was sent; None if the run was never recorded (`tracking.mode: off`).

    Raises:
        CheckpointError: a live process is at work on the journal.
        OSError: it cannot be written.
    """
    known = survey(TrackingFolder(run_dir.absolute()).journal)
    if not known.start.get("store"):
        return None
    tracker = _Addition(run_dir, None, "", resume=True)
    try:
        for step, values in sorted(points.items()):
            tracker.metrics(step, values)
        for file in files:
            tracker.artifact(file, folder)
        if known.last is not None and known.last.kind == "finish":
            end = {name: value for name, value in known.last.data.items() if name not in ("seq", "kind")}
            tracker.record("finish", end)  # the same end again, at its own time: the run stays closed
    finally:
        tracker.close()
    return sync(run_dir, patience_s=patience_s)


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


def _former_uri(folder: TrackingFolder, known: JournalSurvey, environ: Mapping[str, str]) -> str:
    """The store of the last attempt, if the user's settings name it too (with credentials, which no file has)."""
    former = known.start["store"]
    if former is None:
        raise ConfigError(
            "a run without a store can only be sent to a named one, got none (`tracking.mode: off`). Name it with "
            "`--uri`."
        )
    if own := own_uri(str(former), folder.output, environ):
        return own
    command = sync_command(folder.run_dir, str(former), folder.output, environ)
    raise ConfigError(
        f"a run is sent only where your own settings say, as its folder may come from somebody else, got the address "
        f"`{masked(str(former))}` (`{folder.journal}`). If it is yours, name it: `{masked(command)}`, or in "
        "`MLFLOW_TRACKING_URI`."
    )


def _refuse_if_in_use(folder: TrackingFolder) -> None:
    with folder.lock():
        pass


def _run_uploader(folder: TrackingFolder, uri: str, patience_s: float) -> int:
    """Run the uploader to its end; its exit code."""
    try:
        process = launch(folder, uri, UploadSettings.from_environ(), "--once", "--patience-s", str(patience_s))
    except OSError as error:
        raise DifcError(f"the uploader must start, got {error} (sync). Check `{sys.executable}`.") from error
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
