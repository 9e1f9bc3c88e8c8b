"""A sweep from its space to its best setting: Ray, the folder, Tune, selection, and a clean end.

What Tune keeps of its own is scratch and is thrown away. A sweep is resumed from its folder: trials that have ended are
not touched, the others go on from the checkpoints of their run folders.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, Protocol, runtime_checkable

import ray
from ray import tune

from difc_ray.config import Config
from difc_ray.engines.ray.placement import cluster_nodes, connect
from difc_ray.engines.ray.processes import Head
from difc_ray.errors import CheckpointError, ClusterError, DifcError, Interrupted
from difc_ray.runs.checkpoint import run_lock
from difc_ray.runs.setup import tracking_uri
from difc_ray.runs.signals import Signals
from difc_ray.sweeps.folder import ENDED, SweepFolder, TrialRecord
from difc_ray.sweeps.guard import RayGuard
from difc_ray.sweeps.hooks import SweepStopper, TrialNames, TrialWatch, cause_of
from difc_ray.sweeps.outcome import SweepResult, conclude, hand_over
from difc_ray.sweeps.recording import begin_record, sweep_tracker
from difc_ray.sweeps.resources import Resources
from difc_ray.sweeps.schedulers import optuna_searcher, replay, scheduler_of
from difc_ray.sweeps.space import Space
from difc_ray.sweeps.trial import SweepInfo, Trial, number_of
from difc_ray.sweeps.trials import Point
from difc_ray.tracking import MlflowTracker, Tracker, TrackingFolder

log = logging.getLogger("difc_ray")

QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_WARN_THRESHOLD_S": "60",
}
"""Tune's output, loggers, signal handler and state files: all of them are ours here."""


@contextmanager
def variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Environment variables inside; afterwards everything is as before."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


@runtime_checkable
class SweepDisplay(Protocol):
    """Where a person sees the sweep."""

    def phase(self, text: str) -> None:
        """The sweep is busy with something else than trials."""

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """A trial was evaluated, or has ended."""

    def notice(self, message: str) -> None:
        """Something worth a line happened."""


class GuardedDisplay:
    """A display whose own mistakes go to the log and not to the sweep.

    Args:
        display: where a person looks.
    """

    def __init__(self, display: SweepDisplay) -> None:
        self.display = display

    def phase(self, text: str) -> None:
        """Passes it on."""
        self._try(lambda: self.display.phase(text))

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """Passes it on."""
        self._try(lambda: self.display.trial(record, values))

    def notice(self, message: str) -> None:
        """Passes it on."""
        self._try(lambda: self.display.notice(message))

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception:
            log.warning("the display of the sweep has failed", exc_info=True)


def sweep_name(space: Space, now: datetime | None = None) -> str:
    """``<space>-<YYYYmmdd-HHMMSS>``."""
    return f"{space.name}-{now or datetime.now():%Y%m%d-%H%M%S}"


def find_sweep(space: Space, base: Config) -> SweepFolder:
    """The sweep to resume: the one that `name` names, else the newest of this space under `output`.

    Raises:
        CheckpointError: there is none, or it is one of another space.
    """
    if base.name is not None:
        folder = SweepFolder(base.output / base.name)
        sheet = folder.read()
        if sheet["digest"] != space.digest:
            raise CheckpointError(
                f"a sweep can only be resumed with its own space, got `{space.source}` for a sweep of "
                f"`{sheet['space']}`{folder.differing(space)} (`{folder.path}`). Use `{folder.path / 'space.yaml'}`, "
                "or start a new sweep."
            )
        return folder
    found = []
    for sheet_path in base.output.glob("*/sweep.json"):
        folder = SweepFolder(sheet_path.parent)
        try:
            if folder.read()["digest"] == space.digest:
                found.append((sheet_path.stat().st_mtime, folder))
        except CheckpointError:
            continue
    if not found:
        raise CheckpointError(
            f"there must be a sweep of `{space.source}` to resume, got none (`{base.output}`). Leave out --resume to "
            "start one, or name it with `name=`; a changed space is another one."
        )
    return max(found, key=lambda each: each[0])[1]


