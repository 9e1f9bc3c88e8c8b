"""Ray's processes: which errors tell that one is gone, why it went, how to end one, and who hears the driver's signals."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil
from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from difc_ray.errors import DifcError

LOST = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError, LocalRayletDiedError)
"""What tells that a process is gone. OutOfMemoryError is no RayActorError."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a domain did not answer."""

    index: int
    reason: str
    fatal: DifcError | None = None


def describe(error: BaseException) -> str:
    """Ray's account of a death as the end of a sentence.

    >>> describe(RuntimeError("... Worker exit type: SYSTEM_ERROR Worker exit detail: Connection lost. Common ..."))
    'died (SYSTEM_ERROR: Connection lost)'
    """
    if isinstance(error, OutOfMemoryError):
        return "was killed because the node ran out of memory"
    text = " ".join(str(error).split())
    if told := re.search(r"exit type: (\w+).*?exit detail: ([^.]+)", text):
        return f"died ({told[1]}: {told[2]})"
    return f"died ({text[:200] or type(error).__name__})"


GRACE_S = 1.0
"""How long a process that Ray was asked to end may take; killed at once, Ray would report it as an accident."""


def end_process(pid: int) -> None:
    """Sees to it that one of Ray's own worker processes on this machine ends; any other process is left alone.

    Ray must have been asked to end it. A stopped process does not hear that, and gets SIGKILL at once.
    """
    try:
        process = psutil.Process(pid)
        if not any("ray" in part for part in process.cmdline()[:2]):
            return
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.01)
        process.kill()
    except (psutil.Error, ProcessLookupError, PermissionError):
        return


_forking = threading.local()


def _leave_the_group() -> None:
    """In a process that was just forked: out of our process group, if its parent said so."""
    if getattr(_forking, "apart", False):
        os.setsid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_the_group)


@contextmanager
def in_sessions_of_their_own() -> Iterator[None]:
    """Processes that this thread forks inside do not hear what is sent to our process group.

    Schedulers, containers and `timeout` send SIGTERM to the whole group. A Ray that hears it is gone before the driver
    can stop what runs on it and write a checkpoint. That Ray ends with its driver is the kernel's affair (it asks for a
    signal at its parent's death), which holds in any session.
    """
    _forking.apart = True
    try:
        yield
    finally:
        _forking.apart = False


def search_path() -> list[str]:
    """The driver's working folder, from which plug-ins are imported."""
    return [folder for folder in (os.getcwd(), *sys.path[:1]) if folder and os.path.isdir(folder)]
