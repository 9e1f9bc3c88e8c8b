"""Domain workers as actors: started where the plan says, heard, and ended."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from difc_ray.config import Config
from difc_ray.determinism import thread_environment
from difc_ray.engines.ray.planning import PlacementPlan, members_of
from difc_ray.engines.ray.processes import LOST, describe, end_process
from difc_ray.engines.ray.rpc import WaitInterrupted, check_same_model, say_goodbye
from difc_ray.engines.ray.stragglers import Stragglers
from difc_ray.engines.ray.worker import DomainWorker, WorkerInfo
from difc_ray.errors import ClusterError, DifcError, WorkerError
from difc_ray.tracing import Recorder, Span

POLL_S = 0.25
"""How often a wait looks at deadlines and at whether it is interrupted."""


class Actors:
    """One actor or several (`cluster.replicas`) for every source domain, in the order of the configuration.

    Args:
        group: the placement group; bundle 0 is the coordinator's, bundle 1 + i that of worker i.
        plan: resources of each worker.
        threads: threads of each worker process.
        search_path: folders from which plug-ins may come.
    """

    actor: type[DomainWorker] = DomainWorker
    """What is started for each."""

    actor_arguments: tuple[Any, ...] = ()
    """What its constructor takes besides threads and search path."""

    def __init__(self, group: PlacementGroup, plan: PlacementPlan, threads: int, search_path: list[str]) -> None:
        self.group, self.plan, self.threads, self.search_path = group, plan, threads, search_path
        self.workers: list[Any] = []
        self.infos: list[WorkerInfo] = []
        self.messages: list[str] = []
        self.waiting: dict[str, float] = {}
        self.obstacle = ""
        self.compute_s = self.moving_s = 0.0
        self.sent_bytes: list[int] = []
        self.attempt = 0
        self.recorder = Recorder("coordinator")
        self.spans: list[Span] = []
        self.stop_waiting: Callable[[], bool] = lambda: False

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
        self.restarts = dict.fromkeys(config.sources, 0)
        self._step = 0
        if len(self.workers) != len(self.members):
            self.close()
            self.workers = [self._spawn(index) for index in range(len(self.members))]
        started = [self._begin(index) for index in range(len(self.members))]
        self.infos = self._collect(started, config.cluster.start_timeout_s)
        check_same_model(self.infos)
        return self.infos

    def _begin(self, index: int) -> Any:
        """Tells a worker what it is; the reference of its answer."""
        member = self.members[index]
        return self.workers[index].start.remote(self.config, member.domain, member.part)

    def _spawn(self, index: int) -> Any:
        strategy = PlacementGroupSchedulingStrategy(
            placement_group=self.group, placement_group_bundle_index=index + 1, placement_group_capture_child_tasks=True
        )
        actor = ray.remote(self.actor).options(
            num_cpus=self.plan.cpus,
            num_gpus=self.plan.gpus,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy,
            runtime_env={"env_vars": thread_environment(self.threads)},
        )
        return actor.remote(self.threads, self.search_path, *self.actor_arguments)

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
        say_goodbye(self.workers)
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
