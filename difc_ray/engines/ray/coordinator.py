"""The coordinator: one actor that owns the training state, asks the domain workers, and takes the steps."""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import ray
from ray.util.placement_group import PlacementGroup

from difc_ray.actor_logs import ActorLog, Who, begin_log, end_log, now_at, place_of, reports_errors
from difc_ray.config import Config, import_plugins, run_folder
from difc_ray.determinism import pin_threads
from difc_ray.engines.ray.collective import CollectiveTransport
from difc_ray.engines.ray.gauges import StepGauges
from difc_ray.engines.ray.object_store import ObjectStoreTransport
from difc_ray.engines.ray.planning import PlacementPlan
from difc_ray.engines.ray.pool import WorkerPool
from difc_ray.engines.ray.replica import ReplicaWorker
from difc_ray.engines.ray.rpc import StateArrays, StepRedo, WaitInterrupted
from difc_ray.engines.ray.transport import Transport, TransportChoice
from difc_ray.engines.ray.worker import WorkerInfo, session_logs
from difc_ray.errors import DifcError
from difc_ray.files import start_of_this
from difc_ray.step.coordinator import GlobalStep, StepRecord
from difc_ray.step.evaluation import SplitMetrics
from difc_ray.step.worker import ModelState
from difc_ray.tracing import Span, traced_steps

log = logging.getLogger("difc_ray")


@dataclass(frozen=True, kw_only=True)
class Advance:
    """Answer to a request for steps: what was done, what was noticed, and what ended it early."""

    records: list[StepRecord] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    restarts: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    error: DifcError | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """Answer to a request for metrics: none if it was interrupted; what was noticed; restarts of the run so far."""

    metrics: list[SplitMetrics]
    messages: list[str]
    restarts: dict[str, int]


