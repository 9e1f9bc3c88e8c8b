"""Batches of another domain at every step, made ahead like those of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from difc_ray.data.batch import Batch, RawBatch
from difc_ray.data.loader import Loader


class PartnerLoader(Loader):
    """The training batches of a domain that changes from step to step, each as its own loader would make it.

    Args:
        like: whose settings it has: batch size, part, processes and device.
        names: the domains that it may be asked for.
        chosen: step -> one of them; a pure function.
        open_loader: the loader of a domain; called once for each, when it is first needed. It starts no processes.
    """

    def __init__(
        self, like: Loader, names: Sequence[str], chosen: Callable[[int], str], open_loader: Callable[[str], Loader]
    ) -> None:
        super().__init__(
            like.domain, like.seed, like.batch_size, like.steps, processes=like.processes, ahead=like.ahead,
            device=like.device, part=like.part,
        )  # fmt: skip
        self._names, self._chosen, self._of = names, chosen, cache(open_loader)

    def _make(self, step: int) -> RawBatch:
        return self._of(self._chosen(step))._make(step)

    def _finished(self, drawn: RawBatch, step: int) -> Batch:
        return self._of(self._chosen(step)).domain.finished(drawn, self.device)

    def _prepare(self) -> None:
        for name in self._names:  # before the processes begin, which would each load them
            self._of(name)
