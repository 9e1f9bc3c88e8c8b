"""The domain workers of a run as actors: started where the plan says, asked, replaced and ended."""

from __future__ import annotations

import logging
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from difc_ray.config import Config
from difc_ray.determinism import thread_environment
from difc_ray.engines.ray.fault_tolerance import Failure, FailurePolicy, death_of, raise_fatal
from difc_ray.engines.ray.nodes import LOOK_S, has_place, wanted_and_free
from difc_ray.engines.ray.planning import PlacementPlan, members_of
from difc_ray.engines.ray.processes import LOST, describe, end_process
from difc_ray.engines.ray.rpc import Round, StepRedo, WaitInterrupted, spans_of
from difc_ray.engines.ray.stragglers import Stragglers
from difc_ray.engines.ray.worker import DomainWorker, WorkerInfo
from difc_ray.errors import ClusterError, DifcError, WorkerError
from difc_ray.tracing import Recorder, Span

log = logging.getLogger("difc_ray")

POLL_S = 0.25
"""How often a wait looks at deadlines and at whether it is interrupted."""

GOODBYE_S = 0.5
"""Seconds that all workers together have to end their logs."""


class Recovery(ABC):
    """What is done about workers that fail in a round."""

    @abstractmethod
    def recover(self, round_: Round, failures: Sequence[Failure]) -> Sequence[Failure]:
        """Replaces the workers; returns the failures whose question is to be asked again."""

    @abstractmethod
    def limit_s(self, round_: Round, elapsed_s: float) -> float:
        """Seconds after which whoever has not answered is taken for lost."""

    def leave_group(self, failures: Sequence[Failure]) -> None:  # noqa: B027  # where there are no groups: nothing
        """Before the run ends by a fatal one of these: nobody is to wait for its worker any longer."""


