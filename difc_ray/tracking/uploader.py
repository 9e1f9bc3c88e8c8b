"""The uploader: a child of the process that trains, and the only process of a run that imports mlflow.

``python -m difc_ray.tracking.uploader RUN_DIR --parent PID`` follows the journal until its end;
``--once`` sends what there is and ends. The tracking URI comes in the environment (``DIFC_RAY_TRACKING_URI``).
Exit codes: 0 all sent, 3 another process has the folder, 4 the store stayed unavailable.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from difc_ray.errors import CheckpointError
from difc_ray.tracking.child import EXIT_IN_USE, EXIT_UNAVAILABLE
from difc_ray.tracking.failures import UnavailableError
from difc_ray.tracking.folder import TrackingFolder, write_json
from difc_ray.tracking.journal import ends_with_finish, survey
from difc_ray.tracking.lock import FolderLock, process_alive
from difc_ray.tracking.names import hide_secrets
from difc_ray.tracking.replay import Replayer
from difc_ray.tracking.settings import URI_VARIABLE, UploadSettings

_POLL_S = 0.1
_LOCK_WAIT_S = 15.0
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the uploader; see the module."""
    parser = argparse.ArgumentParser(prog="difc_ray.tracking.uploader")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--kernel-guard", action="store_true", help="ask the kernel to end us with the parent's thread")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--patience-s", type=float, default=0.0, help="with --once: give up after so long a failure")
    given = parser.parse_args(arguments)
    _end_with(given.parent, given.kernel_guard)
    _mask_output()
    with contextlib.suppress(OSError):
        os.nice(5)
    folder, lock = TrackingFolder(given.run_dir), FolderLock(TrackingFolder(given.run_dir).lock)
    try:
        lock.acquire(0.0 if given.once else _LOCK_WAIT_S)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return EXIT_IN_USE
    try:
        settings = UploadSettings.from_environ()
        _configure_client(settings)
        uploader = Uploader(folder, Replayer(given.run_dir, os.environ[URI_VARIABLE]), settings)
        return uploader.send_once(given.patience_s) if given.once else uploader.follow()
    finally:
        lock.release()


@dataclass
class Uploader:
    """Calls the replayer at its pace.

    Args:
        folder: the run's tracking files.
        replayer: what sends.
        settings: pace and patience.
    """

    folder: TrackingFolder
    replayer: Replayer
    settings: UploadSettings
    failures: int = 0
    _failing_since: float | None = None

    def follow(self) -> int:
        """Send what the journal gets until it says that the run has ended and all of it is sent."""
        while True:
            if self.attempt():
                if self.replayer.ended:
                    return 0
                self._wait(self.settings.flush_s, at_the_end=0.0)
            else:
                self._wait(self.backoff_s(), at_the_end=self.settings.backoff_first_s)

    def send_once(self, patience_s: float) -> int:
        """Send what there is; after ``patience_s`` seconds of failures give up."""
        while not self.attempt():
            if time.time() - (self._failing_since or 0.0) >= patience_s:
                return EXIT_UNAVAILABLE
            time.sleep(min(self.backoff_s(), max(0.1, patience_s / 4)))
        known = survey(self.folder.journal)
        start = known.start
        if start and not known.finished and not process_alive(start["pid"], start["started"], start["host"]):
            with contextlib.suppress(UnavailableError):
                self.replayer.close_abandoned_run(known.last_ts)
        return 0

    def attempt(self) -> bool:
        """Send what there is now; False if the store was unavailable."""
        try:
            self.replayer.pump()
        except UnavailableError as error:
            self.failures += 1
            self._failing_since = self._failing_since or time.time()
            write_json(self.folder.status, {"state": "waiting", "since": self._failing_since, "reason": str(error)})
            print(f"{time.strftime('%H:%M:%S')} not sent ({self.failures}): {error}", flush=True)
            if ends_with_finish(self.folder.journal):
                self.replayer.export_models()
            return False
        if self.failures or not self.folder.status.exists():
            write_json(self.folder.status, {"state": "ok"})
        self.failures, self._failing_since = 0, None
        return True

    def backoff_s(self) -> float:
        """Seconds until the next attempt: doubling up to the bound, with jitter, so that runs do not come in step."""
        bound = self.settings.backoff_first_s * 2.0 ** min(self.failures - 1, 30)
        return min(bound, self.settings.backoff_max_s) * random.uniform(0.5, 1.0)

    def _wait(self, seconds: float, at_the_end: float) -> None:
        """Wait, but only ``at_the_end`` seconds once the run has ended, because then somebody waits for us."""
        began, size = time.monotonic(), -1
        while (waited := time.monotonic() - began) < seconds:
            with contextlib.suppress(OSError):
                now = self.folder.journal.stat().st_size
                if now != size and ends_with_finish(self.folder.journal):
                    seconds = min(seconds, at_the_end)
                size = now
            time.sleep(min(_POLL_S, max(0.0, seconds - waited)))


def _end_with(parent: int, kernel_guard: bool) -> None:
    """End when the parent does, however it dies: by the kernel where it can, and by looking twice a second.

    The kernel's signal comes with the end of the *thread* that started us, hence only on request.
    """
    if kernel_guard and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    if os.getppid() != parent:
        os._exit(1)
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _configure_client(settings: UploadSettings) -> None:
    """MLflow's own retries block for minutes and its checks of requirements for 15 s; both are ours to decide."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(max(1, round(settings.request_timeout_s)))
    os.environ["MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK"] = "true"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


class _Masked(io.TextIOBase):
    """A stream whose text loses its credentials, line by line."""

    def __init__(self, stream: io.TextIOBase) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(hide_secrets(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def _mask_output() -> None:
    """Before mlflow is imported: its log messages may contain the URI as it is."""
    sys.stdout, sys.stderr = _Masked(sys.stdout), _Masked(sys.stderr)  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main())
