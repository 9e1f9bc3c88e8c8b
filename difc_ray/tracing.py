"""What a process was busy with, and from when to when: named spans of time on a clock that all processes share.

Every process reads its own monotonic clock and sets it once against the time of day. On one machine all monotonic
clocks are one, and what is left is what the time of day was corrected by between the starts of two processes: usually
microseconds. Between machines spans are as far off as the machines' times of day, under NTP often some milliseconds.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import TracebackType

WARM_UP = 3
"""Steps before the first that is traced, where the run is long enough: memory and caches have settled then."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Whose time it was.

    Args:
        actor: `driver`, `coordinator`, `worker DOMAIN`.
        host: its machine.
        process: its process there.
    """

    actor: str
    host: str
    process: int


@dataclass(frozen=True, kw_only=True)
class Span:
    """What an actor was busy with for a time.

    Args:
        origin: who.
        name: what.
        start_ns, end_ns: nanoseconds of the common clock.
        step: the step that it belongs to.
        attempt: how often workers were replaced before.
    """

    origin: Origin
    name: str
    start_ns: int
    end_ns: int
    step: int
    attempt: int


class Recorder:
    """Takes the spans of one actor, while it is told to; otherwise asking it costs a tenth of a microsecond.

    Args:
        actor: what its spans are to be called by.
        settle: waits until everything that was begun is done; None: nothing is begun that one would wait for.

    Attributes:
        on: whether it takes any.
    """

    def __init__(self, actor: str, settle: Callable[[], None] | None = None) -> None:
        self.origin = Origin(actor=actor, host=socket.gethostname(), process=os.getpid())
        self.settle = settle
        self.on = False
        self.step = self.attempt = 0
        self._offset_ns = _time_of_day_less_monotonic_ns()
        self._taken: list[Span] = []

    def follow(self, step: int, attempt: int = 0, *, on: bool) -> None:
        """From here on, spans are those of a step.

        Args:
            step: which.
            attempt: how often workers were replaced before.
            on: whether they are taken.
        """
        self.step, self.attempt, self.on = step, attempt, on

    def span(self, name: str) -> AbstractContextManager[object]:
        """Around what is to be a span; one within another lies within it in time."""
        return _Open(self, name) if self.on else _NOTHING

    def take(self) -> tuple[Span, ...]:
        """The spans that have ended since the last call."""
        if not self._taken:
            return ()
        taken, self._taken = tuple(self._taken), []
        return taken

    def now_ns(self) -> int:
        """The common clock, after everything that was begun is done."""
        if self.settle is not None:
            self.settle()
        return time.monotonic_ns() + self._offset_ns

    def add(self, name: str, start_ns: int) -> None:
        """A span that ends here and now."""
        end_ns, step, attempt = self.now_ns(), self.step, self.attempt
        self._taken.append(
            Span(origin=self.origin, name=name, start_ns=start_ns, end_ns=end_ns, step=step, attempt=attempt)
        )


def _time_of_day_less_monotonic_ns() -> int:
    """From the reading of both clocks that was the least interrupted."""
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(5)]
    before, day, after = min(readings, key=lambda reading: reading[2] - reading[0])
    return day - (before + after) // 2


_NOTHING = nullcontext()


class _Open:
    """A span that has not ended."""

    __slots__ = ("name", "recorder", "start_ns")

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder, self.name = recorder, name

    def __enter__(self) -> None:
        self.start_ns = self.recorder.now_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.recorder.add(self.name, self.start_ns)


def traced_steps(wanted: int | None, first: int, steps: int) -> range:
    """The steps that are traced: so many after the warm-up, which is cut short where they would not fit.

    Args:
        wanted: how many; None: none.
        first: the step that the run begins or goes on with.
        steps: length of the run.

    >>> traced_steps(5, 0, 300), traced_steps(5, 0, 6), traced_steps(5, 298, 300), traced_steps(None, 0, 300)
    (range(3, 8), range(1, 6), range(298, 300), range(0, 0))
    """
    if wanted is None:
        return range(0)
    begin = first + max(0, min(WARM_UP, steps - first - wanted))
    return range(begin, max(begin, min(steps, begin + wanted)))
