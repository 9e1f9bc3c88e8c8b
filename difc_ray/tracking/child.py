"""Starting, watching and ending the uploader from the process that trains."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.settings import URI_VARIABLE, UploadSettings

EXIT_IN_USE = 3
EXIT_UNAVAILABLE = 4
_END_S = 2.0
_KILLED_S = 30.0

MEANT = signal.SIGHUP
"""The signal that ends the uploader. SIGINT and SIGTERM it ignores: schedulers, Ray's jobs among them, send those to
all processes of a run, while the last records are still to be sent."""


class UploaderProcess:
    """The child that uploads a run.

    Args:
        folder: the run's tracking files.
        uri: the tracking URI, with credentials.
        settings: pace and patience.
    """

    def __init__(self, folder: TrackingFolder, uri: str, settings: UploadSettings) -> None:
        self._folder, self._uri, self._settings = folder, uri, settings
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0

    @property
    def pid(self) -> int | None:
        """Its process number while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def started(self) -> bool:
        """Whether it was ever started."""
        return self._starts > 0

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs and before it was started."""
        return None if self._process is None else self._process.poll()

    @property
    def may_start(self) -> bool:
        """Whether it does not run, and has not crashed too often."""
        return self.pid is None and self._starts <= self._settings.max_restarts

    def start(self) -> None:
        """Start it; if that fails, training goes on and the journal is sent later."""
        self._starts += 1
        with contextlib.suppress(OSError):  # Ctrl-C in the terminal is not meant for it
            self._process = launch(self._folder, self._uri, self._settings, own_session=True)

    def wait(self, timeout_s: float) -> bool:
        """Whether it ended within so many seconds."""
        if self._process is None:
            return True
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def end(self) -> None:
        """End it, gently first; what it did not send is still in the journal."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(MEANT)
            if not self.wait(_END_S):
                self._process.kill()
                self.wait(_KILLED_S)  # even a killed one first ends what it has asked of a disk


def launch(
    folder: TrackingFolder, uri: str, settings: UploadSettings, *options: str, own_session: bool = False
) -> subprocess.Popen[bytes]:
    """Starts the uploader as a child: what it imports, logs and sets stays out of this process.

    Args:
        folder: the run's files; the uploader's log is among them.
        uri: the tracking URI, with credentials.
        settings: pace and patience.
        options: more arguments of its command line.
        own_session: whether signals of the terminal do not reach it.

    Raises:
        OSError: it cannot be started.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    with folder.log.open("ab") as log:
        return subprocess.Popen(
            uploader_command(folder.run_dir, *options), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            env=uploader_environ(uri, settings), start_new_session=own_session,
        )  # fmt: skip


def uploader_command(run_dir: Path, *options: str) -> list[str]:
    """The command line of the uploader; it has no secrets, everybody can read it."""
    guard = ["--kernel-guard"] if threading.current_thread() is threading.main_thread() else []
    module = "difc_ray.tracking.uploader"
    return [sys.executable, "-m", module, str(run_dir.absolute()), "--parent", str(os.getpid()), *guard, *options]


def uploader_environ(uri: str, settings: UploadSettings) -> dict[str, str]:
    """Our environment, the URI, and the import path of this process, so that the child finds the same plug-ins."""
    search_path = [str(Path(__file__).absolute().parents[2]), *(str(Path(entry).absolute()) for entry in sys.path)]
    return {
        **os.environ,
        **settings.to_environ(),
        URI_VARIABLE: uri,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(search_path)),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
