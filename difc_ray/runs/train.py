"""From a configuration to a finished run: engine, run folder, lock, tracker, loop, and a clean end.

:func:`train` is what the command line and the Python API call. The order matters: everything that can refuse the
configuration, the data or the cluster comes before the first byte is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difc_ray.actor_logs import FOLDER as LOGS
from difc_ray.actor_logs import TextLog, Who, begin_log, end_log
from difc_ray.config import Config, flat, resolve
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.errors import DifcError, Interrupted, ended
from difc_ray.files import replace
from difc_ray.runs.checkpoint import run_lock, save
from difc_ray.runs.configuration import repetition_warnings
from difc_ray.runs.loop import Display, Evaluation, Outcome, Training
from difc_ray.runs.setup import (
    AUGMENTATION_FILE,
    open_run,
    prepare,
    resume_point,
    run_tags,
    start_warnings,
    tracking_uri,
)
from difc_ray.runs.signals import Interruption, Signals
from difc_ray.runs.state import Start, export_model, make_snapshot, yaml_of_run
from difc_ray.runs.trial_context import TrialContext
from difc_ray.step.coordinator import StepRecord
from difc_ray.step.evaluation import SplitMetrics, named_metrics
from difc_ray.tracking import MlflowTracker, Status, Tracker, TrackingSummary, probe

log = logging.getLogger("difc_ray")


class Silent:
    """A display that shows nothing: the default of the Python API (notices still go to the run's log)."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Nothing."""

    def evaluation(self, step: int, metrics: Sequence[SplitMetrics], score: float, best: bool) -> None:
        """Nothing."""

    def notice(self, message: str) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run, or an evaluation of one, came to.

    Args:
        run_dir: the run's folder.
        summary: the content of its `summary.json`.
        metrics: all final metrics, split by split.
        class_names: the classes, in the order of the metrics.
        tracking: where the MLflow run is, if there is one.
    """

    run_dir: Path
    summary: dict[str, Any]
    metrics: list[SplitMetrics]
    class_names: tuple[str, ...]
    tracking: TrackingSummary | None = None


def train(config: Config, display: Display | None = None, *, repeats: Mapping[str, str] | None = None) -> Result:
    """Trains one run to its end.

    Args:
        config: a resolved configuration (see :func:`difc_ray.config.load_config`).
        display: where a person looks; silent by default.
        repeats: tags of the MLflow run whose configuration this is; a notice says what else differs from it.

    Raises:
        DifcError: what the user can act on, by kind; `Interrupted` after SIGINT or SIGTERM, with a checkpoint written.
    """
    with Signals() as signals:
        running = stages(config, display or Silent(), signals, repeats=repeats)
        while True:
            try:
                next(running)
            except StopIteration as end:
                result: Result = end.value
                return result


def stages(
    config: Config,
    display: Display,
    interruption: Interruption,
    trial: TrialContext | None = None,
    repeats: Mapping[str, str] | None = None,
) -> Generator[Evaluation, None, Result]:
    """One run, which pauses at every evaluation; its value at the end is what it came to.

    Closed while it pauses, it leaves a checkpoint to resume from.

    Args:
        config: a resolved configuration.
        display: where a person looks.
        interruption: what may stop it.
        trial: the sweep that it belongs to, if to one.
        repeats: as for :func:`train`.

    Raises:
        DifcError: as :func:`train`.
    """
    trial = trial or TrialContext()

    def notice(message: str) -> None:
        log.warning("%s", message)
        display.notice(message)

    with ExitStack() as stack:
        with interruption.before_the_run():
            start = begin(config, display, notice, stack)
            engine = connect(start.config, display, interruption, trial, notice, stack)
        config, repeated = start.config, repetition_warnings(start, engine.facts, repeats or {})
        run_dir = open_folder(start, repeated, notice, stack)
        tracker = make_tracker(config, run_dir, trial, notice, resumed=start.point is not None)
        tags = {**run_tags(start, engine.facts), **trial.tags}
        tracker.start(run_name=trial.run_name or str(config.name), params=flat(config), tags=tags)
        with final_status(tracker, interruption, run_dir, trial) as ending:
            display.phase("starting domain workers" if config.engine == "ray" else "starting")
            engine.start(start.state)
            tracker.tags({f"engine.{name}": value for name, value in engine.facts.items()})  # devices, nodes
            training = Training(start, engine, run_dir, tracker, display, interruption.interrupted)
            trial.save = training.save
            yield from paused(training, trial)
            early = trial.stopped if trial.over(training.step) else ""
            if not (early or training.complete):
                when = f"after step {training.step}; the checkpoint is written."
                raise stopped(interruption, run_dir, when, trial)
            display.phase("evaluating")
            outcome = training.conclude(early)
            if outcome is None:
                raise stopped(interruption, run_dir, "in the final evaluation; the checkpoint is written.", trial)
            hand_over(training, outcome, alone=trial.alone)
            if config.tracking.mode != "off" and trial.alone:
                display.phase("sending records to MLflow")
        return Result(
            run_dir=run_dir,
            summary=outcome.summary,
            metrics=outcome.metrics,
            class_names=tuple(start.identity["class_names"]),
            tracking=ending[0],
        )


def begin(config: Config, display: Display, notice: Callable[[str], None], stack: ExitStack) -> Start:
    """Where the run starts: at step 0, or at the checkpoint of the run that it continues, whose lock is then taken.

    Raises:
        DifcError: the configuration or the data are refused.
    """
    wanted = resolve(config)
    config, point = resume_point(wanted)
    tracking_uri(config)
    if point is not None:
        stack.enter_context(run_lock(point.run_dir))
        if wanted.resume == "auto":
            notice(f"the newest run is `{point.run_dir}`: it goes on from step {point.snapshot.step}")
    elif wanted.resume == "auto":
        notice(f"there is no run with a checkpoint in `{config.output}`: a new one begins")
    display.phase("loading data")
    return prepare(config, point)


def connect(
    config: Config,
    display: Display,
    interruption: Interruption,
    trial: TrialContext,
    notice: Callable[[str], None],
    stack: ExitStack,
) -> RayEngine | InlineEngine:
    """The engine, with the resources that the run needs; closed with the run.

    Raises:
        ClusterError: the cluster cannot be reached or has no room.
    """
    engine = trial.make_engine(config, str(config.name), interruption.interrupted, notice)
    stack.callback(engine.close)
    display.phase("starting Ray" if config.engine == "ray" else "starting")
    engine.connect()
    return engine


def open_folder(start: Start, warnings: Sequence[str], notice: Callable[[str], None], stack: ExitStack) -> Path:
    """The run's folder, locked, with its configuration and, if the run is new, the checkpoint of step 0.

    With that checkpoint the run can be resumed under its name, whatever ends it.

    Args:
        start: where the run starts.
        warnings: what is to be known besides.
        notice: where to put what is to be known of the start; from here on the run's own log has it too.
        stack: what ends with the run.
    """
    config, point = start.config, start.point
    run_dir = open_run(config, resumed=point is not None)
    if point is None:
        stack.enter_context(run_lock(run_dir))
    replace(run_dir / "config.yaml", yaml_of_run(config))
    if "augmentation" in start.identity:
        replace(run_dir / AUGMENTATION_FILE, start.identity["augmentation"])
    stack.enter_context(run_log(run_dir, config, notice))
    for message in [*start_warnings(start), *warnings]:
        notice(message)
    if point is None:
        snapshot = make_snapshot(config, start.state, start.layout, start.progress, start.identity)
        save(run_dir / "checkpoints", snapshot, keep=config.checkpoint.keep, best=False)
    return run_dir


def make_tracker(
    config: Config, run_dir: Path, trial: TrialContext, notice: Callable[[str], None], *, resumed: bool
) -> Tracker:
    """The tracker that the configuration asks for; a server out of reach is a warning, not an end.

    Without MLflow, a run only writes its journal; a run of a sweep does too, which the sweep's uploader sends.
    """
    uri, experiment = tracking_uri(config), config.tracking.experiment
    if uri is None or not trial.alone:
        return Tracker(run_dir, uri, experiment, resume=resumed, notice=notice, parent=trial.parent)
    if trouble := probe(uri, timeout_s=2.0):
        notice(f"{trouble} Training goes on; records are kept in {run_dir} and sent when the server is back.")
    return MlflowTracker(run_dir, uri, experiment, resume=resumed, notice=notice)


def paused(training: Training, trial: TrialContext) -> Iterator[Evaluation]:
    """The training, evaluation by evaluation, to its end or to where its sweep has stopped it; a checkpoint is left."""
    if not trial.over(training.step):  # else it was stopped before it was interrupted
        for evaluation in training.evaluations():
            if trial.over(training.step):
                break
            try:
                yield evaluation
            except GeneratorExit:
                training.save()
                raise
            if trial.over(training.step):
                break
    training.save()


def stopped(interruption: Interruption, run_dir: Path, when: str, trial: TrialContext) -> Interrupted:
    """What a run that was told to stop ends with."""
    command = trial.resume or f"difc-ray train resume={run_dir}"
    return Interrupted(f"Stopped by {interruption.name} {when} Continue with `{command}`.", interruption.number)


@contextmanager
def final_status(
    tracker: Tracker, interruption: Interruption, run_dir: Path, trial: TrialContext
) -> Iterator[list[TrackingSummary]]:
    """Gives the MLflow run its final status whatever happens inside; yields a list that will hold its summary."""
    ending: list[TrackingSummary] = []

    def finish(status: Status, error: str | None = None, *, word: str = "", drain_s: float | None = None) -> None:
        if tags := trial.ending(word or {"KILLED": "interrupted", "FAILED": "failed"}.get(status, "finished")):
            tracker.tags(tags)
        ending.append(tracker.finish(status, error, drain_s=drain_s))

    try:
        yield ending
    except Interrupted as error:
        finish("KILLED", str(error))
        raise
    except DifcError as error:
        if interruption.interrupted():
            finish("KILLED", str(error))
            when = f"before the step in hand was taken. {ended(str(error))}"
            raise stopped(interruption, run_dir, when, trial) from error
        finish("FAILED", str(error))
        raise
    except KeyboardInterrupt:
        finish("KILLED", "stopped by a second signal", drain_s=0)
        raise
    except GeneratorExit:
        finish("KILLED", f"suspended by its sweep; continue it with `{trial.resume}`")
        raise
    except SystemExit:
        finish("KILLED", "its process was told to end")  # as Ray tells that of a trial when the sweep is gone
        raise
    except BaseException:
        finish("FAILED", "unexpected error, see run.log")
        raise
    if trial.stopped:
        finish("KILLED", word="stopped")
    else:
        finish("FINISHED")


def hand_over(training: Training, outcome: Outcome, *, alone: bool) -> None:
    """Final metrics and files to the tracker; of a run that stands alone, figures and the selected model as well."""
    tracker, run_dir = training.tracker, training.run_dir
    tracker.metrics(training.step, named_metrics(outcome.metrics, "accuracy", "macro_f1", prefix="final/"))
    if alone:
        training.draw(outcome.metrics)
    tracker.artifact(run_dir / "config.yaml")
    tracker.artifact(run_dir / "summary.json")
    if (run_dir / AUGMENTATION_FILE).is_file():
        tracker.artifact(run_dir / AUGMENTATION_FILE)
    if alone:
        directory = export_model(training.config, outcome.checkpoint, run_dir / "export", training.identity)
        tracker.model(directory, step=outcome.summary["selected_step"])


TOLD_TO_END = (Interrupted, KeyboardInterrupt, GeneratorExit, SystemExit)
"""What ends a run from outside: nothing is wrong with the run itself."""


@contextmanager
def run_log(run_dir: Path, config: Config, notice: Callable[[str], None]) -> Iterator[None]:
    """Everything that the package logs, to the run's files as well; an error with its traceback and a note on it."""
    handler = TextLog(run_dir / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    handler.setLevel(logging.INFO)
    root = logging.getLogger("difc_ray")
    root.addHandler(handler)
    level = root.level
    root.setLevel(logging.INFO)
    who, settings = Who(run=str(config.name), actor="driver"), config.model_dump(mode="json")
    lines = begin_log(run_dir, who, settings, debug=config.log_level == "debug")
    if lines is None:
        notice(f"`{run_dir / LOGS}` cannot be written: the run goes on without the logs of its actors")
    log.info("run `%s` on engine `%s`", config.name, config.engine, extra={"event": "started"})
    ending = "ended"
    try:
        yield
    except BaseException as error:
        ending = f"ended by {type(error).__name__}"
        if not isinstance(error, TOLD_TO_END) or error.__cause__ is not None:
            log.error("%s", error, exc_info=True, extra={"event": "error"})
            error.add_note(str(run_dir / "run.log"))
        raise
    finally:
        end_log(lines, ending)
        root.setLevel(level)
        root.removeHandler(handler)
        handler.close()
