"""Looking at processes that may end at any moment."""

from __future__ import annotations

import psutil


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
