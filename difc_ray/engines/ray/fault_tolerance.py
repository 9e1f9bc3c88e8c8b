"""Domain workers asked and watched, and replaced when they die or hang, or when their node is lost.

What a replacement needs in order to go on is the affair of a transport: :meth:`Supervision.restore_replacement`.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayTaskError

from difc_ray.config import Config
from difc_ray.engines.ray.actors import POLL_S, Actors
from difc_ray.engines.ray.nodes import LOOK_S, draining, has_place, wanted_and_free
from difc_ray.engines.ray.processes import LOST, Failure, describe, root_cause_first
from difc_ray.engines.ray.rpc import (
    UNTIMELY,
    Question,
    StepRedo,
    WaitInterrupted,
    spans_of,
)
from difc_ray.engines.ray.worker import WorkerInfo
from difc_ray.errors import ClusterError, DifcError, WorkerError
from difc_ray.step.worker import Token

log = logging.getLogger("difc_ray")


class Supervision(Actors, ABC):
    """Actors that are asked: answers are waited for, and whoever is lost is replaced in its place in the step."""

    # ---- asking and watching -----------------------------------------------------------------------------------

    def start(self, config: Config, run: str) -> list[WorkerInfo]:
        """Starts a run, with no question open; see :meth:`Actors.start`."""
        self._tokens: list[Token] = []
        self._errors: dict[tuple[int, int], str] = {}
        self._looked, self._announced = 0.0, set[str]()
        return super().start(config, run)

    def _begin_step(self, step: int) -> None:
        """New tokens: no answer to an earlier question is used from here on."""
        self._step = step
        self.stragglers.begin()
        self.compute_s = self.moving_s = 0.0
        all_: dict[str, Any] = {"run": self.run, "attempt": self.attempt, "step": step, "traced": self.recorder.on}
        self._tokens = [Token(domain=member.domain, part=member.part, **all_) for member in self.members]

    def _ask_some(self, indices: list[int], questions: list[Question]) -> list[Any]:
        """Calls some workers, waits for all of them, and replaces those that fail until all have answered."""
        replies: dict[int, Any] = {}
        pending: dict[Any, int] = {}
        started = time.monotonic()
        by_index = dict(zip(indices, questions, strict=True))
        with self.recorder.span("ask"):
            failures = [f for index in indices if (f := self._send(index, by_index[index], pending))]
        with self.recorder.span("wait"):
            while pending or failures:
                for failure in self._recovered(self._root_cause_first(failures), pending, replies):
                    while again := self._send(failure.index, by_index[failure.index], pending):
                        self._recovered([again], pending, replies)
                    started = time.monotonic()
                failures = self._wait(pending, replies, started)
        self.waiting = {}
        self.spans += spans_of(replies.values())
        self.stragglers.add(replies)
        return [replies[index] for index in indices]

    def _send(self, index: int, question: Question, pending: dict[Any, int]) -> Failure | None:
        arguments = question.arguments
        if question.method not in UNTIMELY:
            token = self._tokens[index]
            arguments = (arguments[0], token) if question.method == "statistics" else (token, *arguments)
        try:
            pending[getattr(self.workers[index], question.method).remote(*arguments)] = index
        except LOST as error:
            return self._gone(index, error)
        return None

    def _wait(self, pending: dict[Any, int], replies: dict[int, Any], started: float) -> list[Failure]:
        """One look at what has arrived; failures are collected, not raised, so that the root cause can be chosen."""
        ready, late = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_S)
        failures = []
        for reference in ready:
            index = pending.pop(reference)
            try:
                replies[index] = ray.get(reference, timeout=self.config.cluster.step_timeout_s)
            except LOST as error:
                failures.append(self._gone(index, error))
            except RayTaskError as error:
                failures.append(self._user_error(index, error))
        elapsed = time.monotonic() - started
        self.waiting = {self.names[pending[reference]]: elapsed for reference in late}
        if late:
            self._look_for_notices(at_least_s=LOOK_S)
        if late and self.stop_waiting():
            raise WaitInterrupted(
                f"step {self._step}: no answer of {', '.join(self.waiting)} before the run was stopped"
            )
        if late and elapsed > self._limit_s(elapsed, replies):
            for reference in late:
                index = pending.pop(reference)
                failures.append(
                    Failure(index=index, reason=f"no answer within {elapsed:.0f} s (cluster.step_timeout_s)")
                )
        return failures

    def _limit_s(self, elapsed_s: float, replies: dict[int, Any]) -> float:
        """Seconds after which whoever has not answered is taken for lost.

        Args:
            elapsed_s: since the question.
            replies: of the others.
        """
        return self.config.cluster.step_timeout_s

    def _gone(self, index: int, error: BaseException) -> Failure:
        """A worker that was lost, and whether that was announced."""
        self._look_for_notices(at_least_s=0.0)
        announced = bool(getattr(error, "preempted", False)) or self.infos[index].node in self._announced
        return Failure(index=index, reason=self._death(index, error), preempted=announced)

    def _look_for_notices(self, *, at_least_s: float) -> None:
        """Remembers which nodes are to be taken away: one that is gone is no longer listed, however it was announced.

        Args:
            at_least_s: seconds since the last look, without which there is none.
        """
        now = time.monotonic()
        if now - self._looked >= at_least_s:
            self._looked = now
            self._announced |= set(draining())

    def _death(self, index: int, error: BaseException) -> str:
        """How a worker ended, with its process."""
        return f"worker process {self.infos[index].pid} {describe(error)}"

    def _user_error(self, index: int, error: RayTaskError) -> Failure:
        """An exception inside a worker: ours goes up as it is; another is tried once more in a fresh process."""
        cause = error.cause
        name = self.members[index].domain
        if isinstance(cause, DifcError):
            cause.add_note(str(error))  # the worker's traceback, for the run's log
            return Failure(index=index, reason=str(cause), fatal=cause)
        text = f"{type(cause).__name__}: {cause}"
        key = (index, self._step)
        if self._errors.get(key) == text:
            fatal = WorkerError(
                f"Domain `{name}`, step {self._step}: {text} (twice in a row, so it is not tried again). "
                "The traceback is in the run's `run.log`."
            )
            fatal.add_note(str(error))
            return Failure(index=index, reason=text, fatal=fatal)
        self._errors[key] = text
        return Failure(index=index, reason=text)

    def _root_cause_first(self, failures: list[Failure]) -> list[Failure]:
        """Raises the first fatal failure, if there is one."""
        return root_cause_first(failures)

    def _check_token(self, index: int, token: Token) -> None:
        """An answer under another (run, attempt, step, domain) is never used."""
        assert token == self._tokens[index], f"stale answer {token}, expected {self._tokens[index]}"

    # ---- replacing ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _recovered(self, failures: list[Failure], pending: dict[Any, int], replies: dict[int, Any]) -> list[Failure]:
        """Replaces the workers that failed; returns the failures whose question is to be asked again.

        Args:
            failures: of this look.
            pending: what has not been answered yet.
            replies: what has.
        """

    @abstractmethod
    def restore_replacement(self, index: int) -> None:
        """Lets a replacement, which was told what it is, catch up with the step in hand."""

    def _replace(self, failure: Failure) -> None:
        """A new worker in the same bundle, brought to where the lost one was in this step.

        Raises:
            WorkerError: the domain has used up `cluster.max_worker_restarts`.
            ClusterError: the bundle's node is lost, and no other has room for it in time.
            StepRedo: the replacement answers with other bits.
        """
        index, reason, free = failure.index, failure.reason, failure.preempted
        node = self.infos[index].node
        while True:
            if not free:
                self._charge(index, reason)
            began = time.monotonic()
            told = partial(self._tell_restart, index, reason, node, began, free)
            free = False
            log.warning("%s", reason, extra={"event": "restart", **self.members[index].tags()})
            self._end(index)
            try:
                self._await_place(index)
                self.workers[index] = self._spawn(index)
                self.infos[index] = self._hear(index, self._begin(index), self.config.cluster.start_timeout_s)
                self.restore_replacement(index)
            except LOST as error:
                reason = self._death(index, error)
                continue
            except ray.exceptions.GetTimeoutError:
                reason = "its replacement did not answer in time"
                continue
            except RayTaskError as error:
                again = self._user_error(index, error)
                if again.fatal is not None:
                    raise again.fatal from error
                reason = again.reason
                continue
            except StepRedo:
                told()
                raise
            told()
            return

    def _charge(self, index: int, reason: str) -> None:
        """Counts a restart of the domain.

        Raises:
            WorkerError: it has had as many as it may have.
        """
        name, allowed = self.members[index].domain, self.config.cluster.max_worker_restarts
        if self.restarts[name] >= allowed:
            raise WorkerError(
                f"Domain `{name}` failed at step {self._step} and has used its {allowed} restart(s): {reason}. "
                f"Log: {self.infos[index].log}. Raise `cluster.max_worker_restarts`, or lower `batch_size` if the "
                "node ran out of memory; the last checkpoint can be resumed."
            )
        self.restarts[name] += 1

    def _await_place(self, index: int) -> None:
        """Waits while the worker's bundle lies on a lost node; Ray moves it as soon as another has room.

        Raises:
            ClusterError: none has within `cluster.start_timeout_s`.
            WaitInterrupted: the run is to stop.
        """
        began, limit = time.monotonic(), self.config.cluster.start_timeout_s
        try:
            while not has_place(self.group, index + 1):
                elapsed = time.monotonic() - began
                self.waiting = {self.names[index]: elapsed}
                self.obstacle = f"its node is lost; {wanted_and_free(self.plan, index + 1)}"
                if self.stop_waiting():
                    raise WaitInterrupted(f"step {self._step}: stopped while `{self.names[index]}` had no node")
                if elapsed > limit:
                    raise ClusterError(
                        f"A node must have room for domain `{self.names[index]}` within {limit:g} s of the loss of its "
                        f"own at step {self._step}, got none ({wanted_and_free(self.plan, index + 1)}). Add a node, or "
                        "raise `cluster.start_timeout_s`, and continue from the newest checkpoint with `resume=auto`."
                    )
                time.sleep(POLL_S)
        finally:
            self.obstacle = ""

    def _tell_restart(self, index: int, reason: str, node: str, began: float, free: bool) -> None:
        name, info = self.members[index].domain, self.infos[index]
        count = f"restart {self.restarts[name]}/{self.config.cluster.max_worker_restarts}"
        if free:
            count = "its node was taken away with notice, which counts as no restart; placing it again"
        moved = "" if info.node == node else f", on another node ({info.host}/{info.node[:6]})"
        self.messages.append(
            f"domain `{name}`: {reason} at step {self._step}; {count} took {time.monotonic() - began:.1f} s{moved}"
        )
        log.warning("%s", self.messages[-1], extra={"event": "replaced", "domain": name})
