"""SIGINT, SIGTERM and SIGHUP: an exception before the run begins, then a flag that the training loop looks at.

A second signal ends the process at once.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, Protocol, runtime_checkable

from difc_ray.errors import Interrupted

HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heard() -> tuple[int, ...]:
    """Signals that end a run cleanly: SIGHUP, of a terminal that is closed, only if `nohup` does not keep it away."""
    return tuple(n for n in HEARD if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN)


@runtime_checkable
class Interruption(Protocol):
    """What may stop a run from outside: signals to its process, or the end of its sweep."""

    number: int
    """The signal's, for the exit code."""

    @property
    def name(self) -> str:
        """What stopped it, in a word."""

    def interrupted(self) -> bool:
        """Whether the run is to stop."""

    def before_the_run(self) -> AbstractContextManager[None]:
        """Around what comes before anything is written."""


class Signals:
    """Context in which the first signal asks for a clean end and the second one insists.

    Outside the main thread (a run started by a library) nothing is installed and nothing is ever interrupted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in heard()}
            self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    @contextmanager
    def before_the_run(self) -> Iterator[None]:
        """Around what may take long before anything is written: the first signal ends it there and then.

        Raises:
            Interrupted: a signal came.
        """
        self._at_once = True
        try:
            yield
        except SystemExit as leave:  # `ray.init` puts such a handler of SIGTERM in place of ours
            self.number = signal.SIGTERM
            raise self._nothing_written() from leave
        finally:
            self._at_once = False
            self.install()
        if self.number:  # somebody swallowed the exception
            raise self._nothing_written()

    def install(self) -> None:
        """Takes the signals."""
        if self._before:
            for number in self._before:
                signal.signal(number, self._hear)

    def interrupted(self) -> bool:
        """Whether a signal has arrived."""
        return self.number != 0

    @property
    def name(self) -> str:
        """The signal's name; empty while none has come."""
        return signal.Signals(self.number).name if self.number else ""

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
        if self._at_once:
            raise self._nothing_written()

    def _nothing_written(self) -> Interrupted:
        return Interrupted(f"Stopped by {self.name} before the run began; nothing was written.", self.number)
