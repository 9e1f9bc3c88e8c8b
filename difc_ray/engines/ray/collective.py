"""Rows from worker to worker: each has θ and the optimizer, and shards of all rows meet where they are multiplied.

The coordinator hears inner products and gives weights; what is of size P never comes to it. If a worker is lost,
another takes its place with the state of one that is left, the group meets again, and everybody repeats the step. It
has the same bits, as no worker takes a step before all are ready for it (see :mod:`difc_ray.engines.ray.replica`).

Shape suffixes: P parameters, N raw rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not in `__all__`

from difc_ray.config import Config
from difc_ray.engines.ray.fault_tolerance import Failure
from difc_ray.engines.ray.pool import WorkerPool
from difc_ray.engines.ray.process_group import Rendezvous, make_store
from difc_ray.engines.ray.processes import LOST
from difc_ray.engines.ray.replica import Broken, Moved, ReplicaArrays, Shared
from difc_ray.engines.ray.rpc import Phase, Question, Round, StateArrays, StepRedo
from difc_ray.engines.ray.transport import Transport
from difc_ray.errors import ClusterError, WorkerError
from difc_ray.objectives import Vectors
from difc_ray.objectives.losses import Confusion
from difc_ray.step.coordinator import ReplicatedStore, TrainState, Update
from difc_ray.step.worker import ModelState, Products, Rows, Statistics, merge_rows
from difc_ray.vectors import sum_blocks

PATIENCE_S = 5.0
"""Seconds after the first report of a broken exchange in which whoever is there reports it, too."""

SETTLE_S = 5.0
"""Seconds that the times of the last traced step are waited for."""

RENDEZVOUS_IN_A_ROW = 5
"""So often a group may break at one step without the loss of a worker."""


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A worker was told to take a step.

    Args:
        index: of the worker.
        worker: the actor; another one may have taken its place since.
        done: Ray's reference; None: it could not be told.
    """

    index: int
    worker: Any
    done: Any


class LostDuringRendezvous(Exception):
    """Workers were lost while a group formed.

    Args:
        failures: theirs.
    """

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__()
        self.failures = failures


