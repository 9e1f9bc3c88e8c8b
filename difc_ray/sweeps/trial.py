"""One trial at a time in one of Tune's processes: a run that pauses at every evaluation.

The same lines train it as train a single run (:func:`difc_ray.runs.train.stages`). What a trial can be continued from
are the checkpoints of its run folder; Tune's own are used where population-based training hands one trial's state to
another.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ray import tune

from difc_ray.config import Config, import_plugins, to_yaml
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.errors import DifcError, Interrupted
from difc_ray.runs.checkpoint import save
from difc_ray.runs.loop import Evaluation
from difc_ray.runs.reading import read_checkpoint
from difc_ray.runs.state import checkpoint_path
from difc_ray.runs.train import Result, Silent, stages
from difc_ray.runs.trial_context import TrialContext
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.trials import Point, trial_config

LOOK_S = 0.2
"""Seconds between two looks at whether the sweep was interrupted."""

STATE, SCORE = "checkpoint", "score.json"
"""What Tune's checkpoint of a trial holds: a copy of ours, and the score at that step."""


@dataclass(frozen=True, kw_only=True)
class SweepInfo:
    """What every trial needs to know of its sweep; travels to Tune's processes.

    Args:
        folder: the sweep's folder.
        base: what all trials share.
        points: trials by number; empty where the searcher makes them up.
        seeds: seeds by position, for those.
        metric: what Tune compares.
        mode: `max` or `min`.
        scheduler: its name.
        parent: key of the sweep's MLflow run; empty where nothing is tracked.
        cwd: the driver's working folder, where plug-ins lie.
        resume: the command that goes on with the sweep.
    """

    folder: Path
    base: Config
    points: Mapping[int, Point]
    seeds: tuple[int, ...]
    metric: str
    mode: str
    scheduler: str
    parent: str
    cwd: str
    resume: str

    @property
    def worst(self) -> float:
        """The value of the metric that a failed trial reports."""
        return -math.inf if self.mode == "max" else math.inf


class SweepInterruption:
    """The sweep's end as a trial hears of it: a file that the driver writes.

    Args:
        path: the file.
    """

    number, name = int(signal.SIGTERM), "its sweep"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looked, self._heard = 0.0, False

    def interrupted(self) -> bool:
        """Whether the file is there."""
        now = time.monotonic()
        if not self._heard and now - self._looked > LOOK_S:
            self._looked, self._heard = now, self.path.exists()
        return self._heard

    @contextmanager
    def before_the_run(self) -> Iterator[None]:
        """Nothing to install."""
        yield


class KeptRayEngine(RayEngine):
    """A Ray engine whose actors go on to the next trial of the same process."""

    def take_over(
        self, config: Config, run: str, interrupted: Callable[[], bool], notice: Callable[[str], None]
    ) -> KeptRayEngine:
        """The same actors for another run."""
        self.config, self.run, self.interrupted, self.notice = config, run, interrupted, notice
        return self

    def start(self, state: Any) -> None:
        """Starts the actors, or the run on those that there are."""
        if self._coordinator is None:
            super().start(state)
        else:
            self.begin(self.config, self.run, state)

    def close(self) -> None:
        """Keeps everything; see :meth:`end`."""

    def end(self) -> None:
        """Ends the actors."""
        super().close()


@dataclass
class Engines:
    """Hands every trial of this process its engine.

    Args:
        kept: the Ray engine of the trials so far.
        sources: number of its domain workers.
    """

    kept: KeptRayEngine | None = None
    sources: int = 0

    def make(
        self, config: Config, run: str, interrupted: Callable[[], bool], notice: Callable[[str], None]
    ) -> RayEngine | InlineEngine:
        """The engine of one run."""
        if config.engine == "inline":
            return InlineEngine(config, run, interrupted, notice)
        if self.kept is not None and self.sources == len(config.sources):
            return self.kept.take_over(config, run, interrupted, notice)
        self.drop()
        self.kept, self.sources = KeptRayEngine(config, run, interrupted, notice), len(config.sources)
        return self.kept

    def drop(self) -> None:
        """Ends the actors; the next run starts its own."""
        if self.kept is not None:
            self.kept.end()
            self.kept = None


