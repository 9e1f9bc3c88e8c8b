"""Workers that are alive and slow: who holds up the others, by how much, and whether it waits for its data.

A slow worker is named and never dropped: a step has the answers of all domains.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

WINDOW = 20
"""Steps that are compared; one that is slow by accident does not count."""

FACTOR = 3.0
"""A worker is slow whose step takes more than this many times that of the others."""

EXCESS_S = 0.01
"""And this many seconds more: below, nobody waits for it."""


class Stragglers:
    """Compares the workers' own seconds, step by step.

    The time of a worker is the median over its last :data:`WINDOW` steps; it is compared with the median over all other
    workers. Who is slow is named once, and again if it has caught up in between.

    Args:
        names: the workers.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._seconds: list[deque[float]] = [deque(maxlen=WINDOW) for _ in names]
        self._loading: list[deque[float]] = [deque(maxlen=WINDOW) for _ in names]
        self._slow: set[int] = set()
        self.begin()

    def begin(self) -> None:
        """A step begins; what an earlier attempt at it took is forgotten."""
        self._own = [0.0] * len(self.names)
        self._waited = [0.0] * len(self.names)

    def add(self, replies: Mapping[int, Any]) -> None:
        """Answers in this step, by the number of the worker; what says nothing of its time does not count."""
        for index, reply in replies.items():
            answer = getattr(reply, "rows", reply)  # rows may have come with something else
            self._own[index] += getattr(answer, "compute_s", 0.0)
            self._waited[index] = max(self._waited[index], getattr(answer, "loading_s", 0.0))

    def end(self) -> dict[int, str]:
        """The step has ended: the numbers of those who are found to be slow now, each with a sentence."""
        for index, (own, waited) in enumerate(zip(self._own, self._waited, strict=True)):
            self._seconds[index].append(own)
            self._loading[index].append(waited)
        if len(self.names) < 2 or len(self._seconds[0]) < WINDOW:
            return {}
        usual = [median(seconds) for seconds in self._seconds]
        sentences = {}
        for index, own in enumerate(usual):
            others = median(usual[:index] + usual[index + 1 :])
            if own <= FACTOR * others or own - others <= EXCESS_S:
                self._slow.discard(index)
            elif index not in self._slow:
                self._slow.add(index)
                sentences[index] = self._sentence(index, own, others)
        return sentences

    def _sentence(self, index: int, own: float, others: float) -> str:
        waiting = sum(self._loading[index]) / max(sum(self._seconds[index]), 1e-9)
        factor = f"{own / others:.1f}x" if others > 0 else "far"
        return (
            f"domain `{self.names[index]}` is {factor} slower than the others over {WINDOW} steps ({1e3 * own:.0f} ms "
            f"against {1e3 * others:.0f} ms a step, {waiting:.0%} of it waiting for data); all wait for it"
        )