def run_sweep(
    space: Space, base: Config, points: Sequence[Point], display: SweepDisplay, *, resume: bool, register: str | None
) -> SweepResult:
    """Runs a sweep to its end.

    Args:
        space: the search space.
        base: what all trials share, resolved but for its name.
        points: the trials, from :func:`difc_ray.sweeps.trials.check_sweep`.
        display: where a person looks.
        resume: whether to go on with an interrupted sweep.
        register: name under which the best model is registered in MLflow; None: it is not.

    Raises:
        DifcError: what the user can act on, by kind; `Interrupted` after SIGINT or SIGTERM: finished trials are kept.
    """
    display = GuardedDisplay(display)

    def notice(message: str) -> None:
        log.warning("%s", message)
        display.notice(message)

    with Signals() as signals, variables(QUIET), ExitStack() as stack:
        folder = find_sweep(space, base) if resume else SweepFolder(base.output / (base.name or sweep_name(space)))
        with signals.before_the_run():
            if not resume:
                check_new(folder)
            uri = tracking_uri(base)
            display.phase("starting Ray")
            if owned := connect(base):
                stack.callback(ray.shutdown)
            resources = Resources(base, cluster_nodes(), folds=space.selection == "leave_one_domain_out")
            resources.check_nodes()
        folder.path.mkdir(parents=True, exist_ok=True)
        stack.enter_context(run_lock(folder.path))
        folder.interrupted.unlink(missing_ok=True)
        tracker = sweep_tracker(base, folder, uri, resume=resume, notice=notice)
        key = tracker.key if tracker else ""
        if not resume:
            folder.create(space, base, points, key)
        stack.enter_context(guard_of(Head.of_ours() if owned else None, folder, base, space, tracker, signals))
        try:
            if tracker:
                begin_record(tracker, space, base, folder)
            display.phase("starting trials")
            sweep = Sweep(space, base, folder, resources, key, display, signals, notice)
            sweep.run()
            if signals.interrupted():
                raise Interrupted(
                    f"Stopped by {signals.name}; trials that have ended are kept in {folder.path}. Continue with "
                    f"`{resume_command(space, base, folder)}`.",
                    signals.number,
                )
            display.phase("comparing")
            result = conclude(space, base, folder)
            if tracker:
                hand_over(result, base, tracker, register)
                if result.failed:
                    tracker.tags({"error": f"{len(result.failed)} of {len(result.records)} trials failed"})
                display.phase("sending records to MLflow")
                result = replace(result, tracking=tracker.finish("FINISHED"))
            return result
        except BaseException as error:
            if tracker:
                stopped = signals.interrupted() or isinstance(error, KeyboardInterrupt)
                text = str(error) if isinstance(error, DifcError) else type(error).__name__
                tracker.finish("KILLED" if stopped else "FAILED", text)
            raise
        finally:
            shutil.rmtree(folder.path / "ray", ignore_errors=True)


def check_new(folder: SweepFolder) -> None:
    """Whether a new sweep may be written there.

    Raises:
        CheckpointError: something is there already.
    """
    if folder.path.exists() and any(folder.path.iterdir()):
        raise CheckpointError(
            f"a new sweep must have a new folder, got `{folder.path}`, which holds something (`name`). Choose another "
            "`name`, or continue that sweep with --resume."
        )


def resume_command(space: Space, base: Config, folder: SweepFolder) -> str:
    """What goes on with a sweep."""
    if space.resume:
        return space.resume
    settings = [f"name={folder.path.name}", f"output={base.output}"]
    return shlex.join(["difc-ray", "tune", space.source, "--resume", *settings])


def guard_of(
    head: Head | None, folder: SweepFolder, base: Config, space: Space, tracker: MlflowTracker | None, signals: Signals
) -> RayGuard:
    """Ends the sweep when its own Ray is gone; its trials are told to stop, if one of them still can hear it."""

    def give_up() -> tuple[str, int]:
        """Leaves the records in order, and says how to go on."""
        for record in folder.records():
            if record.status == "running":
                folder.update(record.point.number, status="interrupted", reason="Ray was gone")
        stopped = signals.interrupted()
        why = f"Stopped by {signals.name}, and Ray with it" if stopped else "Ray has ended in the middle of the sweep"
        kept = "trials go on from their newest checkpoints with"
        sentence = f"{why}; {kept} `{resume_command(space, base, folder)}`."
        if tracker:
            tracker.finish("KILLED" if stopped else "FAILED", sentence)
        return sentence, Interrupted("", signals.number).code if stopped else ClusterError.exit_code

    return RayGuard(head, folder.interrupted.touch, give_up)


