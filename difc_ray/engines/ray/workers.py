"""What every transport asks its workers in the same way, and how answers of workers become those of domains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray

from difc_ray.engines.ray.fault_tolerance import Supervision
from difc_ray.engines.ray.rpc import Question
from difc_ray.objectives.losses import Confusion
from difc_ray.step.worker import ModelState

Answer = TypeVar("Answer")
Told = TypeVar("Told")


class Workers(Supervision):
    """The source domains as they are asked outside a step; a worker that dies meanwhile is replaced."""

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """How sure the model is of the target's images, of which every domain looks at a share.

        A worker that dies is replaced, and its share is looked at again.
        """
        self._step, self._tokens = step, []
        reference, shards = ray.put(state), len(self.members)
        asked = [Question(method="confusion", arguments=(reference, shard, shards)) for shard in range(shards)]
        found: list[Confusion] = self._ask_some(list(range(shards)), asked)
        return found

    def evaluate(self, reference: Any, jobs: Sequence[tuple[str, str]]) -> list[Any]:
        """Metrics of a state (an object reference) for (domain, split) pairs, in their order.

        A source is evaluated by its own workers in turn, another domain by the first one. A worker that dies is
        replaced.
        """
        self._tokens = []
        found: list[Any] = [None] * len(jobs)
        queues: list[list[int]] = [[] for _ in self.members]
        for position, (domain, _) in enumerate(jobs):
            own = [index for index, member in enumerate(self.members) if member.domain == domain] or [0]
            queues[min(own, key=lambda index: len(queues[index]))].append(position)
        while any(queues):
            turn = [queue.pop(0) if queue else None for queue in queues]
            busy = [(index, position) for index, position in enumerate(turn) if position is not None]
            asked = [Question(method="evaluate", arguments=(reference, *jobs[position])) for _, position in busy]
            replies = self._ask_some([index for index, _ in busy], asked)
            for (_, position), reply in zip(busy, replies, strict=True):
                found[position] = reply
        return found

    def by_domain(self, replies: Sequence[Answer], merge: Callable[[Sequence[Answer]], Answer]) -> list[Answer]:
        """The answers of all workers as those of the domains, in the order of the configuration."""
        parts: dict[str, list[Answer]] = {name: [] for name in self.config.sources}
        for member, reply in zip(self.members, replies, strict=True):
            parts[member.domain].append(reply)
        return [merge(own) for own in parts.values()]

    def to_members(self, told: Sequence[Told]) -> list[Told]:
        """What the domains are told, for each of their workers."""
        by_name = dict(zip(self.config.sources, told, strict=True))
        return [by_name[member.domain] for member in self.members]
