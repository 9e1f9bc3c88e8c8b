"""Ray's processes: which errors tell that one is gone, why it went, and how to end one for good."""

from __future__ import annotations

import os
import re
import sys
import time
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


def search_path() -> list[str]:
    """The driver's working folder, from which plug-ins are imported."""
    return [folder for folder in (os.getcwd(), *sys.path[:1]) if folder and os.path.isdir(folder)]
