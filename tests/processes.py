"""Processes: what tests have started, and a look at those that may end at any moment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil

QUICK_PROGRAMS = ("bash", "git", "grep", "ldconfig", "sha256sum", "true", "uname")
"""What a test may start without the mark `process`."""

STARTED: list[str] = []
"""Commands of processes that this one has started through `subprocess`, as long as nobody clears it."""


def remember_start(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook that fills :data:`STARTED`."""
    if event == "subprocess.Popen" and Path(os.fsdecode(arguments[0])).name not in QUICK_PROGRAMS:
        STARTED.append(f"{arguments[0]}: {arguments[1]}")


def children_of_ours() -> list[psutil.Process]:
    """Processes that this one has started and that somebody has yet to wait for."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none: psutil would look at every process of the machine to say so
        return []
    return psutil.Process().children()


def command_of(process: psutil.Process) -> list[str]:
    """The words of its command line; empty: it has ended, or has none yet."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def alive(pid: int) -> bool:
    """Whether a process runs (or is stopped); one that nobody has waited for yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
