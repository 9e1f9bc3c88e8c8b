"""How rows travel: what every transport does alike, and which one a run takes, and why."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import ray

from difc_ray.config import Config, metric_kind
from difc_ray.engines.ray.planning import PlacementPlan
from difc_ray.engines.ray.pool import Recovery, WorkerPool
from difc_ray.engines.ray.rpc import Phase, Question, Round, StateArrays
from difc_ray.errors import ClusterError
from difc_ray.objectives import Vectors
from difc_ray.objectives.losses import Confusion
from difc_ray.step.coordinator import Domains, ReplicatedStore, TrainState
from difc_ray.step.worker import ModelState, Statistics, Token, merge_statistics

Answer = TypeVar("Answer")
Message = TypeVar("Message")

LARGE = 1_000_000
"""Parameters from which it counts how rows travel; below, a step is short messages in either case."""


@dataclass(frozen=True, kw_only=True)
class StepInProgress:
    """The step in hand.

    Args:
        tokens: under which each worker answers: an answer to an earlier question is never used.
        asked: what each worker has been asked and has answered so far.
        answered: its statistics among these answers.
    """

    tokens: list[Token]
    asked: list[list[Question]]
    answered: list[list[Statistics]]

    def check_token(self, index: int, token: Token) -> None:
        """An answer under another (run, attempt, step, domain) is a bug of ours, and never used, also under `-O`."""
        if token != self.tokens[index]:
            raise RuntimeError(f"stale answer {token}, expected {self.tokens[index]}")


class Transport(Domains, Recovery):
    """The source domains' workers of a Ray run, as the coordinator sees them; a worker that fails is replaced.

    Args:
        pool: the workers.

    Attributes:
        open: the step in hand; None between two steps.
        attempt: how often a step was tried anew so far.
        compute_s: seconds of the slowest worker's own work in the step.
        moving_s: seconds in which the workers made the direction, within the coordinator's own part.
        sent_bytes: what each worker has sent to others in the step.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self.pool = pool
        self.open: StepInProgress | None = None
        self.attempt = 0
        self.compute_s = self.moving_s = 0.0
        self.sent_bytes: list[int] = []

    # ---- the state between two steps ---------------------------------------------------------------------------

    @abstractmethod
    def take_over(self, config: Config, arrays: StateArrays) -> tuple[TrainState, ReplicatedStore | None]:
        """Begins a run at a state: what stays with the coordinator, and the store of what does not."""

    @abstractmethod
    def arrays_of(self, state: TrainState) -> StateArrays:
        """The whole training state, of which the coordinator has ``state``."""

    def settle(self) -> None:
        """After the last step that is traced: waits for what else comes with the next step."""

    # ---- one step ----------------------------------------------------------------------------------------------

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains, under new tokens."""
        pool = self.pool
        pool.step = step
        pool.stragglers.begin()
        self.compute_s = self.moving_s = 0.0
        tokens = [
            Token(
                run=pool.run, attempt=self.attempt, step=step, traced=pool.recorder.on,
                domain=member.domain, part=member.part,
            )
            for member in pool.members
        ]  # fmt: skip
        self.open = StepInProgress(tokens=tokens, asked=[[] for _ in tokens], answered=[[] for _ in tokens])
        with pool.recorder.span("broadcast"):
            reference = ray.put(state)
        answers = self.ask([Question(method="statistics", arguments=(reference,)) for _ in tokens])
        return self.by_domain(answers, merge_statistics)

    def exchange(self, step: int, number: int, broadcasts: Sequence[Vectors]) -> list[Statistics]:
        """Answers of all domains, each to its own broadcast."""
        own = self.to_members(broadcasts)
        answers = self.ask([Question(method="exchange", arguments=(number, broadcast)) for broadcast in own])
        return self.by_domain(answers, merge_statistics)

    @abstractmethod
    def ask(self, questions: list[Question], phase: Phase = Phase.WORK) -> list[Any]:
        """The answers of all workers in the step in hand.

        Args:
            questions: to each of them.
            phase: what the workers do meanwhile.
        """

    def step_in_hand(self) -> StepInProgress:
        """The step that :meth:`statistics` began."""
        assert self.open is not None, "no step has begun"
        return self.open

    # ---- outside a step ----------------------------------------------------------------------------------------

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """How sure the model is of the target's images, of which every worker looks at a share.

        A worker that dies is replaced, and its share is looked at again.
        """
        self.pool.step, self.open = step, None
        reference, shards = ray.put(state), len(self.pool.members)
        shares = [Question(method="confusion", arguments=(reference, shard, shards)) for shard in range(shards)]
        return self.pool.ask(Round(questions=dict(enumerate(shares))), self)

    def evaluate(self, reference: Any, jobs: Sequence[tuple[str, str]]) -> list[Any]:
        """Metrics of a state (an object reference) for (domain, split) pairs, in their order.

        A source is evaluated by its own workers in turn, another domain by the first one. A worker that dies is
        replaced.
        """
        self.open = None
        metrics: list[Any] = [None] * len(jobs)
        queues: list[list[int]] = [[] for _ in self.pool.members]
        for position, (domain, _) in enumerate(jobs):
            own = [index for index, member in enumerate(self.pool.members) if member.domain == domain] or [0]
            queues[min(own, key=lambda index: len(queues[index]))].append(position)
        while any(queues):
            turn = {index: queue.pop(0) for index, queue in enumerate(queues) if queue}
            questions = {
                index: Question(method="evaluate", arguments=(reference, *jobs[position]))
                for index, position in turn.items()
            }
            for position, answer in zip(turn.values(), self.pool.ask(Round(questions=questions), self), strict=True):
                metrics[position] = answer
        return metrics

    # ---- workers and domains -----------------------------------------------------------------------------------

    def by_domain(self, replies: Sequence[Answer], merge: Callable[[Sequence[Answer]], Answer]) -> list[Answer]:
        """The answers of all workers as those of the domains, in the order of the configuration."""
        parts: dict[str, list[Answer]] = {name: [] for name in self.pool.config.sources}
        for member, reply in zip(self.pool.members, replies, strict=True):
            parts[member.domain].append(reply)
        return [merge(own) for own in parts.values()]

    def to_members(self, messages: Sequence[Message]) -> list[Message]:
        """What the domains are told, for each of their workers."""
        by_name = dict(zip(self.pool.config.sources, messages, strict=True))
        return [by_name[member.domain] for member in self.pool.members]


@dataclass(frozen=True, kw_only=True)
class TransportChoice:
    """Which transport a run takes.

    Args:
        kind: `object_store` or `collective`.
        backend: of torch.distributed, `gloo` or `nccl`; empty for `object_store`.
        why: the reason, as the end of a sentence.
    """

    kind: str
    backend: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.backend})" if self.backend else self.kind


def check_backend(config: Config, plan: PlacementPlan) -> None:
    """Whether the workers can have `cluster.backend`, before anything is reserved for them.

    Raises:
        ClusterError: NCCL is asked for, and several workers share a GPU or have none.
    """
    if config.cluster.backend == "nccl" and plan.gpus < 1:
        raise ClusterError(
            "`cluster.backend=nccl` needs a GPU of its own for every domain worker, got "
            f"{plan.gpus:g} GPU for each (NCCL refuses two members on one GPU). Write `cluster.backend=gloo`, or give "
            f"the cluster {len(plan.owners) - 1} GPUs and write `cluster.gpus_per_worker=1`."
        )


def choose_transport(config: Config, plan: PlacementPlan, size: int, nodes: int) -> TransportChoice:
    """Resolves `cluster.transport` and `cluster.backend`.

    `auto` takes `collective` for models of a million parameters or more, if every domain worker has a GPU of its own
    (NCCL), or if workers live on several nodes (gloo): on one machine the object store is shared memory, which no
    socket outruns.

    Args:
        config: the run's configuration.
        plan: resources of each worker.
        size: P, number of parameters.
        nodes: number of nodes on which the bundles lie.
    """
    wanted, own_gpu = config.cluster.transport, plan.gpus >= 1
    backend = config.cluster.backend
    if backend == "auto":
        backend = "nccl" if own_gpu else "gloo"
    if wanted == "collective":
        return TransportChoice(kind="collective", backend=backend, why="asked for")
    if wanted == "object_store":
        return TransportChoice(kind="object_store", why="asked for")
    if metric_kind(config):
        return TransportChoice(kind="object_store", why=f"rule `{config.harmonize.rule}` needs all rows in one place")
    if size < LARGE:
        return TransportChoice(kind="object_store", why=f"{size:,} parameters are few")
    if own_gpu:
        return TransportChoice(kind="collective", backend=backend, why=f"{size:,} parameters, a GPU for every worker")
    if nodes > 1:
        return TransportChoice(kind="collective", backend=backend, why=f"{size:,} parameters, workers on several nodes")
    return TransportChoice(kind="object_store", why="all workers share the memory of one machine")
