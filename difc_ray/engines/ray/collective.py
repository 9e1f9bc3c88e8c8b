"""Rows from worker to worker: each has θ and the optimizer, and shards of all rows meet where they are multiplied.

The coordinator hears inner products and gives weights; what is of size P never comes to it. If a worker is lost,
another takes its place with the state of one that is left, the group meets again, and everybody repeats the step. It
has the same bits, as no worker takes a step before all are ready for it (see :mod:`difc_ray.engines.ray.replica`).

Shape suffixes: P parameters, N raw rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented, and not in `__all__`

from difc_ray.engines.ray.planning import PlacementPlan
from difc_ray.engines.ray.process_group import Rendezvous, make_store
from difc_ray.engines.ray.processes import LOST, Failure
from difc_ray.engines.ray.replica import Broken, Moved, ReplicaArrays, ReplicaWorker, Shared
from difc_ray.engines.ray.rpc import Commit, LostDuringRendezvous, Question, StepRedo
from difc_ray.engines.ray.workers import Workers
from difc_ray.errors import ClusterError, WorkerError
from difc_ray.objectives import Vectors
from difc_ray.objectives.losses import Confusion
from difc_ray.step.coordinator import Update
from difc_ray.step.worker import ModelState, Products, Rows, Statistics, merge_rows, merge_statistics
from difc_ray.vectors import sum_blocks

PATIENCE_S = 5.0
"""Seconds after the first report of a broken exchange in which whoever is there reports it, too."""

SETTLE_S = 5.0
"""Seconds that the times of the last traced step are waited for."""

RENDEZVOUS_IN_A_ROW = 5
"""So often a group may break at one step without the loss of a worker."""


class CollectiveDomains(Workers):
    """The :class:`~difc_ray.step.coordinator.ReplicatedDomains` of the transport `collective`.

    Args:
        group: the placement group.
        plan: resources of each worker.
        threads: threads of each worker process.
        search_path: folders from which plug-ins may come.
        backend: `gloo` or `nccl`.
    """

    actor = ReplicaWorker

    def __init__(
        self, group: PlacementGroup, plan: PlacementPlan, threads: int, search_path: list[str], backend: str
    ) -> None:
        super().__init__(group, plan, threads, search_path)
        self.backend, self.actor_arguments = backend, (backend,)
        self._address = ray.util.get_node_ip_address()
        self._store: TCPStore | None = None
        self._formed = 0
        self._broken_at = (0, 0)
        self._joining = self._exchanging = False
        self._broken_s = math.inf
        self._lost: set[int] = set()
        self._lost_givers: list[Failure] = []
        self._commits: list[Commit] = []

    def hold(self, arrays: ReplicaArrays) -> None:
        """Hands θ and the optimizer to all workers, and lets them form a group.

        Raises:
            ClusterError: they cannot reach each other.
        """
        self._tokens = []
        reference = ray.put(arrays)
        everybody = list(range(len(self.members)))
        self._ask_some(everybody, [Question(method="hold", arguments=(reference,)) for _ in everybody])
        self._rendezvous()

    def replica(self) -> ReplicaArrays:
        """θ and the optimizer, of the first worker; the others are compared with it, and follow it if they differ.

        Workers of one kind agree bit for bit. Those on different hardware may round the optimizer's step differently.
        """
        self._tokens = []
        if self.stop_waiting():
            return self._replica_of_any()
        before, self.stop_waiting = self.stop_waiting, lambda: False  # a run that stops from now on is saved, too
        try:
            self._check_commits()
            everybody = list(range(len(self.members)))
            digests = self._ask_some(everybody, [Question(method="digest", arguments=()) for _ in everybody])
            found: ReplicaArrays = self._ask_some([0], [Question(method="replica", arguments=())])[0]
        finally:
            self.stop_waiting = before
        if len(set(digests)) > 1:
            apart = [name for name, digest in zip(self.names, digests, strict=True) if digest != digests[0]]
            self.messages.append(
                f"the parameters of {', '.join(f'`{name}`' for name in apart)} differ from those of `{self.names[0]}`, "
                "which happens between different hardware; all go on with the latter"
            )
            self.hold(found)
        return found

    def _replica_of_any(self) -> ReplicaArrays:
        """θ and the optimizer, of whoever answers first: a run that is to stop does not wait for one that hangs.

        Raises:
            ClusterError: nobody answers.
        """
        stale = {commit.index for commit in self._commits if commit.done is None}
        asked = {self.workers[i].digest.remote(): i for i in range(len(self.members)) if i not in stale}
        done = {commit.index: commit.done for commit in self._commits}
        limit = self.config.cluster.step_timeout_s
        while asked:
            ready, _ = ray.wait(list(asked), timeout=limit)
            if not ready:
                break
            index = asked.pop(ready[0])
            with suppress(*LOST, RayTaskError, ray.exceptions.GetTimeoutError):
                ray.get([ready[0], *([done[index]] if index in done else [])], timeout=limit)
                found: ReplicaArrays = ray.get(self.workers[index].replica.remote(), timeout=limit)
                return found
        raise ClusterError(f"A worker must give the parameters of step {self._step}, got no answer of any.")

    def evaluate(self, reference: Any, jobs: Sequence[tuple[str, str]]) -> list[Any]:
        """As :meth:`Workers.evaluate`, by workers that have all taken the last step."""
        self._tokens = []
        self._check_commits()
        return super().evaluate(reference, jobs)

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """As :meth:`Workers.confusion`, by workers that have all taken the last step."""
        self._tokens = []
        self._check_commits()
        return super().confusion(state, step)

    # ---- one step -------------------------------------------------------------------------------------------------

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains."""
        self._begin_step(step)
        self.sent_bytes = [0] * len(self.members)
        with self.recorder.span("broadcast"):
            reference = ray.put(state)
        asked = [Question(method="statistics", arguments=(reference,)) for _ in self.members]
        found = self.by_domain(self._ask(asked), merge_statistics)
        self._check_commits()
        return found

    def exchange(self, step: int, number: int, broadcasts: Sequence[Vectors]) -> list[Statistics]:
        """Answers of all domains, each to its own broadcast."""
        asked = [Question(method="exchange", arguments=(number, told)) for told in self.to_members(broadcasts)]
        return self.by_domain(self._ask(asked), merge_statistics)

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """All domains make their rows and exchange them; the answers come without."""
        asked = [Question(method="share", arguments=(own,)) for own in self.to_members(cotangents)]
        shared: list[Shared] = self._ask(asked)
        self._blocks = [answer.blocks_CNN for answer in shared]
        return self.by_domain([answer.rows for answer in shared], merge_rows)

    def gram(self) -> np.ndarray:
        """(N, N) inner products of the rows, from those of all blocks in their order."""
        return sum_blocks(torch.from_numpy(np.concatenate(self._blocks)))

    def move(self, update: Update) -> None:
        """Lets all workers make the direction, and take the step when every one has it."""
        began = time.perf_counter()
        self._ask([Question(method="combine", arguments=(update,)) for _ in self.members])
        self.moving_s = time.perf_counter() - began
        self._commits = []
        for index, worker in enumerate(self.workers):
            done = None
            with suppress(*LOST):
                done = worker.commit.remote(update.step)  # the next question finds θ moved
            self._commits.append(Commit(index=index, worker=worker, done=done))
        self._tokens = []

    def settle(self) -> None:
        """After the last step that is traced: the times of the optimizers, which else come with the next step."""
        waited = [commit.done for commit in self._commits if commit.done is not None]
        if waited and len(ray.wait(waited, num_returns=len(waited), timeout=SETTLE_S)[0]) == len(self._commits):
            self._check_commits()

    def bad_rows(self) -> list[str]:
        """What is not finite in the rows of each domain."""
        return self._ask_some(
            list(range(len(self.members))), [Question(method="bad_rows", arguments=()) for _ in self.members]
        )

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Not asked for: rules that need a metric have the rows sent to the coordinator."""
        raise AssertionError("a metric needs `cluster.transport=object_store`")

    def _check_commits(self) -> None:
        """Whether all have taken the last step; one of whom that is not known is replaced.

        Raises:
            StepRedo: one was replaced, in a step.
            WorkerError: one could not.
        """
        self._recovered(self._uncommitted(set()), {}, {})

    def _uncommitted(self, lost: set[int]) -> list[Failure]:
        """Workers, besides those that are lost, of whom nobody knows whether they have taken the last step."""
        commits, self._commits = self._commits, []
        found = []
        for commit in commits:
            index = commit.index
            if index in lost or self.workers[index] is not commit.worker:
                continue  # another takes its place, with the state of one that did
            if commit.done is None:
                found.append(Failure(index=index, reason="could not be told to take the step"))
                continue
            try:
                self.spans += ray.get(commit.done, timeout=self.config.cluster.step_timeout_s)
            except LOST as error:
                found.append(self._gone(index, error))
            except ray.exceptions.GetTimeoutError:
                found.append(Failure(index=index, reason="did not take the step in time"))
            except RayTaskError as error:
                raise WorkerError(f"Domain `{self.names[index]}` could not take a step: {error.cause}.") from error
        return found

    def _ask(self, questions: list[Question]) -> list[Any]:
        self._exchanging, self._broken_s = questions[0].method in ("share", "combine"), math.inf
        replies = self._ask_some(list(range(len(self.members))), questions)
        if broken := [reply for reply in replies if isinstance(reply, Broken)]:
            self._rendezvous_again(broken[0].reason)
        for index, reply in enumerate(replies):
            if isinstance(reply, (Shared, Moved)):
                self.sent_bytes[index] += reply.sent_bytes
            self._check_token(index, reply.rows.token if isinstance(reply, Shared) else reply.token)
        own = [reply.rows if isinstance(reply, Shared) else reply for reply in replies]
        self.compute_s += max(getattr(reply, "compute_s", 0.0) for reply in own)
        return replies

    # ---- failures -------------------------------------------------------------------------------------------------

    def _limit_s(self, elapsed_s: float, replies: dict[int, Any]) -> float:
        """In an exchange, whoever waits for a missing one reports that: then it is known who is missing."""
        limit = self.config.cluster.step_timeout_s
        if not self._exchanging:
            return limit
        if not any(isinstance(reply, Broken) for reply in replies.values()):
            return 2 * limit  # the exchange itself may take `limit`, after the rows were computed
        self._broken_s = min(self._broken_s, elapsed_s)
        return max(limit, self._broken_s + PATIENCE_S)

    def _root_cause_first(self, failures: list[Failure]) -> list[Failure]:
        """As :meth:`Supervision._root_cause_first`; nobody waits any longer for the one whose error ends the run."""
        for failure in failures:
            if failure.fatal is not None:
                with suppress(*LOST):
                    self.workers[failure.index].leave.remote()
        return super()._root_cause_first(failures)

    def _recovered(self, failures: list[Failure], pending: dict[Any, int], replies: dict[int, Any]) -> list[Failure]:
        """Replaces all that are lost, lets the group meet again, and in a step makes everybody repeat it.

        Raises:
            StepRedo: the failures came in a step.
            LostDuringRendezvous: they came while a group formed.
        """
        if not failures:
            return []
        lost = {failure.index: failure for failure in failures}
        lost |= {failure.index: failure for failure in self._uncommitted(set(lost))}
        for index in lost:
            self._end(index)  # whoever waits for it in an exchange hears of that
        if self._joining:
            self._store = None  # whoever waits for it in the new group does
        began, self._broken_s = time.monotonic(), math.inf
        while pending:
            for failure in self._root_cause_first(self._wait(pending, replies, began)):
                lost[failure.index] = failure
                self._end(failure.index)
        if self._joining:
            raise LostDuringRendezvous(list(lost.values()))
        self._replace_all(list(lost.values()))
        self._rendezvous()
        if self._tokens:
            raise StepRedo("")
        return list(lost.values())

    def _replace_all(self, lost: list[Failure]) -> None:
        """One after the other, with those that are lost while they give their state to another."""
        waiting = list(lost)
        self._lost = {failure.index for failure in lost}
        while waiting:
            failure = waiting.pop(0)
            self._replace(failure)
            self._lost.discard(failure.index)
            waiting += self._lost_givers
            self._lost_givers = []

    def restore_replacement(self, index: int) -> None:
        """Gives a replacement the state of a worker that is left."""
        limit = self.config.cluster.step_timeout_s
        while True:
            left = next((other for other in range(len(self.members)) if other not in self._lost), None)
            if left is None:
                raise ClusterError(
                    "At least one worker must be left that holds the parameters, got the loss of all of them at step "
                    f"{self._step}. Continue from the newest checkpoint with `resume=auto`."
                )
            try:
                held = self._hear(left, self.workers[left].replica.remote(), limit)
                break
            except LOST as error:
                failure = self._gone(left, error)
            except ray.exceptions.GetTimeoutError:
                failure = Failure(index=left, reason=f"did not give its parameters within {limit:g} s")
            self._lost.add(left)
            self._lost_givers.append(failure)
        self._hear(index, self.workers[index].hold.remote(held), self.config.cluster.start_timeout_s)

    def _rendezvous_again(self, reason: str) -> None:
        """A group that broke although nobody is lost.

        Raises:
            StepRedo: always, if the group could meet.
            ClusterError: it breaks again and again.
        """
        step, times = self._broken_at
        times = times + 1 if step == self._step else 1
        self._broken_at = (self._step, times)
        if times > RENDEZVOUS_IN_A_ROW:
            raise ClusterError(
                f"Workers must reach each other, got {times} broken exchanges at step {self._step}, the last: "
                f"{reason}. Look at the network between the nodes, or write `cluster.transport=object_store`."
            )
        self._rendezvous()
        raise StepRedo(f"step {self._step}: the exchange between the workers broke ({reason}); all repeat the step")

    def _rendezvous(self) -> None:
        """All workers form a new group; those that are lost meanwhile are replaced first.

        Raises:
            ClusterError: they cannot reach each other.
        """
        limit, reason = self.config.cluster.step_timeout_s, ""
        everybody = list(range(len(self.members)))
        tokens, self._tokens, self._joining = self._tokens, [], True
        exchanging, self._exchanging = self._exchanging, True
        try:
            for _ in range(RENDEZVOUS_IN_A_ROW):
                self._formed, self._store, self._broken_s = self._formed + 1, make_store(self._address), math.inf
                rendezvous = Rendezvous(
                    host=self._address, port=self._store.port, name=f"{self.run}/{self._formed}",
                    size=len(everybody), backend=self.backend, timeout_s=limit,
                )  # fmt: skip
                addresses = [info.address for info in self.infos]
                asked = [Question(method="join", arguments=(rendezvous, *own)) for own in enumerate(addresses)]
                try:
                    broken = [reply for reply in self._ask_some(everybody, asked) if reply is not None]
                except LostDuringRendezvous as news:
                    self._replace_all(news.failures)
                    continue
                if not broken:
                    return
                reason = broken[0].reason
        finally:
            self._tokens, self._joining, self._exchanging = tokens, False, exchanging
        raise ClusterError(
            f"Workers must reach each other, got {RENDEZVOUS_IN_A_ROW} failures in a row, the last: "
            f"{reason or 'a worker was lost'}. Open the ports between the nodes, or write "
            "`cluster.transport=object_store`."
        )
