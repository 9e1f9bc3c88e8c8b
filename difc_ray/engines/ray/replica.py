"""A worker that holds θ and the optimizer itself, and its part of the exchange: shards of rows, Gram, direction.

Shape suffixes: W workers, P parameters, N raw rows (K or 2K), S a shard, C blocks of it.

A step in two phases: *share* and *combine* end with the whole direction in the memory of every worker; only when the
coordinator has heard that of all, *commit* lets each take the optimizer's step. Until then θ is what it was, so that
workers which survive a failure never differ by a step.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from difc_ray.actor_logs import reports_errors
from difc_ray.config import Config
from difc_ray.engines.ray.planning import members_of
from difc_ray.engines.ray.process_group import Group, GroupBroken, Rendezvous, shards_of
from difc_ray.engines.ray.worker import DomainWorker, WorkerInfo, assigned_device
from difc_ray.objectives import Vectors
from difc_ray.step.coordinator import Update
from difc_ray.step.division import part_of
from difc_ray.step.optimizer import FlatOptimizer
from difc_ray.step.worker import ModelState, Rows, Statistics, Token, bad_rows
from difc_ray.tracing import Span
from difc_ray.vectors import combine, gram_blocks


@dataclass(frozen=True, kw_only=True)
class ReplicaArrays:
    """θ and the optimizer's tensors as they travel: (P,) float32 and by name."""

    theta_P: np.ndarray
    optimizer: dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What a worker knows after the shards of all rows have met.

    Args:
        rows: its answer, without the rows.
        blocks_CNN: inner products of the rows within each block of its shard.
        sent_bytes: bytes that it has sent to other workers for this.
        spans: what the time after the rows was spent on, if the step is traced.
    """

    rows: Rows
    blocks_CNN: np.ndarray
    sent_bytes: int
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Moved:
    """A worker has the whole direction; bytes that it has sent to other workers for this, and traced times."""

    token: Token
    sent_bytes: int
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Broken:
    """A worker could not finish an exchange, since another is gone or does not answer."""

    token: Token | None
    reason: str


@reports_errors
class ReplicaWorker(DomainWorker):
    """A domain worker of the transport `collective`.

    Args:
        threads: threads of this process.
        search_path: folders of the driver from which plug-ins may come.
        backend: `gloo` or `nccl`.
    """

    def __init__(self, threads: int, search_path: list[str], backend: str) -> None:
        super().__init__(threads, search_path)
        self.backend = backend
        self.group: Group | None = None
        self._received = torch.empty(0)
        self._shards: list[slice] = []
        self._prepared: Update | None = None

    def rows_at(self) -> torch.device:
        """The GPU for NCCL, which moves nothing else; memory of the CPU for gloo."""
        return assigned_device() if self.backend == "nccl" else torch.device("cpu")

    def start(self, config: Config, domain: str, part: int = 0) -> WorkerInfo:
        """As :meth:`DomainWorker.start`; an earlier run's group is left."""
        self.leave()
        info = super().start(config, domain, part)
        self.members = members_of(config)
        self._prepared = None
        return info

    def hold(self, arrays: ReplicaArrays) -> None:
        """Takes over θ and the optimizer, of the coordinator or of another worker."""
        device = self.step.rows_RP.device
        self.theta_P = torch.tensor(arrays.theta_P, device=device)
        tensors = {name: torch.tensor(value, device=device) for name, value in arrays.optimizer.items()}
        self.optimizer = FlatOptimizer(
            self.config.optimizer, self.config.steps, self.theta_P, tensors, self.step.layout
        )
        self.step.theta_P = self.theta_P
        self._prepared = None

    def replica(self) -> ReplicaArrays:
        """θ and the optimizer as they are after the last commit."""
        tensors = {name: value.cpu().numpy().copy() for name, value in self.optimizer.tensors().items()}
        return ReplicaArrays(theta_P=self.theta_P.cpu().numpy().copy(), optimizer=tensors)

    def digest(self) -> str:
        """What tells θ and the optimizer from others."""
        arrays, digest = self.replica(), hashlib.sha256()
        for tensor in (arrays.theta_P, *(arrays.optimizer[name] for name in sorted(arrays.optimizer))):
            digest.update(tensor.tobytes())
        return digest.hexdigest()

    def join(self, rendezvous: Rendezvous, rank: int, address: str) -> Broken | None:
        """Becomes a member of a group, after leaving an earlier one; returns why that did not succeed."""
        self.leave()
        try:
            self.group = Group(rendezvous, rank, address)
        except GroupBroken as error:
            return Broken(token=None, reason=str(error))
        return None

    def leave(self) -> None:
        """Leaves the group; whoever waits for this worker in an exchange hears of it."""
        if self.group is not None:
            self.group.close()
            self.group = None

    def statistics(self, token: Token, state: ModelState) -> Statistics:
        """First answer of a step; what an earlier attempt prepared is forgotten."""
        self._prepared = None
        return super().statistics(token, state)

    def share(self, token: Token, cotangent: Vectors) -> Shared | Broken:
        """The rows of the step in hand, and the inner products of everybody's rows on the own shard."""
        rows = self.step.rows(token, cotangent)
        group, recorder = self._member(), self.step.recorder
        before = group.sent_bytes
        try:
            with recorder.span("scatter rows"):
                self._scatter(group)
        except GroupBroken as error:
            return Broken(token=token, reason=str(error))
        with recorder.span("Gram matrix of the shard"):
            blocks_CNN = gram_blocks(self._shard_rows()).numpy()
        sent = group.sent_bytes - before
        return Shared(rows=rows, blocks_CNN=blocks_CNN, sent_bytes=sent, spans=recorder.take())

    def combine(self, token: Token, update: Update) -> Moved | Broken:
        """The direction: the own shard by the weights, the others' from them. It takes the place of the first row."""
        group, direction_P, recorder = self._member(), self.step.rows_RP[0], self.step.recorder
        before, own = group.sent_bytes, self._shards[group.rank]
        try:
            with recorder.span("combine the shard"):
                if own.stop > own.start:
                    direction_P[own].copy_(combine(update.weights_N, self._shard_rows()))
            with recorder.span("gather direction"):
                group.gather(direction_P, self._shards)
        except GroupBroken as error:
            return Broken(token=token, reason=str(error))
        self._prepared = update
        return Moved(token=token, sent_bytes=group.sent_bytes - before, spans=recorder.take())

    def commit(self, step: int) -> tuple[Span, ...]:
        """Takes the step that was prepared, as every worker does; returns how long it took, if the step is traced."""
        update, self._prepared = self._prepared, None
        if update is None or update.step != step:
            prepared = "nothing" if update is None else f"step {update.step}"
            raise RuntimeError(f"{prepared} was prepared, and step {step} is to be taken")
        with self.step.recorder.span("optimizer"):
            if update.reset:
                self.optimizer.reset()
            self.optimizer.step(self.step.rows_RP[0], update.step)
        return self.step.recorder.take()

    def bad_rows(self, token: Token) -> str:
        """What is not finite in the own rows, in words."""
        rows_RP = self.step.rows_RP.cpu().numpy()
        return bad_rows(Rows(token=token, rows_RP=rows_RP, buffers={}, compute_s=0.0), self.step.layout)

    def _scatter(self, group: Group) -> None:
        """Own shard of everybody's rows; memory for it, as much as the rows of one worker take, is kept."""
        rows_RP = self.step.rows_RP
        self._shards = shards_of(rows_RP.shape[1], group.size)
        own = self._shards[group.rank]
        shape = (len(rows_RP), group.size, own.stop - own.start)
        if self._received.shape != shape:
            self._received = torch.empty(shape, dtype=rows_RP.dtype, device=rows_RP.device)
        for row_P, into_WS in zip(rows_RP, self._received, strict=True):
            group.scatter(row_P, self._shards, into_WS)

    def _shard_rows(self) -> list[Tensor]:
        """The N raw rows on the own shard: those of workers that divide a batch as their mean over examples."""
        parts, size = self.members[0].parts, self.config.batch_size
        places = [part_of(size, part, parts) for part in range(parts)]
        shares = np.array([(place.stop - place.start) / size for place in places])
        rows = []
        for received_WS in self._received:
            for first in range(0, len(self.members), parts):
                own = list(received_WS[first : first + parts])
                rows.append(own[0] if parts == 1 else combine(shares, own))
        return rows

    def _member(self) -> Group:
        assert self.group is not None, "the worker has joined no group"
        return self.group
