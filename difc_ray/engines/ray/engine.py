"""The driver's side of a Ray run: connect, place, start the coordinator, and talk to it in short calls."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from difc_ray.config import Config
from difc_ray.determinism import thread_environment, threads_for
from difc_ray.engines.ray.coordinator import Advance, Coordinator, Evaluated
from difc_ray.engines.ray.nodes import LOOK_S, draining
from difc_ray.engines.ray.placement import cluster_nodes, connect, nodes_of, release, reserve
from difc_ray.engines.ray.planning import members_of, node_names, plan_for
from difc_ray.engines.ray.pool import POLL_S
from difc_ray.engines.ray.preflight import check_nodes, memory_notices
from difc_ray.engines.ray.processes import LOST, Head, describe, end_process, search_path
from difc_ray.engines.ray.rpc import StateArrays
from difc_ray.engines.ray.transport import TransportChoice, check_backend, choose_transport
from difc_ray.errors import ClusterError, DifcError, WorkerError
from difc_ray.step.coordinator import StepRecord, TrainState
from difc_ray.step.evaluation import SplitMetrics
from difc_ray.step.worker import ModelState
from difc_ray.tracing import Span

log = logging.getLogger("difc_ray")

LATE_S = 20.0
"""After this long without an answer the display names who is late."""

STOP_S = 20.0
"""How long a stopped run waits for the step in hand before it takes the last checkpoint as its end."""


class RayEngine:
    """Training on Ray: a coordinator actor and the worker actors of the source domains in one placement group.

    Args:
        config: the run's configuration.
        run: the run's identity.
        interrupted: whether the run is to stop.
        notice: where to put one-line messages.
    """

    def __init__(
        self, config: Config, run: str, interrupted: Callable[[], bool], notice: Callable[[str], None]
    ) -> None:
        self.config, self.run, self.interrupted, self.notice = config, run, interrupted, notice
        self.restarts: dict[str, int] = {}
        self.facts: dict[str, str] = {"engine": "ray"}
        self.spans: list[Span] = []
        self._coordinator: Any = None
        self._group: Any = None
        self._owns_group = self._owns_ray = False
        self._error: DifcError | None = None
        self._head: Head | None = None
        self._process, self._deaf = ("", 0, 0.0, ""), False
        self._looked, self._going = 0.0, set[str]()

    def connect(self) -> None:
        """Reaches a cluster and checks that it has what the run needs; starts nothing yet.

        Raises:
            ClusterError: see :mod:`difc_ray.engines.ray.placement` and :mod:`difc_ray.engines.ray.preflight`.
        """
        self._owns_ray = not ray.is_initialized()  # also if a signal ends the next line
        connect(self.config)
        self._head = Head.of_ours() if self._owns_ray else None
        self.nodes = cluster_nodes()
        self.plan = plan_for(self.config, self.nodes)
        if ray.util.get_current_placement_group() is None:  # a trial's nodes were looked at when its sweep began
            check_nodes(self.config, self.plan, self.nodes)
        self.threads = threads_for(self.plan.cpus)
        self.facts |= {"cpus_per_worker": f"{self.plan.cpus:g}", "gpus_per_worker": f"{self.plan.gpus:g}",
                       "threads": str(self.threads), "ray": ray.__version__}  # fmt: skip

    def start(self, state: TrainState) -> None:
        """Reserves the placement group, starts all actors, hands over the state.

        Raises:
            ClusterError: resources were not granted, or an actor did not start in time.
        """
        check_backend(self.config, self.plan)
        self._group, self._owns_group = reserve(self.config, self.plan, self.interrupted, self.notice)
        nodes = len(set(nodes_of(self._group)))
        transport = choose_transport(self.config, self.plan, state.theta_P.numel(), nodes)
        self._tell_transport(transport)
        self._tell_plan(state.theta_P.numel())
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=0, placement_group_capture_child_tasks=False
        )
        actor = ray.remote(Coordinator).options(
            num_cpus=self.plan.cpus,
            num_gpus=0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": thread_environment(self.threads)},
        )
        self._coordinator = actor.remote(self._group, self.plan, self.threads, search_path(), transport)
        self.begin(self.config, self.run, state)

    def _tell_transport(self, transport: TransportChoice) -> None:
        """How rows travel, for the run's log and its tags; shown where that was not the usual."""
        self.facts["transport"] = str(transport)
        text = f"transport: {transport}, {transport.why}"
        if transport.kind == "collective":
            self.notice(text)
        else:
            log.info("%s", text)

    def _tell_plan(self, size: int) -> None:
        """Where the processes of the run live, for the run's log and its tags; shown where it could be elsewhere."""
        for message in memory_notices(size, len(self.plan.owners) - 1):
            self.notice(message)
        known = {node.id: node for node in (*self.nodes, *cluster_nodes())}  # one may have come since
        names = node_names([*known.values()])
        placed = list(zip(self.plan.owners, [names[node] for node in nodes_of(self._group)], strict=True))
        lives = [f"{owner}@{node}" for owner, node in placed]
        owners_at = {node: [owner for owner, at in placed if at == node] for _, node in placed}
        self.facts |= {"strategy": self.config.cluster.strategy, "placement": ", ".join(lives),
                       "bundles": json.dumps(list(self.plan.bundles))}  # fmt: skip
        text = f"plan: {self.plan.describe(owners_at)}"
        if len(self.nodes) > 1 or self.plan.named or self.plan.idle_gpus:
            self.notice(text)
        else:
            log.info("%s", text)

    def begin(self, config: Config, run: str, state: TrainState) -> None:
        """Starts a run on the actors that :meth:`start` made: again and again, if their resources fit.

        Args:
            config: a configuration with as many sources.
            run: the run's identity.
            state: where to start.
        """
        self.config, self.run, self._error, self.spans = config, run, None, []
        infos = self._call("start", config, run, StateArrays.of(state))
        self._process = self._call("process")
        places = {self._process[3]: self._process[0], **{info.away: info.host for info in infos}}
        for place, host in places.items():
            if place:
                log.info("an actor does not see the run's folder: its log is %s on %s", place, host)
        self.facts["devices"] = ",".join(sorted({info.device for info in infos}))
        self.facts["nodes"] = str(len({info.node for info in infos}))
        host, pid, *_ = self._process
        workers = zip(members_of(config), infos, strict=True)
        lives = [("coordinator", pid, host), *((str(member), info.pid, info.host) for member, info in workers)]
        log.info("processes: %s", ", ".join(f"{name} {pid} on {host}" for name, pid, host in lives))

    def advance(self, n: int) -> list[StepRecord]:
        """Up to n steps; fewer when the run is to stop. Errors come after the records that precede them.

        Raises:
            WorkerError, NumericError, DataError: what ended training.
        """
        if self._error is not None:
            raise self._error
        answer: Advance = self._call("advance", n)
        for message in answer.messages:
            self.notice(message)
        self.restarts = answer.restarts
        self.spans += answer.spans
        self._error = answer.error
        if answer.error is not None and not answer.records:
            raise answer.error
        return answer.records

    def warned(self) -> str:
        """Which nodes of this run will be taken away, said once of each, with what they carry; else empty.

        Looks every :data:`LOOK_S` seconds at most.
        """
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return ""
        self._looked = now
        going = {node: when for node, when in draining().items() if node not in self._going}
        if not going:
            return ""
        self._going |= set(going)
        placed = nodes_of(self._group)
        sentences = []
        for node, when in going.items():
            if carried := [owner for owner, at in zip(self.plan.owners, placed, strict=True) if at == node]:
                deadline = f" at {when}" if when else ""
                ends = " (the run ends with it, and `resume=auto` continues it)" if "coordinator" in carried else ""
                sentences.append(f"node {node[:6]} will be taken away{deadline}, with {', '.join(carried)}{ends}")
        return "; ".join(sentences)

    def snapshot(self) -> TrainState:
        """A copy of the training state."""
        arrays: StateArrays = self._call("snapshot")
        return arrays.to_state()

    def evaluate(self, jobs: Sequence[tuple[str, str]], state: ModelState | None = None) -> list[SplitMetrics]:
        """Metrics of the current or a given state for (domain, split) pairs, in their order; none when interrupted."""
        answer: Evaluated = self._call("evaluate", list(jobs), state)
        for message in answer.messages:
            self.notice(message)
        self.restarts = answer.restarts
        return answer.metrics

    def close(self) -> None:
        """Ends every actor, gives the placement group back, leaves Ray if this engine joined it."""
        if self._head is not None and self._head.gone():
            self._coordinator = self._group = None
            self._head.end()
        if ray.is_initialized() and self._coordinator is not None:
            try:
                ray.get(self._coordinator.close.remote(), timeout=0.0 if self._deaf else 5.0)
            except (*LOST, ray.exceptions.GetTimeoutError, RayTaskError):
                pass  # it is ended by its handle below, and its workers end with their owner
            ray.kill(self._coordinator, no_restart=True)
            if self._process[0] == socket.gethostname():
                end_process(*self._process[1:3])  # a stopped process does not hear its handle
            self._coordinator = None
        if ray.is_initialized() and self._group is not None and self._owns_group:
            release(self._group)
            self._group = None
        if self._owns_ray:
            ray.shutdown()

    def _call(self, method: str, *arguments: Any) -> Any:
        """A call to the coordinator that hears signals, names who is late, and never waits without end."""
        reference = getattr(self._coordinator, method).remote(*arguments)
        started = told_at = heard_at = time.monotonic()
        stopped_at = 0.0
        limits = self.config.cluster
        limit = limits.start_timeout_s if method == "start" else limits.step_timeout_s
        while True:
            ready, _ = ray.wait([reference], timeout=POLL_S)
            if ready:
                return self._answer(reference)
            now = time.monotonic()
            if self._head is not None and self._head.gone():
                raise ClusterError(
                    "Ray must be there for the whole run, got the end of its head process (this machine). Continue "
                    "from the newest checkpoint with `resume=auto`."
                )
            if self.interrupted() and method == "start":
                self._deaf = True  # perhaps its process is not even there yet
                raise ClusterError("The actors were still starting.")
            if self.interrupted() and not stopped_at:
                stopped_at = now
                self._coordinator.stop.remote()
            if stopped_at and now - stopped_at > STOP_S:
                raise WorkerError(f"The coordinator did not answer within {STOP_S:g} s of the signal.")
            if now - told_at > min(LATE_S, limit):
                told_at = now
                if self._tell_who_is_late(method, now - started):
                    heard_at = now
                elif now - heard_at > limit:
                    self._deaf = True
                    raise ClusterError(
                        f"The coordinator has not answered for {now - heard_at:.0f} s (`{method}`, limit {limit:g} s). "
                        "Continue from the newest checkpoint with `resume=auto`."
                    )

    def _answer(self, reference: Any) -> Any:
        try:
            return ray.get(reference, timeout=60.0)
        except RayTaskError as error:
            if isinstance(error.cause, DifcError):
                raise error.cause from error
            raise
        except LOST as error:
            raise ClusterError(
                f"The coordinator {describe(error)}. Continue from the newest checkpoint with `resume=auto`."
            ) from error

    def _tell_who_is_late(self, method: str, seconds: float) -> bool:
        """Names who is late; whether the coordinator itself still answers."""
        try:
            step, waiting, obstacle = ray.get(self._coordinator.status.remote(), timeout=2.0)
        except (*LOST, ray.exceptions.GetTimeoutError, RayTaskError):
            self.notice(f"{method}: waiting {seconds:.0f} s for the coordinator, which does not answer")
            return False
        late = ", ".join(f"`{name}` {since:.0f} s" for name, since in waiting.items()) or "the coordinator itself"
        self.notice(f"{method} at step {step}: waiting {seconds:.0f} s for {late}{f': {obstacle}' if obstacle else ''}")
        return True
