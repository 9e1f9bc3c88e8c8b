"""Batches of one domain made ahead by other processes, the same whoever makes them.

A batch is a function of the step (:meth:`Domain.batch`), so loader processes need not agree on anything, a step that is
repeated asks again, and a process that dies is replaced without a trace. What waits to be used is bounded:
`loader.processes` × `loader.ahead` batches, as bytes where the dataset has pictures.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
import torch
from jaxtyping import Int

from difc_ray.data.ahead import Ahead
from difc_ray.data.augmentation import Augmentation
from difc_ray.data.batch import Batch, RawBatch
from difc_ray.data.domain import Domain, EvaluationSplit
from difc_ray.data.order import Order
from difc_ray.data.pixels import PixelDomain
from difc_ray.errors import DataError, DifcError

log = logging.getLogger(__name__)

MAX_DEATHS: Final = 3
"""How often in a run the loader processes of a domain are started again after one has died."""

_SHARED: Final = "/dev/shm"
_SHARE_OF_SHARED: Final = 0.5


class Loader:
    """The training batches of a domain, and the examples of any domain for evaluation.

    Args:
        domain: the domain.
        seed: seed of the run.
        batch_size: examples per batch.
        steps: length of the run: no batch is made for a step after it.
        order: of the examples; None: the natural one.
        augmentation: of the pictures; None: none.
        processes: loader processes; 0: batches are made when they are asked for, in this process.
        ahead: batches that each process makes in advance, >= 1.
        device: where batches go; None: they stay.
        part: the places of every batch that are made; None: all.
    """

    def __init__(
        self, domain: Domain, seed: int, batch_size: int, steps: int, *, order: Order | None = None,
        augmentation: Augmentation | None = None, processes: int = 0, ahead: int = 2,
        device: torch.device | None = None, part: slice | None = None,
    ) -> None:  # fmt: skip
        self.part = part or slice(0, batch_size)
        self.domain, self.seed, self.batch_size, self.steps = domain, seed, batch_size, steps
        self.order, self.augmentation, self.processes, self.ahead = order, augmentation, processes, ahead
        self.device = device if device is not None and device.type != "cpu" else None
        self.stalled_s = 0.0
        self._ahead: Ahead | None = None
        self._bytes = 1 if isinstance(domain, PixelDomain) else 4
        self._next, self._deaths = -1, 0
        self._made = self.part.stop - self.part.start

    def batch(self, step: int) -> Batch:
        """The batch of a step; :attr:`stalled_s` grows by the time that the caller has waited.

        Raises:
            DataError: an example cannot be used, or loader processes die again and again.
        """
        started = time.perf_counter()
        batch = self._finished(self._drawn(step), step)
        self.stalled_s += time.perf_counter() - started
        return batch

    def evaluation(self, domain: Domain, split: EvaluationSplit, batch_size: int = 256) -> Iterator[Batch]:
        """The examples of a split of any domain in order of position, not augmented.

        Raises:
            DataError: as :meth:`batch`.
        """
        if self.processes == 0 or not domain.reads_files:
            for batch in domain.evaluation_batches(split, batch_size):
                yield batch if self.device is None else _to(batch, self.device)
            return
        yield from self.examples(domain, domain.split_indices(split), batch_size)

    def examples(self, domain: Domain, indices: Int[np.ndarray, " _"], batch_size: int = 256) -> Iterator[Batch]:
        """Examples of any domain at given positions, in their order, not augmented.

        Raises:
            DataError: as :meth:`batch`.
        """
        pieces = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        if self.processes == 0 or not domain.reads_files:
            for piece in pieces:
                yield domain.finished(domain.drawn(piece), self.device)
            return
        number, ahead = 0, None
        try:
            while number < len(pieces):
                if ahead is None:
                    ahead = self._start(lambda at: domain.drawn(pieces[at]), number, len(pieces), batch_size)
                try:
                    drawn = ahead.next()
                except RuntimeError as error:
                    self._died(error)
                    ahead.close()
                    ahead = None
                    continue
                number += 1
                yield domain.finished(drawn, self.device)
        finally:
            if ahead is not None:
                ahead.close()

    def pids(self) -> list[int]:
        """The loader processes of training, if they have been started."""
        return self._ahead.pids() if self._ahead is not None else []

    def close(self) -> None:
        """Ends the loader processes."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

    def _drawn(self, step: int) -> RawBatch:
        if self.processes == 0 or step >= self.steps:
            return self._make(step)
        while True:
            if self._ahead is None or step != self._next:
                self.close()
                self._prepare()
                self._ahead, self._next = self._start(self._make, step, self.steps, self._made), step
            try:
                drawn = self._ahead.next()
            except RuntimeError as error:
                self._died(error)
                self.close()
                continue
            except DifcError:
                self.close()
                raise
            self._next += 1
            return drawn

    def _make(self, step: int) -> RawBatch:
        return self.domain.draw(self.seed, step, self.batch_size, self.order, self.augmentation, self.part)

    def _finished(self, drawn: RawBatch, step: int) -> Batch:
        return self.domain.finished(drawn, self.device)

    def _prepare(self) -> None:
        """Whatever processes of training are to find when they begin."""

    def _start(self, make: Callable[[int], RawBatch], first: int, end: int, size: int) -> Ahead:
        self._check_shared_memory(size)
        pin = self.device is not None and self.device.type == "cuda"
        return Ahead(make, first, end, self.processes, self.ahead, pin=pin)

    def _died(self, error: RuntimeError) -> None:
        """Counts the death of a loader process.

        Raises:
            DataError: it was one too many.
        """
        self._deaths += 1
        words = " ".join(str(error).split())[:200]
        if self._deaths > MAX_DEATHS:
            raise DataError(
                f"loader processes of domain `{self.domain.name}` must stay alive, got {self._deaths} deaths, the "
                f"last: {words} (loader). If memory ran out, lower `loader.processes`, `loader.ahead` or "
                "`batch_size`; `loader.processes=0` loads without them."
            ) from error
        log.warning("domain `%s`: loader processes are started again: %s", self.domain.name, words)

    def _check_shared_memory(self, size: int) -> None:
        """Whether the batches that wait fit into the memory that processes share.

        Raises:
            DataError: they do not; without this, the first write beyond it would end a process by a bus error.
        """
        if not os.path.isdir(_SHARED):
            return
        channels, height, width = self.domain.image_shape
        wanted = self.processes * self.ahead * size * channels * height * width * self._bytes
        free = shutil.disk_usage(_SHARED).free
        if wanted > _SHARE_OF_SHARED * free:
            raise DataError(
                f"{self.processes} × {self.ahead} batches of domain `{self.domain.name}` must fit into half of the "
                f"free shared memory, got {wanted / 2**20:.0f} MiB against {free / 2**20:.0f} MiB free in {_SHARED} "
                "(loader). Lower `loader.processes` or `loader.ahead`, give the container more "
                "(`--shm-size`), or write `loader.processes=0`."
            )


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(images=batch.images.to(device), labels=batch.labels.to(device), indices=batch.indices)