class CollectiveTransport(Transport):
    """The :class:`~difc_ray.step.coordinator.ReplicatedDomains` of the transport `collective`.

    Args:
        pool: the workers, of the class :class:`~difc_ray.engines.ray.replica.ReplicaWorker`.
        backend: `gloo` or `nccl`.
    """

    def __init__(self, pool: WorkerPool, backend: str) -> None:
        super().__init__(pool)
        self.backend = backend
        self._address = ray.util.get_node_ip_address()
        self._store: TCPStore | None = None
        self._groups = 0
        self._broken_at = (0, 0)
        self._commits: list[Commit] = []

    # ---- the state between two steps ---------------------------------------------------------------------------

    def take_over(self, config: Config, arrays: StateArrays) -> tuple[TrainState, ReplicatedStore]:
        """Hands θ and the optimizer to all workers, and lets them form a group."""
        self._hold(ReplicaArrays(theta_P=arrays.theta_P, optimizer=arrays.optimizer))
        state = replace(arrays, theta_P=arrays.theta_P[:0], optimizer={}).to_state()
        return state, ReplicatedStore(config, state, self)

    def arrays_of(self, state: TrainState) -> StateArrays:
        """With θ and the optimizer of the workers."""
        arrays = self._replica()
        return replace(StateArrays.of(state), theta_P=arrays.theta_P, optimizer=arrays.optimizer)

    def _hold(self, arrays: ReplicaArrays) -> None:
        """Hands θ and the optimizer to all workers, and lets them form a group.

        Raises:
            ClusterError: they cannot reach each other.
        """
        self.open = None
        self._ask_all(Question(method="hold", arguments=(ray.put(arrays),)))
        self._rendezvous()

    def _replica(self) -> ReplicaArrays:
        """θ and the optimizer, of the first worker; the others are compared with it, and follow it if they differ.

        Workers of one kind agree bit for bit. Those on different hardware may round the optimizer's step differently.
        A run that is told to stop while it is asked is saved, too.
        """
        self.open = None
        if self.pool.stopping():
            return self._replica_of_any()
        self._check_commits(heeds_stop=False)
        digests = self._ask_all(Question(method="digest"), heeds_stop=False)
        first = Round(questions={0: Question(method="replica")}, heeds_stop=False)
        arrays: ReplicaArrays = self.pool.ask(first, self)[0]
        if len(set(digests)) > 1:
            names = self.pool.names
            apart = [name for name, digest in zip(names, digests, strict=True) if digest != digests[0]]
            self.pool.messages.append(
                f"the parameters of {', '.join(f'`{name}`' for name in apart)} differ from those of `{names[0]}`, "
                "which happens between different hardware; all go on with the latter"
            )
            self._hold(arrays)
        return arrays

    def _replica_of_any(self) -> ReplicaArrays:
        """θ and the optimizer, of whoever answers first: a run that is to stop does not wait for one that hangs.

        Raises:
            ClusterError: nobody answers.
        """
        done = {commit.index: commit.done for commit in self._commits}
        untold = {index for index, reference in done.items() if reference is None}
        workers = {index: worker for index, worker in enumerate(self.pool.workers) if index not in untold}
        pending = {worker.digest.remote(): index for index, worker in workers.items()}
        limit = self.pool.config.cluster.step_timeout_s
        while pending:
            ready, _ = ray.wait(list(pending), timeout=limit)
            if not ready:
                break
            index = pending.pop(ready[0])
            with suppress(*LOST, RayTaskError, ray.exceptions.GetTimeoutError):
                ray.get([ready[0], *([done[index]] if index in done else [])], timeout=limit)
                arrays: ReplicaArrays = ray.get(workers[index].replica.remote(), timeout=limit)
                return arrays
        raise ClusterError(f"A worker must give the parameters of step {self.pool.step}, got no answer of any.")

    def evaluate(self, reference: Any, jobs: Sequence[tuple[str, str]]) -> list[Any]:
        """As :meth:`Transport.evaluate`, by workers that have all taken the last step."""
        self.open = None
        self._check_commits()
        return super().evaluate(reference, jobs)

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """As :meth:`Transport.confusion`, by workers that have all taken the last step."""
        self.open = None
        self._check_commits()
        return super().confusion(state, step)

    # ---- one step ----------------------------------------------------------------------------------------------

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains, of workers that have all taken the last step."""
        self.sent_bytes = [0] * len(self.pool.members)
        answers = super().statistics(state, step)
        self._check_commits()
        return answers

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """All domains make their rows and exchange them; the answers come without."""
        own = self.to_members(cotangents)
        shared: list[Shared] = self.ask(
            [Question(method="share", arguments=(cotangent,)) for cotangent in own], Phase.EXCHANGE
        )
        self._blocks = [answer.blocks_CNN for answer in shared]
        return self.by_domain([answer.rows for answer in shared], merge_rows)

    def gram(self) -> np.ndarray:
        """(N, N) inner products of the rows, from those of all blocks in their order."""
        return sum_blocks(torch.from_numpy(np.concatenate(self._blocks)))

    def move(self, update: Update) -> None:
        """Lets all workers make the direction, and take the step when every one has it."""
        began = time.perf_counter()
        self.ask([Question(method="combine", arguments=(update,)) for _ in self.pool.members], Phase.EXCHANGE)
        self.moving_s = time.perf_counter() - began
        self._commits = []
        for index, worker in enumerate(self.pool.workers):
            done = None
            with suppress(*LOST):
                done = worker.commit.remote(update.step)  # the next question finds θ moved
            self._commits.append(Commit(index=index, worker=worker, done=done))
        self.open = None

    def settle(self) -> None:
        """After the last step that is traced: the times of the optimizers, which else come with the next step."""
        waited = [commit.done for commit in self._commits if commit.done is not None]
        if waited and len(ray.wait(waited, num_returns=len(waited), timeout=SETTLE_S)[0]) == len(self._commits):
            self._check_commits()

    def bad_rows(self) -> list[str]:
        """What is not finite in the rows of each domain."""
        questions = dict.fromkeys(range(len(self.pool.members)), Question(method="bad_rows"))
        return self.pool.ask(Round(questions=questions, tokens=self.step_in_hand().tokens), self)

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Not asked for: rules that need a metric have the rows sent to the coordinator."""
        raise AssertionError("a metric needs `cluster.transport=object_store`")

    def ask(self, questions: list[Question], phase: Phase = Phase.WORK) -> list[Any]:
        """The answers of all workers in a step; an exchange that broke makes all repeat the step."""
        step = self.step_in_hand()
        replies = self.pool.ask(Round(questions=dict(enumerate(questions)), tokens=step.tokens, phase=phase), self)
        if broken := [reply for reply in replies if isinstance(reply, Broken)]:
            self._rendezvous_again(broken[0].reason)
        for index, reply in enumerate(replies):
            if isinstance(reply, (Shared, Moved)):
                self.sent_bytes[index] += reply.sent_bytes
            step.check_token(index, reply.rows.token if isinstance(reply, Shared) else reply.token)
        own = [reply.rows if isinstance(reply, Shared) else reply for reply in replies]
        self.compute_s += max(getattr(reply, "compute_s", 0.0) for reply in own)
        return replies

    def _ask_all(self, question: Question, *, heeds_stop: bool = True) -> list[Any]:
        """The answers of all workers to a question of no step."""
        questions = dict.fromkeys(range(len(self.pool.members)), question)
        return self.pool.ask(Round(questions=questions, heeds_stop=heeds_stop), self)

    def _check_commits(self, *, heeds_stop: bool = True) -> None:
        """Whether all have taken the last step; one of whom that is not known is replaced.

        Raises:
            StepRedo: one was replaced, in a step.
            WorkerError: one could not.
        """
        self.recover(Round(questions={}, heeds_stop=heeds_stop), self._uncommitted(frozenset()))

    def _uncommitted(self, lost: frozenset[int]) -> list[Failure]:
        """Workers, besides those that are lost, of whom nobody knows whether they have taken the last step."""
        commits, self._commits = self._commits, []
        failures = []
        for commit in commits:
            index = commit.index
            if index in lost or self.pool.workers[index] is not commit.worker:
                continue  # another takes its place, with the state of one that did
            if commit.done is None:
                failures.append(Failure(index=index, reason="could not be told to take the step"))
                continue
            try:
                self.pool.spans += ray.get(commit.done, timeout=self.pool.config.cluster.step_timeout_s)
            except LOST as error:
                failures.append(self.pool.lost(index, error))
            except ray.exceptions.GetTimeoutError:
                failures.append(Failure(index=index, reason="did not take the step in time"))
            except RayTaskError as error:
                name = self.pool.names[index]
                raise WorkerError(f"Domain `{name}` could not take a step: {error.cause}.") from error
        return failures

    # ---- failures ----------------------------------------------------------------------------------------------

    def limit_s(self, round_: Round, elapsed_s: float) -> float:
        """In an exchange, whoever waits for a missing one reports that: then it is known who is missing."""
        limit = self.pool.config.cluster.step_timeout_s
        if round_.phase is Phase.WORK:
            return limit
        if not any(isinstance(reply, Broken) for reply in round_.replies.values()):
            return 2 * limit  # the exchange itself may take `limit`, after the rows were computed
        round_.broken_s = min(round_.broken_s, elapsed_s)
        return max(limit, round_.broken_s + PATIENCE_S)

    def leave_group(self, failures: Sequence[Failure]) -> None:
        """Nobody waits any longer in an exchange for the one whose error ends the run."""
        for failure in failures:
            if failure.fatal is not None:
                with suppress(*LOST):
                    self.pool.workers[failure.index].leave.remote()

    def recover(self, round_: Round, failures: Sequence[Failure]) -> Sequence[Failure]:
        """Replaces all that are lost, lets the group meet again, and in a step makes everybody repeat it.

        Raises:
            StepRedo: the failures came in a step.
            LostDuringRendezvous: they came while a group formed.
        """
        if not failures:
            return []
        lost = {failure.index: failure for failure in failures}
        lost |= {failure.index: failure for failure in self._uncommitted(frozenset(lost))}
        for index in lost:
            self.pool.end(index)  # whoever waits for it in an exchange hears of that
        joining = round_.phase is Phase.RENDEZVOUS
        if joining:
            self._store = None  # whoever waits for it in the new group does
        round_.restart_clock()
        while round_.pending:
            for failure in self.pool.wait(round_, self):
                lost[failure.index] = failure
                self.pool.end(failure.index)
        if joining:
            raise LostDuringRendezvous(list(lost.values()))
        self._replace_all(list(lost.values()), heeds_stop=round_.heeds_stop)
        self._rendezvous(heeds_stop=round_.heeds_stop)
        if self.open is not None:
            raise StepRedo("")
        return list(lost.values())

    def _replace_all(self, failures: Sequence[Failure], *, heeds_stop: bool) -> None:
        """One after the other, with those that are lost while they give their state to another."""
        lost = {failure.index: failure for failure in failures}
        while lost:
            index = next(iter(lost))
            restore = partial(self._copy_replica, lost=lost, heeds_stop=heeds_stop)
            self.pool.replace(lost[index], restore, heeds_stop=heeds_stop)
            del lost[index]

    def _copy_replica(self, index: int, *, lost: dict[int, Failure], heeds_stop: bool) -> None:
        """Hands the state of a worker that is left to a replacement; one that is lost meanwhile joins the lost.

        Raises:
            ClusterError: none is left.
        """
        pool, limits = self.pool, self.pool.config.cluster
        while True:
            left = next((other for other in range(len(pool.members)) if other not in lost), None)
            if left is None:
                raise ClusterError(
                    "At least one worker must be left that holds the parameters, got the loss of all of them at step "
                    f"{pool.step}. Continue from the newest checkpoint with `resume=auto`."
                )
            try:
                reference = pool.workers[left].replica.remote()
                arrays = pool.hear(left, reference, limits.step_timeout_s, heeds_stop=heeds_stop)
                break
            except LOST as error:
                lost[left] = pool.lost(left, error)
            except ray.exceptions.GetTimeoutError:
                reason = f"did not give its parameters within {limits.step_timeout_s:g} s"
                lost[left] = Failure(index=left, reason=reason)
        pool.hear(index, pool.workers[index].hold.remote(arrays), limits.start_timeout_s, heeds_stop=heeds_stop)

    def _rendezvous_again(self, reason: str) -> None:
        """Lets a group meet again that broke although nobody is lost.

        Raises:
            StepRedo: always, if the group could meet.
            ClusterError: it breaks again and again.
        """
        step, times = self._broken_at
        now = self.pool.step
        times = times + 1 if step == now else 1
        self._broken_at = (now, times)
        if times > RENDEZVOUS_IN_A_ROW:
            raise ClusterError(
                f"Workers must reach each other, got {times} broken exchanges at step {now}, the last: "
                f"{reason}. Look at the network between the nodes, or write `cluster.transport=object_store`."
            )
        self._rendezvous()
        raise StepRedo(f"step {now}: the exchange between the workers broke ({reason}); all repeat the step")

    def _rendezvous(self, *, heeds_stop: bool = True) -> None:
        """All workers form a new group; those that are lost meanwhile are replaced first.

        Raises:
            ClusterError: they cannot reach each other.
        """
        reason = "a worker was lost"
        for _ in range(RENDEZVOUS_IN_A_ROW):
            try:
                broken = [reply for reply in self.pool.ask(self._joining(heeds_stop), self) if reply is not None]
            except LostDuringRendezvous as loss:
                self._replace_all(loss.failures, heeds_stop=heeds_stop)
                continue
            if not broken:
                return
            reason = broken[0].reason
        raise ClusterError(
            f"Workers must reach each other, got {RENDEZVOUS_IN_A_ROW} failures in a row, the last: {reason}. Open "
            "the ports between the nodes, or write `cluster.transport=object_store`."
        )

    def _joining(self, heeds_stop: bool) -> Round:
        """The question to all workers to join a new group."""
        self._groups, self._store = self._groups + 1, make_store(self._address)
        rendezvous = Rendezvous(
            host=self._address, port=self._store.port, name=f"{self.pool.run}/{self._groups}",
            size=len(self.pool.members), backend=self.backend, timeout_s=self.pool.config.cluster.step_timeout_s,
        )  # fmt: skip
        questions = {
            rank: Question(method="join", arguments=(rendezvous, rank, info.address))
            for rank, info in enumerate(self.pool.infos)
        }
        return Round(questions=questions, phase=Phase.RENDEZVOUS, heeds_stop=heeds_stop)
