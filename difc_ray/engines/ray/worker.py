"""The domain worker: one source domain, one process, the worker's half of a step."""

from __future__ import annotations

import logging
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch

from difc_ray.actor_logs import ActorLog, Who, begin_log, end_log, now_at, place_of, reports_errors
from difc_ray.config import Config, import_plugins, run_folder
from difc_ray.determinism import pin_threads
from difc_ray.files import start_of_this
from difc_ray.objectives import Vectors
from difc_ray.objectives.losses import Confusion
from difc_ray.step.evaluation import SplitMetrics, evaluate_state
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, ModelState, Products, Rows, Statistics, Token
from difc_ray.vectors import ParameterLayout

log = logging.getLogger("difc_ray")


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """Who a domain worker is, for checks before the first step and for messages."""

    domain: str
    pid: int
    started: float
    host: str
    node: str
    device: str
    layout: ParameterLayout
    log: str
    address: str
    away: str = ""


@reports_errors
class DomainWorker:
    """Holds one source domain and answers with statistics and rows; wrapped in ``ray.remote`` where it is started.

    Single-threaded and without training state: what a replacement needs is the configuration and the next message.

    Args:
        threads: threads of this process.
        search_path: folders of the driver from which plug-ins may come.
    """

    def __init__(self, threads: int, search_path: list[str]) -> None:
        self.threads, self.search_path = threads, search_path
        self._started = False
        self.log: ActorLog | None = None

    def start(self, config: Config, domain: str, part: int = 0) -> WorkerInfo:
        """Loads plug-ins, data and model of a run; a later run may start on the same worker.

        Apart from the constructor, so that an error arrives as itself.

        Args:
            config: the run's configuration.
            domain: the source domain.
            part: which part of its batch, where several workers divide it.
        """
        pin_threads(self.threads)
        sys.path.extend(folder for folder in self.search_path if folder not in sys.path)
        import_plugins(config.plugins)
        self.end()
        number = part + 1 if config.cluster.replicas > 1 else None
        who = Who(run=str(config.name), actor="worker", domain=domain, part=number)
        self.log = begin_log(
            run_folder(config),
            who,
            config.model_dump(mode="json"),
            debug=config.log_level == "debug",
            elsewhere=session_logs(),
        )
        log.info("domain `%s`", domain, extra={"event": "started"})
        model, loss = model_of(config)
        self.config, self.domain = config, domain
        if self._started:
            self.step.close()
        self._started = True
        self.step: LocalStep = LocalStep(
            config, load_domain(config, domain), model, loss, assigned_device(), part=part, rows_at=self.rows_at()
        )
        context = ray.get_runtime_context()
        return WorkerInfo(
            domain=domain,
            pid=os.getpid(),
            started=start_of_this(),
            host=socket.gethostname(),
            node=context.get_node_id(),
            device=str(self.step.device),
            layout=self.step.layout,
            log=worker_log(),
            address=ray.util.get_node_ip_address(),
            away=place_of(self.log),
        )

    def rows_at(self) -> torch.device | None:
        """Where rows are kept; None: they are sent to the coordinator."""
        return None

    def statistics(self, token: Token, state: ModelState) -> Statistics:
        """First answer of a step."""
        now_at(token.step, token.attempt)
        log.debug("asked for its statistics", extra={"event": "step"})
        return self.step.statistics(state, token)

    def exchange(self, token: Token, number: int, broadcast: Vectors) -> Statistics:
        """A later exchange of the step in hand."""
        return self.step.exchange(token, number, broadcast)

    def rows(self, token: Token, cotangent: Vectors) -> Rows:
        """The rows of the step in hand."""
        return self.step.rows(token, cotangent)

    def products(self, token: Token, vectors_VS: np.ndarray) -> Products:
        """Products of the head's Hessian of the step in hand with vectors."""
        return self.step.products(token, vectors_VS)

    def confusion(self, state: ModelState, shard: int, shards: int) -> Confusion:
        """How sure a state is of a share of the target's images."""
        return self.step.confusion(state, shard, shards)

    def evaluate(self, state: ModelState, domain: str, split: str) -> SplitMetrics:
        """Metrics of a state on a split of this domain, or of one loaded for the purpose (the target)."""
        with self.step.recorder.span("evaluation"):
            examples = self.step.domain if domain == self.domain else load_domain(self.config, domain)
            return evaluate_state(self.step, state, examples, split)

    def end(self) -> None:
        """The last line of the log of the run that this worker serves, if it serves one."""
        end_log(self.log)
        self.log = None


def assigned_device() -> torch.device:
    """The GPU that Ray gave this actor, else the CPU (never a GPU that merely happens to be visible)."""
    return torch.device("cuda:0" if ray.get_gpu_ids() and torch.cuda.is_available() else "cpu")


def session_logs() -> Path:
    """The folder of what the processes of this Ray session print."""
    return Path(worker_log()).parent


def worker_log() -> str:
    """The file that holds what this process prints (Ray redirects every worker's streams to one)."""
    try:
        return os.readlink("/proc/self/fd/2")
    except OSError:
        return "the worker's .err file in the logs folder of the Ray session"
