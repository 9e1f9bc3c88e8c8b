"""Ray's processes: which errors tell that one is gone, why it went, how to end one, and which signals they hear."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import ray
from ray.exceptions import (
    ActorUnavailableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from difc_ray.files import process_alive

LOST = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError, LocalRayletDiedError)
"""What tells that a process is gone. OutOfMemoryError is no RayActorError."""


def describe(error: BaseException) -> str:
    """Ray's account of a death as the end of a sentence.

    >>> describe(RuntimeError("... Worker exit type: SYSTEM_ERROR Worker exit detail: Connection lost. Common ..."))
    'died (SYSTEM_ERROR: Connection lost)'
    """
    if isinstance(error, OutOfMemoryError):
        return "was killed because the node ran out of memory"
    text = " ".join(str(error).split())
    if isinstance(error, ActorUnavailableError):
        return "is out of reach"
    if "node has died" in text or "node was preempted" in text:
        return "died with its node"
    if account := re.search(r"exit type: (\w+).*?exit detail: ([^.]+)", text):
        return f"died ({account[1]}: {account[2]})"
    return f"died ({text[:200] or type(error).__name__})"


GRACE_S = 1.0
"""How long a process that Ray was asked to end may take; killed at once, Ray would report it as an accident."""


def end_process(pid: int, started: float) -> None:
    """Sees to it that one of Ray's worker processes on this machine ends; another one of its number is left alone.

    Ray must have been asked to end it. A stopped process does not hear that, and gets SIGKILL at once.

    Args:
        pid: its number, which may be another process's by now, or that of one in another container.
        started: when it began, as it said itself (:func:`difc_ray.files.start_of_this`).
    """
    try:
        process = psutil.Process(pid)
        if not process_alive(pid, started, socket.gethostname()):
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


HEAD, NODE = "gcs_server", "raylet"
"""The process without which a cluster is none, and that of a machine in it."""

LOOK_S, ANSWER_S = 0.5, 2.0
"""Seconds between two looks at the head, and how long it may take to accept a connection on this machine."""


class Head:
    """The head of a Ray that this process has started.

    Whoever calls a head that is gone waits for a minute, inside Ray, and is then aborted by it. One that was told to
    end may stay for long as a process that answers nobody, so its port is looked at as well.

    Args:
        process: the head.
        address: where it listens, ``HOST:PORT``.
    """

    def __init__(self, process: psutil.Process, address: str) -> None:
        self.process, self.address = process, address
        self._looked, self._gone = 0.0, False

    @classmethod
    def of_ours(cls) -> Head | None:
        """None if this process has started no Ray, or has joined another one's."""
        try:
            head = next((child for child in psutil.Process().children() if child.name() == HEAD), None)
        except psutil.Error:
            return None
        return None if head is None else cls(head, str(ray.get_runtime_context().gcs_address))

    def gone(self) -> bool:
        """Whether it has ended, or listens no more; looks twice a second at most."""
        now = time.monotonic()
        if not self._gone and now - self._looked >= LOOK_S:
            self._looked, self._gone = now, self._ended() or not self._listens()
        return self._gone

    def end(self) -> None:
        """Ends what is left of it and of its node on this machine, which were told to and take their time."""
        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if child.name() in (HEAD, NODE):
                    child.kill()

    def _ended(self) -> bool:
        try:
            return not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE
        except psutil.Error:
            return True

    def _listens(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
            return True
        except ConnectionRefusedError:
            return False
        except (OSError, ValueError):  # slow, or an address of another form: no proof of anything
            return True


def search_path() -> list[str]:
    """The driver's working folder, from which plug-ins are imported."""
    return [folder for folder in (os.getcwd(), *sys.path[:1]) if folder and os.path.isdir(folder)]