@dataclass
class Running:
    """A trial in this process.

    Args:
        record: its record, as last written.
        config: its configuration.
        began: when this process took it up.
        stages: the run, once it has started.
        latest: its last evaluation here.
        context: its connection with the sweep.
    """

    record: TrialRecord
    config: Config
    began: float = field(default_factory=time.monotonic)
    stages: Generator[Evaluation, None, Result] | None = None
    latest: Evaluation | None = None
    context: TrialContext | None = None


class Trial(tune.Trainable):  # type: ignore[misc]  # Ray has no types for it
    """Tune's side of a trial; each step of Tune is the training up to the next evaluation."""

    def setup(self, config: dict[str, Any], info: SweepInfo) -> None:
        """Takes up the first trial of this process."""
        self.info, self.folder = info, SweepFolder(info.folder)
        self.engines = Engines()
        self.running: Running | None = None
        if info.cwd not in sys.path:
            sys.path.insert(0, info.cwd)
        import_plugins(info.base.plugins)
        self._take_up(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Leaves the trial in hand and takes up another one (or the same with other values)."""
        self._leave(number_of(self.trial_name))
        self._take_up(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Trains to the next evaluation; after the last one, to the end of the run."""
        trial = self.running
        assert trial is not None
        try:
            if trial.stages is None:
                self._start(trial)
            assert trial.stages is not None
            trial.latest = next(trial.stages)
            if trial.latest.step >= trial.config.steps:
                next(trial.stages)
        except StopIteration:
            self.running = None
            if trial.record.stopping:  # decided before the sweep was interrupted; Tune was told the results then
                self._note(trial, "stopped", reason=trial.record.stopping, step=trial.record.stops_at)
                return self._nothing_new(trial)
            self._note(trial, "finished", step=trial.config.steps)
            return self._report(trial, done=True)
        except Interrupted as interruption:
            self._note(trial, "interrupted", reason=str(interruption))
            self.running = None
            return self._nothing_new(trial)
        except DifcError as error:
            self.engines.drop()
            self._note(trial, "failed", reason=str(error))
            self.running = None
            return self._report(trial, done=True, failed=str(error))
        except BaseException:
            self.running = None  # it has ended by itself: leaving it later must not look as if it was stopped
            raise
        self._note(trial, "running", step=trial.latest.step)
        return self._report(trial)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The state after the last evaluation, for another trial to go on from."""
        trial, target = self.running, Path(checkpoint_dir)
        if trial is None or trial.latest is None or trial.context is None:
            return  # before its first evaluation, or after its end, there is nothing to hand on
        trial.context.save()
        shutil.copytree(checkpoint_path(self._run_dir(trial), trial.latest.step), target / STATE)
        score = {"score": trial.latest.values["selection/score"], "number": trial.record.point.number}
        (target / SCORE).write_text(json.dumps(score), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Goes on from another trial's state with the values of this one; its own state is in its run folder."""
        trial, source = self.running, Path(str(checkpoint))
        assert trial is not None
        if not (source / SCORE).is_file():
            return
        given = json.loads((source / SCORE).read_text("utf-8"))
        number = trial.record.point.number
        if given["number"] == number:
            return
        snapshot = read_checkpoint(source / STATE)
        root = self._run_dir(trial) / "checkpoints"
        shutil.rmtree(root, ignore_errors=True)
        step = int(snapshot.meta["step"])
        progress = {**snapshot.meta["progress"], "best_step": step, "best_score": given["score"]}
        ours = replace(snapshot, meta={**snapshot.meta, "progress": progress}, config_yaml=to_yaml(trial.config))
        save(root, ours, keep=trial.config.checkpoint.keep, best=True)
        (root.parent / "config.yaml").write_text(to_yaml(trial.config), encoding="utf-8")
        taken = {"step": step, "from": given["number"], "values": dict(trial.record.point.values)}
        trial.record = replace(trial.record, lineage=(*trial.record.lineage, taken))
        self._note(trial, "running", step=step)

    def cleanup(self) -> None:
        """Tune is done with this process."""
        self._leave(-1)
        self.engines.drop()

    def _take_up(self, config: Mapping[str, Any]) -> None:
        """Makes a trial the one in hand. Nothing is written yet: Tune also does this to processes it will not use."""
        os.chdir(self.info.cwd)  # Tune has changed into a folder of its own
        number = number_of(self.trial_name)
        point = self.info.points.get(number)
        values = dict(config.get("point", config)["values"])
        if point is None:  # made up by the searcher, which counts the seeds of a setting
            position = int(config.get("__trial_index__", 0))
            point = Point(number=number, setting=number // len(self.info.seeds), seed=self.info.seeds[position])
        point = replace(point, values=values)
        before = self.folder.record(number)
        record = TrialRecord(point=point, status="running")
        if before is not None:
            record = replace(
                record, step=before.step, seconds=before.seconds, lineage=before.lineage, stopping=before.stopping,
                stops_at=before.stops_at,
            )  # fmt: skip
        self.running = Running(record=record, config=trial_config(self.info.base, point, self.folder.trials))

    def _start(self, trial: Running) -> None:
        """Starts the run, or continues it from its newest checkpoint."""
        self._note(trial, "running")
        point, config = trial.record.point, trial.config
        if self.folder.can_resume(point.number):
            config = config.model_copy(update={"resume": str(self._run_dir(trial))})
        elif aside := self.folder.set_aside(point.number):
            trial.record = replace(trial.record, aside=aside.name)
            self._note(trial, "running")
        tags = {
            "sweep": self.folder.path.name,
            "sweep.trial": str(point.number),
            "sweep.point": str(point.setting),
            "sweep.values": json.dumps(dict(point.values)),
        }
        if point.fold:
            tags["sweep.fold"] = point.fold
        interruption = SweepInterruption(self.folder.interrupted)
        trial.context = TrialContext(
            parent=self.info.parent, run_name=f"{self.folder.path.name}-{point.name}", tags=tags,
            resume=self.info.resume, make_engine=self.engines.make,
            stopped=trial.record.stopping, stops_at=trial.record.stops_at,
        )  # fmt: skip
        trial.stages = stages(config, Silent(), interruption, trial.context)

    def _leave(self, number: int) -> None:
        """Ends or suspends the trial in hand, which Tune has left for another one.

        A scheduler that stops trials does not say so; where none pauses them, one that is left was stopped.
        """
        trial, self.running = self.running, None
        if trial is None:
            return
        if trial.stages is None or trial.latest is None:
            return
        pauses = self.info.scheduler == "pbt" or number == trial.record.point.number
        if pauses or self.folder.interrupted.exists():
            trial.stages.close()
            self._note(trial, "interrupted", step=trial.latest.step)
            return
        assert trial.context is not None
        decision, step = f"{self.info.scheduler} at step {trial.latest.step}", trial.latest.step
        trial.record = replace(trial.record, stopping=decision, stops_at=step)
        self._note(trial, "running", step=step)  # the decision outlives whatever ends the final evaluation
        trial.context.stopped, trial.context.stops_at = decision, step
        try:
            next(trial.stages)
        except StopIteration:
            self._note(trial, "stopped", reason=decision, step=step)
        except Interrupted as interruption:
            self._note(trial, "interrupted", reason=str(interruption))
        except DifcError as error:
            self.engines.drop()
            self._note(trial, "failed", reason=str(error))

    def _run_dir(self, trial: Running) -> Path:
        return self.folder.run_dir(trial.record.point.number)

    def _note(self, trial: Running, status: Any, *, step: int | None = None, reason: str = "") -> None:
        """Writes the trial's record."""
        now = time.monotonic()
        trial.record = replace(
            trial.record,
            status=status,
            reason=reason,
            step=trial.record.step if step is None else step,
            seconds=trial.record.seconds + now - trial.began,
        )
        trial.began = now
        self.folder.write(trial.record)

    @staticmethod
    def _nothing_new(trial: Running) -> dict[str, Any]:
        """What Tune is told of a trial that ends without a result of its own."""
        return {"__duplicate__": True, "number": trial.record.point.number, "done": True}

    def _report(self, trial: Running, *, done: bool = False, failed: str = "") -> dict[str, Any]:
        """What Tune is told."""
        values = dict(trial.latest.values) if trial.latest and not failed else {self.info.metric: self.info.worst}
        step = trial.latest.step if trial.latest else trial.record.step
        return {**values, "step": step, "number": trial.record.point.number, "done": done, "failed": failed}


def number_of(trial_name: str) -> int:
    """The number in a trial's name."""
    return int(trial_name.rpartition("-")[2])
