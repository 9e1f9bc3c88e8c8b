"""The loop that every engine shares: steps, evaluation, selection, checkpoints, records.

What the loop carries besides the training state (when it last evaluated, the best step so far, time spent) is
:class:`Progress`; both are in every checkpoint, so that a resumed run goes through the same states as one that was
never interrupted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from difc_ray.actor_logs import now_at
from difc_ray.config import Config
from difc_ray.errors import CheckpointError
from difc_ray.files import write_json
from difc_ray.runs.checkpoint import save
from difc_ray.runs.metrics_log import MetricsLog
from difc_ray.runs.profile import Profile
from difc_ray.runs.reading import read_checkpoint
from difc_ray.runs.selection import SELECTORS
from difc_ray.runs.state import Start, checkpoint_path, make_snapshot, model_state
from difc_ray.step.coordinator import StepRecord, TrainState
from difc_ray.step.evaluation import SplitMetrics, accuracies, named_metrics, worst_domain
from difc_ray.step.worker import ModelState
from difc_ray.tracing import Span
from difc_ray.tracking import Tracker

log = logging.getLogger("difc_ray")

CLASSES_TO_TRACK = 20
"""With more classes, the recall of each is in `summary.json` and not among the metrics of every evaluation."""

CHUNK_S = 0.5
"""Seconds of steps that the driver asks for at a time: the display and the signals live between two chunks."""


@runtime_checkable
class Engine(Protocol):
    """What the loop needs of an engine."""

    facts: dict[str, str]
    restarts: dict[str, int]
    spans: list[Span]

    def advance(self, n: int) -> list[StepRecord]:
        """Up to n steps."""

    def warned(self) -> str:
        """What will be taken away soon, said once of each: a reason to write a checkpoint; empty: nothing new."""

    def snapshot(self) -> TrainState:
        """A copy of the training state."""

    def evaluate(self, jobs: Sequence[tuple[str, str]], state: ModelState | None = None) -> list[SplitMetrics]:
        """Metrics of the current or a given state; fewer than asked for when the run is to stop."""


@runtime_checkable
class Display(Protocol):
    """Where a person sees the run."""

    def phase(self, text: str) -> None:
        """The run is busy with something else than steps."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Steps were taken."""

    def evaluation(self, step: int, metrics: Sequence[SplitMetrics], score: float, best: bool) -> None:
        """The run was evaluated."""

    def notice(self, message: str) -> None:
        """Something worth a line happened."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the run came to so far.

    Args:
        step: updates taken.
        values: metrics by the names that the tracker knows, `selection/score` among them.
    """

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the loop ends with: the selected state and its metrics.

    Args:
        summary: what `summary.json` holds.
        metrics: all splits evaluated at the end.
        checkpoint: the selected checkpoint.
    """

    summary: dict[str, Any]
    metrics: list[SplitMetrics]
    checkpoint: Path


class Training:
    """One run of the loop.

    Args:
        start: configuration, layout, and where the run starts.
        engine: started, holding the state of ``start``.
        run_dir: the run's folder.
        tracker: where records go.
        display: where a person looks.
        interrupted: whether the run is to stop after the step in hand.
    """

    def __init__(
        self,
        start: Start,
        engine: Engine,
        run_dir: Path,
        tracker: Tracker,
        display: Display,
        interrupted: Callable[[], bool],
    ) -> None:
        self.config, self.layout, self.identity = start.config, start.layout, start.identity
        self.engine, self.run_dir, self.tracker, self.display = engine, run_dir, tracker, display
        self.interrupted = interrupted
        self.step, self.progress = start.state.step, start.progress
        self.started = time.monotonic()
        self.saved = self.step if start.point is None else -1  # a new run has its checkpoint of step 0
        self.selector = SELECTORS.get(self.config.selection)()
        self.recorded_restarts = ""
        self.log = MetricsLog(tracker, self.step, self.progress.evaluated)
        self.profile = Profile(self.config, self.step, run_dir)

    def evaluations(self) -> Iterator[Evaluation]:
        """Trains to the end or to the interruption, evaluation by evaluation; a checkpoint is written in both cases.

        The one who asks may stop asking: then :meth:`save` leaves a checkpoint where the loop stands.
        """
        while True:
            if self._due(self.config.eval_every) and self.progress.evaluated != self.step and not self.interrupted():
                found = self._evaluate()
                if found is not None:
                    yield found
            if self.interrupted() or self.step >= self.config.steps:
                break
            if self._due(self.config.checkpoint.every) and self.step > 0:
                self.save()
            self._advance()
            if warning := self.engine.warned():
                self.save()
                text = f"{warning}: the checkpoint of step {self.saved} is written"
                log.warning("%s", text)
                self.display.notice(text)
        self.save()
        if self.profile.recorder.on:
            self._write_profile()

    @property
    def complete(self) -> bool:
        """Whether the last step is taken and evaluated."""
        return self.step >= self.config.steps and self.progress.evaluated == self.step

    def save(self) -> None:
        """A checkpoint of the state in hand, unless there is one."""
        if self.saved != self.step:
            self._save()

    def conclude(self, stopped: str = "") -> Outcome | None:
        """Evaluates the selected state on every split of the sources and on the whole target; writes the summary.

        Args:
            stopped: why the run ends before its last step; empty when it does not.

        Returns:
            The outcome; None if the run was interrupted meanwhile.
        """
        undecided = self.config.selection == "last" or self.progress.best_step < 0
        if undecided:
            self.save()
        chosen = self.step if undecided else self.progress.best_step
        path = checkpoint_path(self.run_dir, chosen)
        began = time.perf_counter()
        snapshot = read_checkpoint(path)
        jobs = final_jobs(self.config)
        metrics = self.engine.evaluate(jobs, model_state(snapshot, self.layout))
        if len(metrics) < len(jobs):
            return None
        self.progress.add("evaluation", time.perf_counter() - began)
        self._restarts()
        summary = self._summary(chosen, metrics, path) | ({"stopped": stopped} if stopped else {})
        write_json(self.run_dir / "summary.json", summary)
        return Outcome(summary=summary, metrics=metrics, checkpoint=path)

    def draw(self, metrics: Sequence[SplitMetrics]) -> None:
        """Figures of the run to the tracker."""
        from difc_ray.runs.figures import run_figures  # imports matplotlib

        drawn = run_figures(self.log, metrics, self.identity["class_names"], self.config.target)
        for name, figure in drawn.items():
            self.tracker.figure(name, figure)

    def _due(self, every: int) -> bool:
        return (self.step % every == 0 and self.step > 0) or self.step >= self.config.steps

    def _advance(self) -> None:
        """Steps to the next boundary, about half a second of them at a time."""
        boundary = min(
            self.config.steps, *(self.step + every - self.step % every
                                 for every in (self.config.eval_every, self.config.checkpoint.every))
        )  # fmt: skip
        taken, spent = self.progress.seconds.get("steps", 0.0), self.progress.seconds.get("step", 0.0)
        per_step = spent / taken if taken else CHUNK_S
        with self.profile.recorder.span("wait for steps"):
            records = self.engine.advance(max(1, min(boundary - self.step, int(CHUNK_S / max(per_step, 1e-4)))))
        with self.profile.recorder.span("keep records"):
            self._keep(records)
        spans, self.engine.spans = self.engine.spans, []
        self.profile.add(spans, self.step)
        if self.profile.due(self.step):
            self._write_profile()
        now_at(self.step)

    def _keep(self, records: Sequence[StepRecord]) -> None:
        """Records of steps to wherever they are kept and shown."""
        restarts = self._restarts()
        for record in records:
            self.progress.add("steps", 1.0)
            for part, seconds in record.seconds.items():
                self.progress.add(part, seconds)
            self.log.step(record, restarts)
            if record.skipped:
                where = {"event": "step skipped", "step": record.step}
                log.warning("step %d skipped: %s", record.step, record.skipped, extra=where)
                self.display.notice(f"step {record.step} skipped: {record.skipped}")
            log.debug("step %d", record.step, extra={"event": "step", "step": record.step})
        if records:
            self.step = records[-1].step + 1
        self.display.steps(records)

    def _restarts(self) -> int:
        """How many workers were replaced so far; and by domain in a tag, when there is one more."""
        restarts = ", ".join(f"{name} {n}" for name, n in self.engine.restarts.items() if n)
        if restarts != self.recorded_restarts:
            self.recorded_restarts = restarts
            self.tracker.tags({"engine.restarts": restarts})
        return sum(self.engine.restarts.values())

    def _write_profile(self) -> None:
        self.display.notice(self.profile.write())
        if self.profile.written:
            self.tracker.artifact(self.profile.path)

    def _evaluate(self) -> Evaluation | None:
        """Metrics, selection and records of the state in hand; None when the run is to stop before all are known."""
        began = time.perf_counter()
        jobs = [(domain, "val") for domain in self.config.sources]
        if self.selector.needs_target and self.config.target:
            jobs.append((self.config.target, "all"))
        judged = len(jobs)
        jobs += [(name, "all") for name in self.config.observe if (name, "all") not in jobs]
        with self.profile.recorder.span("evaluation"):
            metrics = self.engine.evaluate(jobs)
        self.progress.add("evaluation", time.perf_counter() - began)
        if len(metrics) < len(jobs):
            return None  # the evaluation is made when the run is resumed
        self.progress.evaluated = self.step
        score = self.selector.score({(m.domain, m.split): m for m in metrics[:judged]}, self.step)
        if best := self.selector.better(score, self.progress.best_score):
            self.progress.best_score, self.progress.best_step = score, self.step
        values = named_metrics(metrics, "accuracy", "macro_f1", "loss")
        validated = [m for m in metrics if m.split == "val"]
        names = self.identity["class_names"]
        if len(names) <= CLASSES_TO_TRACK:
            for m in validated:
                values |= {f"val/recall/{m.domain}/{name}": r for name, r in zip(names, m.per_class, strict=True)}
        values["selection/score"] = score
        self.log.evaluation(self.step, values, np.sum([m.confusion for m in validated], axis=0).tolist())
        self.display.evaluation(self.step, metrics, score, best)
        if best:
            self._save(best=True)
        return Evaluation(step=self.step, values=values)

    def _save(self, *, best: bool = False) -> None:
        """Writes a checkpoint; a full disk costs this checkpoint, not the run, as long as there is an older one."""
        began = time.perf_counter()
        self.progress.elapsed_s += time.monotonic() - self.started
        self.started = time.monotonic()
        root = self.run_dir / "checkpoints"
        try:
            with self.profile.recorder.span("checkpoint"):
                snapshot = make_snapshot(self.config, self.engine.snapshot(), self.layout, self.progress, self.identity)
                save(root, snapshot, keep=self.config.checkpoint.keep, best=best)
            self.saved = self.step
        except CheckpointError as error:
            if self.saved < 0 or self.step >= self.config.steps or best:
                raise
            self.display.notice(f"{error} Training goes on; the checkpoint of step {self.saved} is intact.")
        self.progress.add("checkpoint", time.perf_counter() - began)

    def _summary(self, chosen: int, metrics: Sequence[SplitMetrics], path: Path) -> dict[str, Any]:
        """What `summary.json` holds."""
        config, seconds = self.config, self.progress.seconds
        bad: dict[str, int] = {}
        for m in metrics:
            if m.replaced:
                bad[m.domain] = bad.get(m.domain, 0) + m.replaced
        worst = worst_domain([m for m in metrics if m.split == "val"])
        taken = max(1.0, seconds.get("steps", 1.0))
        parts = ("step", "compute", "loading", "transport", "coordinator", "evaluation", "checkpoint")
        return {
            "name": config.name,
            "target": config.target,
            "steps": self.step,
            "selected_step": chosen,
            "selection": config.selection,
            "score": self.progress.best_score,
            "accuracy": accuracies(metrics),
            "macro_f1": {f"{m.domain}/{m.split}": m.macro_f1 for m in metrics},
            "ece": {f"{m.domain}/{m.split}": m.ece for m in metrics},
            "per_class": {f"{m.domain}/{m.split}": list(m.per_class) for m in metrics},
            "worst_domain": {"domain": worst.domain, "split": worst.split, "accuracy": worst.accuracy},
            "wall_s": self.progress.elapsed_s + time.monotonic() - self.started,
            "step_ms": {part: 1e3 * seconds.get(part, 0.0) / taken for part in parts},
            "skipped_steps": self.log.skipped,
            "conflict_share": self.log.conflict_share,
            "restarts": dict(self.engine.restarts),
            "engine": dict(self.engine.facts),
            "checkpoint": str(path),
        } | ({"bad_images": bad} if bad else {})


def final_jobs(config: Config) -> list[tuple[str, str]]:
    """What is evaluated at the end: all splits of the sources, the whole target, and what is observed."""
    jobs = [(domain, split) for domain in config.sources for split in ("train", "val", "test")]
    unseen = [config.target, *config.observe] if config.target else config.observe
    return [*jobs, *((name, "all") for name in dict.fromkeys(unseen))]
