"""From a configuration to a finished run: engine, run folder, lock, tracker, loop, and a clean end.

:func:`train` is what the command line and the Python API call. The order matters: everything that can refuse the
configuration, the data or the cluster comes before the first byte is written.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difc_ray.actor_logs import FOLDER as LOGS
from difc_ray.actor_logs import TextLog, Who, begin_log, end_log
from difc_ray.config import Config, flat, resolve, to_yaml
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.errors import DifcError, Interrupted, ended
from difc_ray.files import replace
from difc_ray.runs.checkpoint import run_lock, save
from difc_ray.runs.configuration import repetition_warnings
from difc_ray.runs.loop import Display, Evaluation, Outcome, Training
from difc_ray.runs.setup import (
    AUGMENTATION_FILE,
    ResumePoint,
    open_run,
    prepare,
    resume_point,
    run_tags,
    tracking_uri,
    version_warnings,
    weights_notices,
)
from difc_ray.runs.signals import Signals
from difc_ray.runs.state import Start, export_model, make_snapshot
from difc_ray.runs.trial_context import Interruption, Membership, Notice, engine_of
from difc_ray.step.coordinator import StepRecord
from difc_ray.step.evaluation import SplitMetrics
from difc_ray.tracking import MlflowTracker, Status, Tracker, TrackingSummary, Untracked, probe

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
    signals: Interruption,
    member: Membership | None = None,
    repeats: Mapping[str, str] | None = None,
) -> Generator[Evaluation, None, Result]:
    """One run, which pauses at every evaluation; its value at the end is what it came to.

    Closed while it pauses, it leaves a checkpoint to resume from.

    Args:
        config: a resolved configuration.
        display: where a person looks.
        signals: who may stop it.
        member: the sweep that it belongs to, if to one.
        repeats: as for :func:`train`.

    Raises:
        DifcError: as :func:`train`.
    """

    def notice(message: str) -> None:
        log.warning("%s", message)
        display.notice(message)

    with ExitStack() as stack:
        with signals.before_the_run():
            ready = get_ready(config, display, signals, member, notice, stack)
        config, start, engine, uri = ready.start.config, ready.start, ready.engine, ready.uri
        run_dir = open_folder(ready, repeats or {}, notice, stack)
        tracker = make_tracker(config, run_dir, uri, resumed=ready.point is not None, notice=notice, member=member)
        tags = run_tags(start, engine.facts) | dict(member.tags if member else {})
        tracker.start(run_name=member.run_name if member else str(config.name), params=flat(config), tags=tags)
        with final_status(tracker, signals, run_dir, member) as ending:
            display.phase("starting domain workers" if config.engine == "ray" else "starting")
            engine.start(start.state)
            tracker.tags({f"engine.{name}": value for name, value in engine.facts.items()})  # devices, nodes
            training = Training(start, engine, run_dir, tracker, display, signals.interrupted)
            stack.callback(training.log.close)
            if member:
                member.save = training.save
            yield from paused(training, member)
            early = member.stopped if member and member.over(training.step) else ""
            if not (early or training.complete):
                raise stopped(signals, run_dir, f"after step {training.step}; the checkpoint is written.", member)
            display.phase("evaluating")
            outcome = training.conclude(early)
            if outcome is None:
                raise stopped(signals, run_dir, "in the final evaluation; the checkpoint is written.", member)
            hand_over(training, outcome, whole=member is None)
            if uri is not None and member is None:
                display.phase("sending records to MLflow")
        return Result(
            run_dir=run_dir,
            summary=outcome.summary,
            metrics=outcome.metrics,
            class_names=tuple(start.identity["class_names"]),
            tracking=ending[0],
        )


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a run has before anything of it is written.

    Args:
        start: where it starts.
        engine: connected, not started.
        point: where the run stands that it continues; None: it is new.
        uri: where it is recorded; None: nowhere.
    """

    start: Start
    engine: RayEngine | InlineEngine
    point: ResumePoint | None
    uri: str | None


def get_ready(
    config: Config, display: Display, signals: Interruption, member: Membership | None, notice: Notice, stack: ExitStack
) -> Ready:
    """Everything that can refuse the configuration, the data or the cluster.

    Args:
        config: a resolved configuration.
        display: where a person looks.
        signals: who may stop the run.
        member: the sweep that it belongs to, if to one.
        notice: where to put one-line messages.
        stack: what ends with the run.

    Raises:
        DifcError: it is refused.
    """
    wanted = resolve(config)
    config, point = resume_point(wanted)
    uri = tracking_uri(config)
    if point is not None:
        stack.enter_context(run_lock(point.run_dir))
        if wanted.resume == "auto":
            notice(f"the newest run is `{point.run_dir}`: it goes on from step {point.snapshot.step}")
    elif wanted.resume == "auto":
        notice(f"there is no run with a checkpoint in `{config.output}`: a new one begins")
    display.phase("loading data")
    start = prepare(config, point)
    make = member.make_engine if member else engine_of
    engine = make(config, str(config.name), signals.interrupted, notice)
    stack.callback(engine.close)
    display.phase("starting Ray" if config.engine == "ray" else "starting")
    engine.connect()
    return Ready(start=start, engine=engine, point=point, uri=uri)


