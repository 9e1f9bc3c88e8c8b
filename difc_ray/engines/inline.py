"""The whole algorithm in one process: the `inline` engine, and the oracle of the distributed one."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from difc_ray.config import Config
from difc_ray.determinism import automatic_cpus, pin_threads, threads_for, usable_cpus
from difc_ray.errors import DifcError
from difc_ray.objectives import Vectors
from difc_ray.objectives.losses import Confusion
from difc_ray.step.coordinator import GlobalStep, StepRecord, TrainState
from difc_ray.step.evaluation import SplitMetrics, evaluate_state
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, ModelState, Products, Rows, Statistics, Token
from difc_ray.tracing import Span, traced_steps

Answer = TypeVar("Answer", Statistics, Rows, Products)


class InlineDomains:
    """The source domains in this process, one after the other in the order of the configuration.

    Args:
        config: the run's configuration.
        run: the run's identity.
    """

    def __init__(self, config: Config, run: str) -> None:
        self.run = run
        self.steps = []
        for name in config.sources:
            model, loss = model_of(config)
            self.steps.append(LocalStep(config, load_domain(config, name), model, loss))
        self.compute_s = 0.0
        self.traced = False
        self.spans: list[Span] = []

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains."""
        self.compute_s = 0.0
        return self._timed([local.statistics(state, self._token(local, step)) for local in self.steps])

    def exchange(self, step: int, number: int, broadcasts: Sequence[Vectors]) -> list[Statistics]:
        """Answers of all domains, each to its own broadcast."""
        pairs = zip(self.steps, broadcasts, strict=True)
        return self._timed([local.exchange(self._token(local, step), number, own) for local, own in pairs])

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """Rows of all domains, each for its own cotangents."""
        pairs = zip(self.steps, cotangents, strict=True)
        return self._timed([local.rows(self._token(local, step), own) for local, own in pairs])

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Products of every domain's head Hessian with the same vectors."""
        return self._timed([local.products(self._token(local, step), vectors_VS) for local in self.steps])

    def close(self) -> None:
        """Ends the loader processes."""
        for local in self.steps:
            local.close()

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """How sure the model is of the target's images, of which every domain looks at a share."""
        return [local.confusion(state, number, len(self.steps)) for number, local in enumerate(self.steps)]

    def _timed(self, answers: list[Answer]) -> list[Answer]:
        self.compute_s += sum(answer.compute_s for answer in answers)
        self.spans += [span for answer in answers for span in answer.spans]
        return answers

    def _token(self, local: LocalStep, step: int) -> Token:
        return Token(run=self.run, attempt=0, step=step, domain=local.domain.name, traced=self.traced)


class InlineEngine:
    """Training without Ray: the same functions in the calling process.

    Args:
        config: the run's configuration.
        run: the run's identity.
        interrupted: whether the run is to stop.
        notice: where to put one-line messages.
    """

    def __init__(
        self, config: Config, run: str, interrupted: Callable[[], bool], notice: Callable[[str], None]
    ) -> None:
        self.config, self.run, self.interrupted = config, run, interrupted
        self.restarts = dict.fromkeys(config.sources, 0)
        self.facts: dict[str, str] = {"engine": "inline", "transport": "none"}
        self.spans: list[Span] = []
        self._error: DifcError | None = None

    def connect(self) -> None:
        """Pins this process to the threads that a worker of the Ray engine would have."""
        wanted = self.config.cluster.cpus_per_worker
        cpus = automatic_cpus(float(usable_cpus()), len(self.config.sources)) if wanted == "auto" else float(wanted)
        self.threads = threads_for(cpus)
        pin_threads(self.threads)
        self.facts["threads"] = str(self.threads)

    def start(self, state: TrainState) -> None:
        """Loads all domains and takes over the state."""
        self.domains = InlineDomains(self.config, self.run)
        self.step = GlobalStep(self.config, self.domains.steps[0].layout, state)
        self._traced = traced_steps(self.config.profile, state.step, self.config.steps)

    def advance(self, n: int) -> list[StepRecord]:
        """Up to n steps; fewer when the run is to stop."""
        if self._error is not None:
            raise self._error
        records: list[StepRecord] = []
        while len(records) < n and not self.interrupted():
            started = time.perf_counter()
            record = self._take(records)
            if record is None:
                break
            total, compute = time.perf_counter() - started, self.domains.compute_s
            parts = {"step": total, "compute": compute, "coordinator": total - compute, "transport": 0.0}
            records.append(replace(record, seconds={**record.seconds, **parts}))
        self.spans += [*self.step.recorder.take(), *self.domains.spans]
        self.domains.spans = []
        return records

    def _take(self, records: list[StepRecord]) -> StepRecord | None:
        """One step, or None where an error ended it after others; the error is raised by the next call."""
        number, recorder = self.step.state.step, self.step.recorder
        self.domains.traced = number in self._traced
        recorder.follow(number, on=self.domains.traced)
        try:
            with recorder.span("step"):
                return self.step.take(self.domains)
        except DifcError as error:
            if not records:
                raise
            self._error = error
            return None

    def warned(self) -> str:
        """Nobody takes this process away with notice."""
        return ""

    def snapshot(self) -> TrainState:
        """A copy of the training state."""
        return copy.deepcopy(self.step.state)

    def evaluate(self, jobs: Sequence[tuple[str, str]], state: ModelState | None = None) -> list[SplitMetrics]:
        """Metrics of the current or a given state for (domain, split) pairs, in their order; fewer when interrupted."""
        state = state or self.step.state.model_state()
        sources = {local.domain.name: local for local in self.domains.steps}
        metrics: list[SplitMetrics] = []
        for name, split in jobs:
            if self.interrupted():
                break
            local = sources.get(name, self.domains.steps[0])
            domain = local.domain if name in sources else load_domain(self.config, name)
            metrics.append(evaluate_state(local, state, domain, split))
        return metrics

    def close(self) -> None:
        """Ends the loader processes."""
        if hasattr(self, "domains"):
            self.domains.close()