class WorkerPool:
    """One worker or several (`cluster.replicas`) for every source domain, in the order of the configuration.

    Args:
        group: the placement group; bundle 0 is the coordinator's, bundle 1 + i that of worker i.
        plan: resources of each worker.
        threads: threads of each worker process.
        search_path: folders from which plug-ins may come.
        stopping: whether the run is to stop.
        actor: the class of the workers.
        arguments: what its constructor takes besides threads and search path.

    Attributes:
        workers: the actors' handles.
        infos: what each has said of itself.
        step: the step in hand, or the last one, for messages.
        messages: one-line messages for the user, since they were last taken.
        waiting: seconds for which the workers that have not answered are waited for, by name.
        obstacle: what keeps a worker from coming back; empty: nothing.
    """

    def __init__(
        self,
        group: PlacementGroup,
        plan: PlacementPlan,
        threads: int,
        search_path: list[str],
        stopping: Callable[[], bool],
        actor: type[DomainWorker] = DomainWorker,
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self.group, self.plan, self.stopping = group, plan, stopping
        self._threads, self._actor, self._arguments = threads, actor, (threads, search_path, *arguments)
        self.workers: list[Any] = []
        self.infos: list[WorkerInfo] = []
        self.step = 0
        self.messages: list[str] = []
        self.waiting: dict[str, float] = {}
        self.obstacle = ""
        self.recorder = Recorder("coordinator")
        self.spans: list[Span] = []

    # ---- beginning and end -------------------------------------------------------------------------------------

    def start(self, config: Config, run: str) -> list[WorkerInfo]:
        """Starts a run: all workers (those there are serve again), their data and their models.

        Args:
            config: the run's configuration.
            run: the run's identity, part of every token.

        Raises:
            ClusterError: a worker did not come up in time, or built another model than the first.
        """
        self.config, self.run, self.members = config, run, members_of(config)
        self.names = [str(member) for member in self.members]
        self.stragglers = Stragglers(self.names)
        self.policy = FailurePolicy(config, self.members)
        self.step = 0
        if len(self.workers) != len(self.members):
            self.close()
            self.workers = [self.spawn(index) for index in range(len(self.members))]
        started = [self.begin(index) for index in range(len(self.members))]
        self.infos = self._first_answers(started, config.cluster.start_timeout_s)
        check_same_model(self.infos)
        return self.infos

    def spawn(self, index: int) -> Any:
        """A new actor in the bundle of a worker."""
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=index + 1, placement_group_capture_child_tasks=True
        )
        actor = ray.remote(self._actor).options(
            num_cpus=self.plan.cpus,
            num_gpus=self.plan.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": thread_environment(self._threads)},
        )
        return actor.remote(*self._arguments)

    def begin(self, index: int) -> Any:
        """Tells a worker what it is; the reference of its answer."""
        member = self.members[index]
        return self.workers[index].start.remote(self.config, member.domain, member.part)

    def end(self, index: int) -> None:
        """Ends a worker by its handle, and by its pid on this machine: a stopped process does not hear its handle."""
        ray.kill(self.workers[index], no_restart=True)
        if index < len(self.infos) and self.infos[index].host == socket.gethostname():
            end_process(self.infos[index].pid, self.infos[index].started)

    def close(self) -> None:
        """Ends all workers; those that answer end their logs first, the others are not waited for long."""
        with suppress(*LOST):
            ended = [worker.end.remote() for worker in self.workers]
            if ended:
                ray.wait(ended, num_returns=len(ended), timeout=GOODBYE_S)
        for worker in self.workers:
            ray.kill(worker, no_restart=True)
        for index in range(len(self.workers)):
            self.end(index)
        self.workers = []

    def _first_answers(self, references: list[Any], timeout_s: float) -> list[Any]:
        """Answers of all workers to their first call, with who is late in the message."""
        deadline = time.monotonic() + timeout_s
        pending = dict(zip(references, self.names, strict=True))
        while True:
            _, late = ray.wait(references, num_returns=len(references), timeout=POLL_S)
            left_s = deadline - time.monotonic()
            self.waiting = {pending[reference]: timeout_s - left_s for reference in late}
            if not late:
                break
            if left_s < 0:
                raise ClusterError(
                    f"Domain worker(s) {', '.join(self.waiting)} did not start within {timeout_s:g} s. Look at the "
                    "logs of the Ray session, or raise `cluster.start_timeout_s`."
                )
        answers = []
        for reference, name in pending.items():
            try:
                answers.append(ray.get(reference, timeout=POLL_S))
            except RayTaskError as error:
                if isinstance(error.cause, DifcError):
                    raise error.cause from error
                raise WorkerError(
                    f"Domain `{name}` could not start: {type(error.cause).__name__}: {error.cause}"
                ) from error
            except LOST as error:
                raise WorkerError(f"Domain `{name}`: its worker {describe(error)} while starting.") from error
        return answers

    # ---- asking ------------------------------------------------------------------------------------------------

    def ask(self, round_: Round, recovery: Recovery) -> list[Any]:
        """Asks the workers of a round and waits for all; replaces those that fail until all have answered.

        Returns:
            The answers in the order of the questions.
        """
        with self.recorder.span("ask"):
            failures = [failure for index in round_.questions if (failure := self._send(round_, index))]
        with self.recorder.span("wait"):
            while round_.pending or failures:
                if failures:
                    self._recover(round_, failures, recovery)
                failures = self.wait(round_, recovery) if round_.pending else []
        self.waiting = {}
        self.spans += spans_of(round_.replies.values())
        self.stragglers.add(round_.replies)
        return [round_.replies[index] for index in round_.questions]

    def wait(self, round_: Round, recovery: Recovery) -> list[Failure]:
        """One look at what has arrived; failures are collected, not raised, so that the root cause can be chosen.

        Raises:
            DifcError: one of them is fatal.
            WaitInterrupted: the run is to stop.
        """
        pending = round_.pending
        ready, late = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_S)
        failures = []
        for reference in ready:
            index = pending.pop(reference)
            try:
                round_.replies[index] = ray.get(reference, timeout=self.config.cluster.step_timeout_s)
            except LOST as error:
                failures.append(self.lost(index, error))
            except RayTaskError as error:
                failures.append(self.policy.raised(index, self.step, error))
        elapsed = time.monotonic() - round_.began
        self.waiting = {self.names[pending[reference]]: elapsed for reference in late}
        if late:
            self.policy.look_for_notices(at_least_s=LOOK_S)
            if round_.heeds_stop and self.stopping():
                late_names = ", ".join(self.waiting)
                raise WaitInterrupted(f"step {self.step}: no answer of {late_names} before the run was stopped")
            if elapsed > recovery.limit_s(round_, elapsed):
                reason = f"no answer within {elapsed:.0f} s (cluster.step_timeout_s)"
                failures += [Failure(index=pending.pop(reference), reason=reason) for reference in late]
        recovery.leave_group(failures)
        raise_fatal(failures)
        return failures

    def hear(self, index: int, reference: Any, limit_s: float, *, heeds_stop: bool = True) -> Any:
        """The answer of one worker, while the others wait; says who is late.

        Raises:
            GetTimeoutError: none within the limit.
            WaitInterrupted: the run is to stop.
        """
        started = time.monotonic()
        while not ray.wait([reference], timeout=POLL_S)[0]:
            elapsed = time.monotonic() - started
            self.waiting = {self.names[index]: elapsed}
            if heeds_stop and self.stopping():
                raise WaitInterrupted(f"step {self.step}: stopped while `{self.names[index]}` was being replaced")
            if elapsed > limit_s:
                raise ray.exceptions.GetTimeoutError(f"no answer within {limit_s:g} s")
        return ray.get(reference, timeout=POLL_S)

    def lost(self, index: int, error: BaseException) -> Failure:
        """The failure of a worker that is gone."""
        return self.policy.lost(index, self.infos[index], error)

    def _send(self, round_: Round, index: int) -> Failure | None:
        question = round_.questions[index]
        token = () if round_.tokens is None else (round_.tokens[index],)
        try:
            reference = getattr(self.workers[index], question.method).remote(*token, *question.arguments)
        except LOST as error:
            return self.lost(index, error)
        round_.pending[reference] = index
        return None

    def _recover(self, round_: Round, failures: Sequence[Failure], recovery: Recovery) -> None:
        """Lets the transport replace whoever failed, and asks the replacements."""
        for failure in recovery.recover(round_, failures):
            while failure.index in round_.questions and (again := self._send(round_, failure.index)):
                recovery.recover(round_, [again])
            round_.restart_clock()

    # ---- replacing ---------------------------------------------------------------------------------------------

    def replace(self, failure: Failure, restore: Callable[[int], None], *, heeds_stop: bool = True) -> None:
        """A new worker in the same bundle, brought to where the lost one was.

        Args:
            failure: of the worker.
            restore: lets the replacement, which was told what it is, catch up with the others.
            heeds_stop: whether waiting for it ends when the run is to stop.

        Raises:
            WorkerError: the domain has used up `cluster.max_worker_restarts`.
            ClusterError: the bundle's node is lost, and no other has room for it in time.
            StepRedo: the replacement answers with other bits.
        """
        index, reason, free = failure.index, failure.reason, failure.preempted
        node = self.infos[index].node
        limit = self.config.cluster.start_timeout_s
        while True:
            if not free:
                self.policy.charge(index, self.step, reason, self.infos[index].log)
            account, began = self.policy.account(index, free=free), time.monotonic()
            sentence = f"domain `{self.members[index].domain}`: {reason} at step {self.step}; {account}"
            free = False
            log.warning("%s", reason, extra={"event": "restart", **self.members[index].tags()})
            self.end(index)
            try:
                self.await_place(index, heeds_stop=heeds_stop)
                self.workers[index] = self.spawn(index)
                self.infos[index] = self.hear(index, self.begin(index), limit, heeds_stop=heeds_stop)
                restore(index)
            except LOST as error:
                reason = death_of(self.infos[index], error)
                continue
            except ray.exceptions.GetTimeoutError:
                reason = "its replacement did not answer in time"
                continue
            except RayTaskError as error:
                again = self.policy.raised(index, self.step, error)
                if again.fatal is not None:
                    raise again.fatal from error
                reason = again.reason
                continue
            except StepRedo:
                self._tell_replaced(index, sentence, began, node)
                raise
            self._tell_replaced(index, sentence, began, node)
            return

    def await_place(self, index: int, *, heeds_stop: bool = True) -> None:
        """Waits while the worker's bundle lies on a lost node; Ray moves it as soon as another has room.

        Raises:
            ClusterError: none has within `cluster.start_timeout_s`.
            WaitInterrupted: the run is to stop.
        """
        began, limit = time.monotonic(), self.config.cluster.start_timeout_s
        name = self.names[index]
        try:
            while not has_place(self.group, index + 1):
                elapsed = time.monotonic() - began
                lacks = wanted_and_free(self.plan.bundles[index + 1], self.plan.labels[index + 1])
                self.waiting, self.obstacle = {name: elapsed}, f"its node is lost; {lacks}"
                if heeds_stop and self.stopping():
                    raise WaitInterrupted(f"step {self.step}: stopped while `{name}` had no node")
                if elapsed > limit:
                    raise ClusterError(
                        f"A node must have room for domain `{name}` within {limit:g} s of the loss of its own at step "
                        f"{self.step}, got none ({lacks}). Add a node, or raise `cluster.start_timeout_s`, and "
                        "continue from the newest checkpoint with `resume=auto`."
                    )
                time.sleep(POLL_S)
        finally:
            self.obstacle = ""

    def _tell_replaced(self, index: int, sentence: str, began: float, node: str) -> None:
        info = self.infos[index]
        moved = "" if info.node == node else f", on another node ({info.host}/{info.node[:6]})"
        self.messages.append(f"{sentence} took {time.monotonic() - began:.1f} s{moved}")
        log.warning("%s", self.messages[-1], extra={"event": "replaced", "domain": self.members[index].domain})


def check_same_model(infos: Sequence[WorkerInfo]) -> None:
    """Whether all workers of a run have built the same model.

    Raises:
        ClusterError: one has built another than the first.
    """
    for info in infos[1:]:
        if different := infos[0].layout.mismatches(info.layout):
            raise ClusterError(
                f"All workers must build the same model. Domain `{info.domain}` on {info.host} built another than "
                f"`{infos[0].domain}` on {infos[0].host}: {'; '.join(different[:3])}. Install the same versions and "
                "plug-ins on every node."
            )