def open_folder(ready: Ready, repeats: Mapping[str, str], notice: Notice, stack: ExitStack) -> Path:
    """The run's folder, locked, with its configuration and, if the run is new, the checkpoint of step 0.

    Args:
        ready: the run.
        repeats: tags of the MLflow run whose configuration this is.
        notice: where to put what is to be known of the start; from here on the run's own log has it too.
        stack: what ends with the run.
    """
    start, point = ready.start, ready.point
    run_dir = open_run(start.config, resumed=point is not None)
    if point is None:
        stack.enter_context(run_lock(run_dir))
    replace(run_dir / "config.yaml", to_yaml(start.config))
    if "augmentation" in start.identity:
        replace(run_dir / AUGMENTATION_FILE, start.identity["augmentation"])
    stack.enter_context(run_log(run_dir, start.config, notice))
    for message in [*(point.rejected if point else []), *version_warnings(start), *weights_notices(start)]:
        notice(message)
    for message in repetition_warnings(start, ready.engine.facts, repeats):
        notice(message)
    if point is None:
        save_start(start, run_dir)
    return run_dir


def save_start(start: Start, run_dir: Path) -> None:
    """The checkpoint of step 0: from here on, whatever ends the run, it can be resumed under its name."""
    snapshot = make_snapshot(start.config, start.state, start.layout, start.progress, start.identity)
    save(run_dir / "checkpoints", snapshot, keep=start.config.checkpoint.keep, best=False)


def paused(training: Training, member: Membership | None) -> Iterator[Evaluation]:
    """The training, evaluation by evaluation, to its end or to where its sweep has stopped it; a checkpoint is left."""
    if member is None or not member.over(training.step):  # else it was stopped before it was interrupted
        for evaluation in training.evaluations():
            if member and member.over(training.step):
                break
            try:
                yield evaluation
            except GeneratorExit:
                training.save()
                raise
            if member and member.over(training.step):
                break
    training.save()


def stopped(signals: Interruption, run_dir: Path, when: str, member: Membership | None) -> Interrupted:
    """What a run that was told to stop ends with."""
    command = member.resume if member else f"difc-ray train resume={run_dir}"
    return Interrupted(f"Stopped by {signals.name} {when} Continue with `{command}`.", signals.number)


@contextmanager
def final_status(
    tracker: Tracker, signals: Interruption, run_dir: Path, member: Membership | None
) -> Iterator[list[TrackingSummary]]:
    """Gives the MLflow run its final status whatever happens inside; yields a list that will hold its summary."""
    ending: list[TrackingSummary] = []

    def finish(status: Status, error: str | None = None, drain_s: float | None = None, word: str = "") -> None:
        if member:
            tracker.tags(member.ending(word or {"KILLED": "interrupted", "FAILED": "failed"}.get(status, "finished")))
        ending.append(tracker.finish(status, error, drain_s=drain_s))

    try:
        yield ending
    except Interrupted as interruption:
        finish("KILLED", str(interruption))
        raise
    except DifcError as error:
        if signals.interrupted():
            finish("KILLED", str(error))
            when = f"before the step in hand was taken. {ended(str(error))}"
            raise stopped(signals, run_dir, when, member) from error
        finish("FAILED", str(error))
        raise
    except KeyboardInterrupt:
        finish("KILLED", "stopped by a second signal", drain_s=0)
        raise
    except GeneratorExit:
        finish("KILLED", f"suspended by its sweep{f'; continue it with `{member.resume}`' if member else ''}")
        raise
    except SystemExit:
        finish("KILLED", "its process was told to end")  # as Ray tells that of a trial when the sweep is gone
        raise
    except BaseException:
        finish("FAILED", "unexpected error, see run.log")
        raise
    early = member is not None and bool(member.stopped)
    finish("KILLED" if early else "FINISHED", word="stopped" if early else "")


def make_tracker(
    config: Config, run_dir: Path, uri: str | None, *, resumed: bool, notice: Notice, member: Membership | None
) -> Tracker:
    """The tracker that the configuration asks for; a server out of reach is a warning, not an end.

    A run of a sweep only writes its journal: the sweep's uploader sends it.
    """
    if uri is None:
        return Untracked(run_dir)
    if member is not None:
        return MlflowTracker(
            run_dir, uri, config.tracking.experiment, resume=resumed, notice=notice, upload=False, parent=member.parent
        )
    if trouble := probe(uri, timeout_s=2.0):
        notice(f"{trouble} Training goes on; records are kept in {run_dir} and sent when the server is back.")
    return MlflowTracker(run_dir, uri, config.tracking.experiment, resume=resumed, notice=notice)


def hand_over(training: Training, outcome: Outcome, *, whole: bool) -> None:
    """Final metrics and files to the tracker; of a run that stands alone, figures and the selected model as well."""
    tracker, run_dir = training.tracker, training.run_dir
    final = {f"final/{m.split}/accuracy/{m.domain}": m.accuracy for m in outcome.metrics}
    final |= {f"final/{m.split}/macro_f1/{m.domain}": m.macro_f1 for m in outcome.metrics}
    tracker.metrics(training.step, final)
    if whole:
        training.draw(outcome.metrics)
    tracker.artifact(run_dir / "config.yaml")
    tracker.artifact(run_dir / "summary.json")
    if (run_dir / AUGMENTATION_FILE).is_file():
        tracker.artifact(run_dir / AUGMENTATION_FILE)
    if whole:
        directory = export_model(training.config, outcome.checkpoint, run_dir / "export", training.identity)
        tracker.model(directory, step=outcome.summary["selected_step"])


TOLD_TO_END = (Interrupted, KeyboardInterrupt, GeneratorExit, SystemExit)
"""What ends a run from outside: nothing is wrong with the run itself."""


@contextmanager
def run_log(run_dir: Path, config: Config, notice: Notice) -> Iterator[None]:
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