@reports_errors
class Coordinator:
    """Owns the training state; wrapped in ``ray.remote`` with two concurrency slots, one of them for :meth:`stop`.

    Args:
        group: the placement group.
        plan: resources of the workers.
        threads: threads of this and every worker process.
        search_path: folders from which plug-ins may come.
        choice: how rows travel.
    """

    def __init__(
        self,
        group: PlacementGroup,
        plan: PlacementPlan,
        threads: int,
        search_path: list[str],
        choice: TransportChoice,
    ) -> None:
        pin_threads(threads)
        sys.path.extend(folder for folder in search_path if folder not in sys.path)
        self.threads = threads
        self.stopping = threading.Event()
        self.transport: Transport
        stop = self.stopping.is_set
        if choice.kind == "collective":
            arguments = (choice.backend,)
            self.pool = WorkerPool(group, plan, threads, search_path, stop, ReplicaWorker, arguments)
            self.transport = CollectiveTransport(self.pool, choice.backend)
        else:
            self.pool = WorkerPool(group, plan, threads, search_path, stop)
            self.transport = ObjectStoreTransport(self.pool)
        self.gauges = StepGauges()
        self.log: ActorLog | None = None

    def start(self, config: Config, run: str, arrays: StateArrays) -> list[WorkerInfo]:
        """Starts a run: its workers, and its state. A later run may start on the same actors.

        Args:
            config: the run's configuration.
            run: the run's identity.
            arrays: where to start.

        Raises:
            ClusterError, WorkerError, DataError: a worker could not start.
        """
        self.stopping.clear()
        import_plugins(config.plugins)
        end_log(self.log)
        self.log = begin_log(
            run_folder(config),
            Who(run=str(config.name), actor="coordinator"),
            config.model_dump(mode="json"),
            debug=config.log_level == "debug",
            elsewhere=session_logs(),
        )
        log.info("%s, %d workers", type(self.transport).__name__, len(self.pool.plan.owners) - 1,
                 extra={"event": "started"})  # fmt: skip
        infos = self.pool.start(config, run)
        state, store = self.transport.take_over(config, arrays)
        self.step = GlobalStep(config, infos[0].layout, state, store)
        self.pool.recorder, self.pool.spans = self.step.recorder, []
        self.traced = traced_steps(config.profile, arrays.step, config.steps)
        self.gauges.begin(run)
        return infos

    def advance(self, n: int) -> Advance:
        """Takes up to n steps; fewer when :meth:`stop` was called or an error ended them."""
        pin_threads(self.threads)  # this thread of the actor, too
        records: list[StepRecord] = []
        error = None
        while len(records) < n and not self.stopping.is_set() and error is None:
            try:
                records.append(self._take())
                self.gauges.set(records[-1], self.pool.policy.restarts)
            except WaitInterrupted as interruption:
                self.pool.messages.append(str(interruption))
                break
            except DifcError as raised:
                log.error("%s", raised, exc_info=True, extra={"event": "error"})
                error = raised
        spans, self.pool.spans = [*self.step.recorder.take(), *self.pool.spans], []
        restarts = dict(self.pool.policy.restarts)
        return Advance(records=records, messages=self._messages(), restarts=restarts, spans=spans, error=error)

    def _take(self) -> StepRecord:
        """One step with its times; repeated by everybody if a replacement's bits differ."""
        number, recorder = self.step.state.step, self.step.recorder
        while True:
            started = time.perf_counter()
            recorder.follow(number, self.transport.attempt, on=number in self.traced)
            now_at(number, self.transport.attempt)
            try:
                with recorder.span("step"):
                    record = self.step.take(self.transport)
            except StepRedo as redo:
                why = str(redo) or "a worker was replaced"
                log.warning("%s: all repeat step %d", why, number, extra={"event": "redo"})
                if str(redo):
                    self.pool.messages.append(str(redo))
                self.transport.attempt += 1
                continue
            total, compute = time.perf_counter() - started, self.transport.compute_s
            self._tell(record)
            if number + 1 == self.traced.stop:
                self.transport.settle()
            own = max(0.0, record.seconds.get("coordinator", 0.0) - self.transport.moving_s)
            rest = {"step": total, "compute": compute, "transport": max(0.0, total - compute - own)}
            seconds = {**record.seconds, "coordinator": own, **rest}
            return replace(record, seconds=seconds, sent_bytes=tuple(self.transport.sent_bytes))

    def _tell(self, record: StepRecord) -> None:
        """What is to be said of a step: that it was skipped, and who is slow."""
        if record.skipped:
            log.warning("%s", record.skipped, extra={"event": "step skipped"})
        for index, sentence in self.pool.stragglers.end().items():
            log.warning("%s", sentence, extra={"event": "slow", **self.pool.members[index].tags()})
            self.pool.messages.append(sentence)
        log.debug("taken", extra={"event": "step"})

    def stop(self) -> None:
        """Lets :meth:`advance` return after the step in hand."""
        self.stopping.set()

    def process(self) -> tuple[str, int, float, str]:
        """Host, process and its start of this actor, and its log, if that is not in the run's folder."""
        return socket.gethostname(), os.getpid(), start_of_this(), place_of(self.log)

    def status(self) -> tuple[int, dict[str, float], str]:
        """The step in hand, the domains that have not answered yet with their seconds, and what keeps them."""
        step = self.step.state.step if hasattr(self, "step") else 0
        return step, dict(self.pool.waiting), self.pool.obstacle

    def snapshot(self) -> StateArrays:
        """The training state between two steps."""
        return self.transport.arrays_of(self.step.state)

    def evaluate(self, jobs: Sequence[tuple[str, str]], state: ModelState | None) -> Evaluated:
        """Metrics of the current state (or the given one) for (domain, split) pairs, and what was noticed meanwhile.

        No metrics when :meth:`stop` was called before all had answered.
        """
        pin_threads(self.threads)
        reference = ray.put(self.step.store.model_state() if state is None else state)
        try:
            with self.step.recorder.span("evaluation"):
                metrics = self.transport.evaluate(reference, jobs)
        except WaitInterrupted as interruption:
            metrics = []
            self.pool.messages.append(str(interruption))
        return Evaluated(metrics=metrics, messages=self._messages(), restarts=dict(self.pool.policy.restarts))

    def _messages(self) -> list[str]:
        """What was noticed since it was last told."""
        messages, self.pool.messages = self.pool.messages, []
        return messages

    def close(self) -> None:
        """Ends the workers."""
        self.stopping.set()
        self.pool.close()
        end_log(self.log)
        self.log = None