class Sweep:
    """Runs the trials of a sweep that have not ended.

    Args:
        space: the search space.
        base: what all trials share.
        folder: the sweep's folder, created.
        resources: what a trial asks for.
        key: key of the sweep's MLflow run; empty where nothing is tracked.
        display: where a person looks.
        signals: who may stop the sweep.
        notice: where to put one-line messages.
    """

    def __init__(
        self, space: Space, base: Config, folder: SweepFolder, resources: Resources, key: str,
        display: SweepDisplay, signals: Signals, notice: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.space, self.base, self.folder, self.resources, self.key = space, base, folder, resources, key
        self.display, self.signals, self.notice = display, signals, notice
        self.told_aside: set[str] = set()
        self.next_number = 0

    def run(self) -> None:
        """All trials that are left; returns early when the sweep is to stop."""
        records = self.folder.records()
        self.next_number = max((record.point.number for record in records), default=-1) + 1
        left = [record.point for record in records if record.status not in ("finished", "stopped")]
        if left:
            listed = [{"number": p.number, "values": dict(p.values), "fold": p.fold} for p in left]
            self._fit({"point": tune.grid_search(listed)}, None, 1, {p.number: p for p in left})
        if self.space.searcher == "optuna" and not self.signals.interrupted():
            seeds = len(self.space.seeds)
            wanted = self.space.samples * seeds - self.next_number
            if wanted > 0:
                searcher = optuna_searcher(self.space, self.base, self._earlier())
                self._fit({}, searcher, wanted, {})

    def _earlier(self) -> list[tuple[Mapping[str, Any], float]]:
        """Settings that have ended, and the mean of their last reports over the seeds."""
        found: dict[int, tuple[Mapping[str, Any], list[float]]] = {}
        for record in self.folder.records():
            reports = self.folder.evaluations(record.point.number).values
            if record.status in ("finished", "stopped") and reports and self.space.metric in reports[-1]:
                values = found.setdefault(record.point.setting, (record.point.values, []))
                values[1].append(reports[-1][self.space.metric])
        return [(values, math.fsum(rewards) / len(rewards)) for values, rewards in found.values()]

    def _fit(self, space: dict[str, Any], searcher: Any, samples: int, points: Mapping[int, Point]) -> None:
        """One round of Tune."""
        info = SweepInfo(
            folder=self.folder.path, base=recorded_in(self.base), points=points, seeds=self.space.seeds,
            metric=self.space.metric, mode=self.space.mode, scheduler=self.space.scheduler, parent=self.key,
            cwd=os.getcwd(), resume=resume_command(self.space, self.base, self.folder),
        )  # fmt: skip
        scheduler = scheduler_of(self.space, self.base)
        replay(scheduler, {r.point.number: self.folder.evaluations(r.point.number) for r in self.folder.records()
                           if r.status in ENDED or r.stopping}, self.space.metric)  # fmt: skip
        trainable = tune.with_resources(tune.with_parameters(Trial, info=info), self.resources.request)
        attempt = len(list((self.folder.path / "ray").glob("*")))
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                scheduler=scheduler, search_alg=searcher, num_samples=samples, reuse_actors=True,
                max_concurrent_trials=self.base.trial.concurrent, trial_name_creator=TrialNames(self.next_number),
                trial_dirname_creator=str,
            ),
            run_config=tune.RunConfig(
                name=f"round-{attempt}", storage_path=str(self.folder.path / "ray"), verbose=0, stop=SweepStopper(self),
                callbacks=[TrialWatch(self)],
                failure_config=tune.FailureConfig(max_failures=self.base.trial.max_failures),
            ),
        )  # fmt: skip
        for name in ("ray.tune", "ray.train", "ray.air"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        tuner.fit()

    def died(self, trial: Any) -> None:
        """Writes down that a trial's process died for good; what the trial itself found out stays as it is."""
        number = number_of(str(trial))
        record = self.folder.record(number)
        if record is None or record.status == "failed":
            return
        stopped = self.signals.interrupted()  # by the signal that its process heard as well
        reason = "its process was ended before it could write a checkpoint" if stopped else cause_of(trial)
        self.folder.write(replace(record, status="interrupted" if stopped else "failed", reason=reason))
        run_dir, uri = self.folder.run_dir(number), tracking_uri(self.base)
        if TrackingFolder(run_dir).journal.exists():
            tracker = Tracker(run_dir, uri, self.base.tracking.experiment, resume=True, parent=self.key)
            tracker.finish("KILLED" if stopped else "FAILED", reason)

    def guarded(self, action: Callable[[], None]) -> None:
        """Does something for Tune's callbacks; what goes wrong there must not end the sweep."""
        try:
            action()
        except Exception as error:
            log.warning("a message of the sweep was lost", exc_info=True)
            self.notice(f"a message of the sweep was lost ({type(error).__name__}: {error})")

    def show(self, number: int, result: Mapping[str, Any]) -> None:
        """Shows how a trial stands."""
        record = self.folder.record(number)
        if record is None:
            return
        if record.aside and record.aside not in self.told_aside:
            self.told_aside.add(record.aside)
            self.notice(
                f"trial {number} had no checkpoint that could be used and started anew; its earlier folder is kept as "
                f"{self.folder.path / 'aside' / record.aside}"
            )
        self.display.trial(record, result)

    def recovered(self, number: int) -> None:
        """Says that a trial goes on in another process."""
        self.notice(f"trial {number} has lost its process; it is continued")

    def interrupted(self) -> bool:
        """Whether a signal came; the trials are told by a file, which they look for between two steps."""
        if self.signals.interrupted():
            self.folder.interrupted.touch()
            return True
        return False

    def tell_stopped(self, number: int) -> None:
        """Shows that a trial was stopped; its process writes it down when it leaves the trial."""
        record = self.folder.record(number)
        if record is not None and record.status == "running" and not self.signals.interrupted():
            self.display.trial(replace(record, status="stopped"), {})


def recorded_in(base: Config) -> Config:
    """The configuration with its store written out: trials have another output folder, perhaps another environment."""
    tracking = base.tracking.model_copy(update={"uri": tracking_uri(base) or base.tracking.uri})
    return base.model_copy(update={"tracking": tracking})
