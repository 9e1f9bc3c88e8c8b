"""The uploader: a child of the process that trains, and the only process of a run that imports mlflow.

``python -m difc_ray.tracking.uploader RUN_DIR --parent PID`` follows the journal of a run, or those of a sweep and its
trials, until the end; ``--once`` sends what there is and ends. ``--read RUN_ID`` sends nothing: it prints what MLflow
has of a run, as one line of JSON. The tracking URI comes in the environment (``DIFC_RAY_TRACKING_URI``).
Exit codes: 0 all sent, 3 another process has the folder, 4 the store stayed unavailable.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import io
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from difc_ray.errors import CheckpointError
from difc_ray.secrets import masked
from difc_ray.tracking.child import EXIT_IN_USE, MEANT
from difc_ray.tracking.runs import answer
from difc_ray.tracking.sending import Uploader
from difc_ray.tracking.settings import URI_VARIABLE, UploadSettings

_LOCK_WAIT_S = 15.0
_PR_SET_PDEATHSIG = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the uploader; see the module."""
    parser = argparse.ArgumentParser(prog="difc_ray.tracking.uploader")
    parser.add_argument("run_dir", type=Path, nargs="?")
    parser.add_argument("--parent", type=int)
    parser.add_argument("--kernel-guard", action="store_true", help="ask the kernel to end us with the parent's thread")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--patience-s", type=float, default=0.0, help="with --once: give up after so long a failure")
    parser.add_argument("--read", metavar="RUN_ID", help="print the parameters and tags of a run")
    given = parser.parse_args(arguments)
    mask_output()
    settings, uri = UploadSettings.from_environ(), os.environ[URI_VARIABLE]
    configure_client(settings)
    if given.read:
        print(json.dumps(answer(uri, given.read)), flush=True)
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):  # the run's end is ours, see `child.MEANT`
        signal.signal(number, signal.SIG_IGN)
    signal.signal(MEANT, signal.SIG_DFL)  # which `nohup` had taken away
    _end_with(given.parent, given.kernel_guard)
    with contextlib.suppress(OSError):
        os.nice(5)
    uploader = Uploader(given.run_dir, uri, settings)
    try:
        uploader.own.open(0.0 if given.once else _LOCK_WAIT_S)
    except CheckpointError as error:
        print(error, file=sys.stderr)
        return EXIT_IN_USE
    try:
        return uploader.send_once(given.patience_s) if given.once else uploader.follow()
    finally:
        uploader.close()


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


def configure_client(settings: UploadSettings) -> None:
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
        self._stream.write(masked(text))
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def mask_output() -> None:
    """Before mlflow is imported: its log messages may contain the URI as it is."""
    sys.stdout, sys.stderr = _Masked(sys.stdout), _Masked(sys.stderr)  # type: ignore[arg-type]


if __name__ == "__main__":
    raise SystemExit(main())
