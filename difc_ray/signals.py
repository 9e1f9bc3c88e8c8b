"""SIGINT and SIGTERM as a flag that the training loop looks at; a second signal ends the process at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

HEARD = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Context in which the first SIGINT or SIGTERM asks for a clean end and the second one insists.

    Outside the main thread (a run started by a library) nothing is installed and nothing is ever interrupted.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in HEARD}
            self.install()
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def install(self) -> None:
        """Takes the signals (again: `ray.init` replaces the handler of SIGTERM)."""
        if self._before:
            for number in HEARD:
                signal.signal(number, self._hear)

    def interrupted(self) -> bool:
        """Whether a signal has arrived."""
        return self.number != 0

    @property
    def name(self) -> str:
        """The signal's name."""
        return signal.Signals(self.number).name

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number
