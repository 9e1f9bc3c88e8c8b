"""One driver per run folder."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from difc_ray.errors import CheckpointError

LOCK = ".lock"

_UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems without locks answer."""


class RunLock:
    """A lock on a run folder, held by the process that trains in it; a context manager.

    The file ``.lock`` names the holder: process id, host, start time. What excludes others is the operating
    system's lock on that file, which ends with the process however it dies; so a file left by a killed one is
    taken over at once. Processes that the holder forks, such as those of a loader, have no part in it. On a file
    system without locks the named process is looked up instead; if it is on another host nobody can tell, and the
    lock is refused.

    Args:
        run_dir: the run folder; must exist.
    """

    def __init__(self, run_dir: Path) -> None:
        self.path = run_dir / LOCK
        self._handle: int | None = None

    def acquire(self) -> None:
        """Takes the lock.

        Raises:
            CheckpointError: another process has it, or the folder cannot be written.
        """
        while self._handle is None:
            try:
                handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
                if self._claim(handle):
                    self._handle = handle
                    _held.add(self)
            except OSError as error:
                raise CheckpointError(
                    f"a run folder must be writable, got {error.strerror} (`{self.path}`). Choose another `output`."
                ) from error

    def _claim(self, handle: int) -> bool:
        """Locks the open file and writes our name into it, or closes it; False if it was removed meanwhile."""
        claimed = False
        try:
            locked = _flock(handle)
            holder = _read(handle)
            if locked is False or (locked is None and holder is not None and _may_live(holder)):
                raise self._in_use(holder, certain=locked is False)
            if _same_file(handle, self.path):  # its holder may have removed it between our open and our lock
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(_myself()).encode(), 0)
                os.fsync(handle)
                claimed = True
            return claimed
        finally:
            if not claimed:
                os.close(handle)

    def release(self) -> None:
        """Gives the lock back and removes the file; without effect if it is not held."""
        if self._handle is not None:
            if _same_file(self._handle, self.path):
                with contextlib.suppress(OSError):
                    self.path.unlink()
            self._let_go()

    def _let_go(self) -> None:
        """Closes the file. In a forked process that does not unlock it: the holder has it open as well."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        _held.discard(self)

    def _in_use(self, holder: dict[str, Any] | None, *, certain: bool) -> CheckpointError:
        who = f"pid {holder['pid']} on host {holder['host']} since {holder['since']}" if holder else "another process"
        remedy = "" if certain else f" If it is surely gone, delete `{self.path}`."
        return CheckpointError(
            f"one process at a time may train in a run folder, got one in use by {who} (`{self.path.parent}`). "
            f"Stop that one or choose another `name`.{remedy}"
        )

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


_held: set[RunLock] = set()
"""The locks of this process."""


def _leave_to_the_parent() -> None:
    for lock in [*_held]:
        lock._let_go()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def _flock(handle: int) -> bool | None:
    """The operating system's lock: True if we have it now, False if another has it, None if there is no such thing."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise


def _myself() -> dict[str, Any]:
    """What we write into the lock file."""
    started, since = _start_time(os.getpid()), time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": started, "since": since}


def _read(handle: int) -> dict[str, Any] | None:
    """The holder that the file names; None if it names none."""
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return {
            "pid": int(found["pid"]),
            "host": str(found["host"]),
            "started": float(found["started"]),
            "since": str(found["since"]),
        }
    except (ValueError, KeyError, TypeError):
        return None


def _same_file(handle: int, path: Path) -> bool:
    """Whether the open file is still the one that has the name."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(handle)
    return (held.st_dev, held.st_ino) == (named.st_dev, named.st_ino)


def _may_live(holder: dict[str, Any]) -> bool:
    """Whether the holder runs, or runs on another host where we cannot look."""
    if holder["host"] != socket.gethostname():
        return True
    started = _start_time(holder["pid"])
    return started is not None and abs(started - holder["started"]) < 1.0


def _start_time(pid: int) -> float | None:
    """Start of a process in seconds since the epoch; None if there is none of that number."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None
