"""Asks domain workers through Ray's object store, and replaces those that die or hang.

One broadcast is one object; answers are flat NumPy arrays that arrive as views of the store. A worker that is lost in
the middle of a step is replaced, repeats its answers to that step, which must equal the lost ones bit for bit, and is
then asked the question that stayed open. If they differ (other hardware), :class:`StepRedo` makes everybody repeat the
step.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from difc_ray.config import Config
from difc_ray.determinism import thread_environment
from difc_ray.distributed.exchange import Question, StepRedo, WaitInterrupted, check_same_model
from difc_ray.distributed.planning import Plan
from difc_ray.distributed.processes import LOST, Failure, describe, end_process
from difc_ray.distributed.worker import DomainWorker, WorkerInfo
from difc_ray.errors import ClusterError, DifcError, WorkerError
from difc_ray.local_step import ModelState, Products, Rows, Statistics, Token
from difc_ray.losses import Confusion
from difc_ray.objectives import Vectors

POLL_S = 0.25
"""How often a wait looks at deadlines and at whether it is interrupted."""


class ObjectStoreDomains:
    """The source domains as actors; answers come in the order of the configuration, whatever the order of arrival.

    Args:
        group: the placement group; bundle 0 is the coordinator's, bundle 1 + e that of domain e.
        plan: resources of each worker.
        threads: threads of each worker process.
        search_path: folders from which plug-ins may come.
    """

    def __init__(self, group: PlacementGroup, plan: Plan, threads: int, search_path: list[str]) -> None:
        self.group, self.plan, self.threads, self.search_path = group, plan, threads, search_path
        self.workers: list[Any] = []
        self.infos: list[WorkerInfo] = []
        self.messages: list[str] = []
        self.waiting: dict[str, float] = {}
        self.compute_s = 0.0
        self.attempt = 0
        self.stop_waiting: Callable[[], bool] = lambda: False

    # ---- starting -------------------------------------------------------------------------------------------------

    def start(self, config: Config, run: str) -> list[WorkerInfo]:
        """Starts a run: all workers (those there are serve again), their data and their models.

        Args:
            config: the run's configuration.
            run: the run's identity, part of every token.

        Raises:
            ClusterError: a worker did not come up in time, or built another model than the first.
        """
        self.config, self.run, self.names = config, run, config.sources
        self.restarts = dict.fromkeys(self.names, 0)
        self._step = 0
        self._tokens: list[Token] = []
        self._asked: list[list[Question]] = [[] for _ in self.names]
        self._answers: list[list[Statistics]] = [[] for _ in self.names]
        self._errors: dict[tuple[int, int], str] = {}
        if len(self.workers) != len(self.names):
            self.close()
            self.workers = [self._spawn(index) for index in range(len(self.names))]
        started = [worker.start.remote(config, name) for worker, name in zip(self.workers, self.names, strict=True)]
        self.infos = self._collect(started, config.cluster.start_timeout_s)
        check_same_model(self.infos)
        return self.infos

    def _spawn(self, index: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=index + 1, placement_group_capture_child_tasks=True
        )
        actor = ray.remote(DomainWorker).options(
            num_cpus=self.plan.cpus,
            num_gpus=self.plan.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": thread_environment(self.threads)},
        )
        return actor.remote(self.threads, self.search_path)

    # ---- one step (the Domains interface of global_step) ----------------------------------------------------------

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains."""
        self._step = step
        self.compute_s = 0.0
        self._tokens = [Token(run=self.run, attempt=self.attempt, step=step, domain=name) for name in self.names]
        self._asked = [[] for _ in self.names]
        self._answers = [[] for _ in self.names]
        reference = ray.put(state)
        found: list[Statistics] = self._ask([Question(method="statistics", arguments=(reference,)) for _ in self.names])
        return found

    def exchange(self, step: int, number: int, broadcast: Vectors) -> list[Statistics]:
        """Answers of all domains to one broadcast."""
        found: list[Statistics] = self._ask(
            [Question(method="exchange", arguments=(number, broadcast)) for _ in self.names]
        )
        return found

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """Rows of all domains, each for its own cotangents."""
        found: list[Rows] = self._ask([Question(method="rows", arguments=(own,)) for own in cotangents])
        return found

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Products of every domain's head Hessian with the same vectors."""
        found: list[Products] = self._ask([Question(method="products", arguments=(vectors_VS,)) for _ in self.names])
        return found

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """How sure the model is of the target's images, of which every domain looks at a share.

        A worker that dies is replaced, and its share is looked at again.
        """
        self._step = step
        reference, shards = ray.put(state), len(self.names)
        asked = [Question(method="confusion", arguments=(reference, shard, shards)) for shard in range(shards)]
        self._asked = [[] for _ in self.names]
        found: list[Confusion] = self._ask_some(list(range(shards)), asked)
        return found

    def evaluate(self, reference: Any, jobs: Sequence[tuple[str, str]]) -> list[Any]:
        """Metrics of a state (an object reference) for (domain, split) pairs, in their order.

        A source is evaluated by its own worker, another domain by the first one. A worker that dies is replaced.
        """
        found: list[Any] = [None] * len(jobs)
        queues: list[list[int]] = [[] for _ in self.names]
        for position, (domain, _) in enumerate(jobs):
            queues[self.names.index(domain) if domain in self.names else 0].append(position)
        while any(queues):
            turn = [queue.pop(0) if queue else None for queue in queues]
            busy = [(index, position) for index, position in enumerate(turn) if position is not None]
            asked = [Question(method="evaluate", arguments=(reference, *jobs[position])) for _, position in busy]
            self._asked = [[] for _ in self.names]
            replies = self._ask_some([index for index, _ in busy], asked)
            for (_, position), reply in zip(busy, replies, strict=True):
                found[position] = reply
        return found

    # ---- asking and supervising -----------------------------------------------------------------------------------

    def _ask(self, questions: list[Question]) -> list[Any]:
        replies = self._ask_some(list(range(len(self.names))), questions)
        self.compute_s += max(reply.compute_s for reply in replies)
        for index, reply in enumerate(replies):
            self._check_token(index, reply.token)
            self._asked[index].append(questions[index])
            if isinstance(reply, Statistics):
                self._answers[index].append(reply)
        return replies

    def _ask_some(self, indices: list[int], questions: list[Question]) -> list[Any]:
        """Calls some workers, waits for all of them, and replaces those that fail until all have answered."""
        replies: dict[int, Any] = {}
        pending: dict[Any, int] = {}
        started = time.monotonic()
        by_index = dict(zip(indices, questions, strict=True))
        failures = [f for index in indices if (f := self._send(index, by_index[index], pending))]
        while pending or failures:
            for failure in self._root_cause_first(failures):
                self._replace(failure)
                while again := self._send(failure.index, by_index[failure.index], pending):
                    self._replace(again)
                started = time.monotonic()
            failures = self._wait(pending, replies, started)
        self.waiting = {}
        return [replies[index] for index in indices]

    def _send(self, index: int, question: Question, pending: dict[Any, int]) -> Failure | None:
        arguments = question.arguments
        if question.method not in ("evaluate", "confusion"):
            token = self._tokens[index]
            arguments = (arguments[0], token) if question.method == "statistics" else (token, *arguments)
        try:
            pending[getattr(self.workers[index], question.method).remote(*arguments)] = index
        except LOST as error:
            return Failure(index=index, reason=self._death(index, error))
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
                failures.append(Failure(index=index, reason=self._death(index, error)))
            except RayTaskError as error:
                failures.append(self._user_error(index, error))
        elapsed = time.monotonic() - started
        self.waiting = {self.names[pending[reference]]: elapsed for reference in late}
        if late and self.stop_waiting():
            raise WaitInterrupted(
                f"step {self._step}: no answer of {', '.join(self.waiting)} before the run was stopped"
            )
        if elapsed > self.config.cluster.step_timeout_s:
            for reference in late:
                index = pending.pop(reference)
                failures.append(
                    Failure(index=index, reason=f"no answer within {elapsed:.0f} s (cluster.step_timeout_s)")
                )
        return failures

    def _death(self, index: int, error: BaseException) -> str:
        """How a worker ended, with its process."""
        return f"worker process {self.infos[index].pid} {describe(error)}"

    def _user_error(self, index: int, error: RayTaskError) -> Failure:
        """An exception inside a worker: ours goes up as it is; another is tried once more in a fresh process."""
        cause = error.cause
        name = self.names[index]
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
        """Raises the first fatal failure: a user's own error explains the deaths around it, not the other way."""
        for failure in failures:
            if failure.fatal is not None:
                raise failure.fatal
        return failures

    def _check_token(self, index: int, token: Token) -> None:
        """An answer under another (run, attempt, step, domain) is never used."""
        assert token == self._tokens[index], f"stale answer {token}, expected {self._tokens[index]}"

    # ---- replacing ------------------------------------------------------------------------------------------------

    def _replace(self, failure: Failure) -> None:
        """A new worker in the same bundle, brought to where the lost one was in this step.

        Raises:
            WorkerError: the domain has used up `cluster.max_worker_restarts`.
            StepRedo: the replacement answers with other bits.
        """
        index, name, reason = failure.index, self.names[failure.index], failure.reason
        while True:
            allowed = self.config.cluster.max_worker_restarts
            if self.restarts[name] >= allowed:
                raise WorkerError(
                    f"Domain `{name}` failed at step {self._step} and has used its {allowed} restart(s): {reason}. "
                    f"Log: {self.infos[index].log}. Raise `cluster.max_worker_restarts`, or lower `batch_size` if the "
                    "node ran out of memory; the last checkpoint can be resumed."
                )
            self.restarts[name] += 1
            began = time.monotonic()
            self._end(index)
            try:
                self.workers[index] = self._spawn(index)
                self._replay(index)
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
                self._tell_restart(name, reason, began)
                raise
            self._tell_restart(name, reason, began)
            return

    def _tell_restart(self, name: str, reason: str, began: float) -> None:
        self.messages.append(
            f"domain `{name}`: {reason} at step {self._step}; restart {self.restarts[name]}/"
            f"{self.config.cluster.max_worker_restarts} took {time.monotonic() - began:.1f} s"
        )

    def _replay(self, index: int) -> None:
        """Lets a replacement repeat the answers of this step and compares them with the lost ones."""
        worker = self.workers[index]
        started = worker.start.remote(self.config, self.names[index])
        self.infos[index] = self._hear(index, started, self.config.cluster.start_timeout_s)
        if not self._tokens:
            return
        self.attempt += 1
        token = self._tokens[index] = replace(self._tokens[index], attempt=self.attempt)
        for question, lost in zip(self._asked[index], self._answers[index], strict=False):
            if question.method == "statistics":
                reference = worker.statistics.remote(question.arguments[0], token)
            else:
                reference = worker.exchange.remote(token, *question.arguments)
            if not self._hear(index, reference, self.config.cluster.step_timeout_s).same_as(lost):
                raise StepRedo(
                    f"domain `{self.names[index]}`: the replacement on {self.infos[index].host} answers step "
                    f"{self._step} with other bits than the worker it replaces; all domains repeat the step"
                )

    def _hear(self, index: int, reference: Any, limit_s: float) -> Any:
        """The answer of one worker, while the others wait; hears the end of the run, and says who is late.

        Raises:
            GetTimeoutError: none within the limit.
        """
        started = time.monotonic()
        while not ray.wait([reference], timeout=POLL_S)[0]:
            elapsed = time.monotonic() - started
            self.waiting = {self.names[index]: elapsed}
            if self.stop_waiting():
                raise WaitInterrupted(f"step {self._step}: stopped while `{self.names[index]}` was being replaced")
            if elapsed > limit_s:
                raise ray.exceptions.GetTimeoutError(f"no answer within {limit_s:g} s")
        return ray.get(reference, timeout=POLL_S)

    def _end(self, index: int) -> None:
        """Ends a worker by its handle, and by its pid on this machine: a stopped process does not hear its handle."""
        ray.kill(self.workers[index], no_restart=True)
        if index < len(self.infos) and self.infos[index].host == socket.gethostname():
            end_process(self.infos[index].pid)

    def close(self) -> None:
        """Ends all workers."""
        for worker in self.workers:
            ray.kill(worker, no_restart=True)
        for index in range(len(self.workers)):
            self._end(index)
        self.workers = []

    def _collect(self, references: list[Any], timeout_s: float) -> list[Any]:
        """Answers of all workers to their first call, with who is late in the message."""
        deadline = time.monotonic() + timeout_s
        pending = dict(zip(references, range(len(references)), strict=True))
        while pending:
            _, late = ray.wait(list(pending), num_returns=len(pending), timeout=POLL_S)
            self.waiting = {
                self.names[pending[reference]]: timeout_s - (deadline - time.monotonic()) for reference in late
            }
            if not late:
                break
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"Domain worker(s) {', '.join(self.waiting)} did not start within {timeout_s:g} s. Look at the "
                    "logs of the Ray session, or raise `cluster.start_timeout_s`."
                )
        self.waiting = {}
        answers = []
        for name, reference in zip(self.names, references, strict=True):
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
