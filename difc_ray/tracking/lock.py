"""One uploader per run folder."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from difc_ray.errors import CheckpointError

try:
    import fcntl
except ImportError:  # not on Windows; there two starts within the same millisecond are not told apart
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def exclusive(path: Path, wait_s: float) -> Iterator[None]:
    """Hold the operating system's lock on a file, waiting at most ``wait_s`` seconds for it, then go on without.

    Args:
        path: the file, created if it does not exist.
        wait_s: seconds.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    deadline = time.monotonic() + wait_s
    try:
        while fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
    finally:
        os.close(handle)  # releases the lock


class FolderLock:
    """Says in a file which process uploads a run; one whose process is gone counts as free.

    Args:
        path: the lock file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def acquire(self, wait_s: float = 0.0) -> None:
        """Take the lock.

        Args:
            wait_s: how long to wait for its holder to end, in seconds.

        Raises:
            CheckpointError: another live process has it.
        """
        deadline = time.monotonic() + wait_s
        while True:
            with exclusive(self.path, 5.0):
                holder = self._holder()
                if holder is None or not _alive(holder):
                    self.path.write_text(json.dumps(_myself()), encoding="utf-8")
                    return
            if time.monotonic() >= deadline:
                raise CheckpointError(
                    f"the records of a run must be sent by one process at a time, got process {holder['pid']} on "
                    f"`{holder['host']}` at work (`{self.path.parent.parent}`). Wait for it to end, or stop that run "
                    f"first (if it is surely gone, delete `{self.path}`)."
                )
            time.sleep(0.1)

    def release(self) -> None:
        """Give the lock back if this process has it."""
        with exclusive(self.path, 5.0):
            if self._holder() == _myself():
                self.path.write_text("", encoding="utf-8")  # not unlinked: another may have it open already

    def _holder(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.path.read_text("utf-8"))
            return {"pid": int(found["pid"]), "started": float(found["started"]), "host": str(found["host"])}
        except (OSError, ValueError, KeyError, TypeError):
            return None


def process_alive(pid: int, started: float | None, host: str) -> bool:
    """Whether that process runs; one on another host counts as running, because nobody here can tell.

    Args:
        pid: its number.
        started: its start time in seconds since 1970, None to ask for the number only.
        host: its host name.
    """
    if host != socket.gethostname():
        return True
    try:
        process = psutil.Process(pid)
        same = started is None or abs(process.create_time() - started) < 1.0
        return bool(same and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _alive(holder: dict[str, Any]) -> bool:
    return process_alive(holder["pid"], holder["started"], holder["host"])


def _myself() -> dict[str, Any]:
    return {"pid": os.getpid(), "started": psutil.Process().create_time(), "host": socket.gethostname()}
