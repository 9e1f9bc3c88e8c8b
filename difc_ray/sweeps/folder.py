"""The folder of a sweep: what it searches, and how far every trial is. All of it is JSON, YAML and run folders.

<output>/<sweep>/
    sweep.json          name, the space and its digest, trials with their values
    space.yaml          the file of the space, as it was
    config.yaml         what all trials share
    trials/00007/       the run folder of a trial
    trials/00007.json   its values and its status
    aside/00007-1       its folder before it had to start anew
    metrics.jsonl       the journal of the sweep's own MLflow run
    tracking/           how far that is sent
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from difc_ray.config import Config, ConfigProblems, to_yaml
from difc_ray.errors import CheckpointError
from difc_ray.files import write_json
from difc_ray.runs.checkpoint import UnreadableCheckpointError
from difc_ray.runs.reading import newest_checkpoint
from difc_ray.sweeps.space import Space, read_space
from difc_ray.sweeps.trials import Point
from difc_ray.tracking import TrackingFolder, entries

Status = Literal["waiting", "running", "finished", "stopped", "failed", "interrupted"]
ENDED = ("finished", "stopped", "failed")
"""A trial in one of these states is not run again (a failed one is, when the sweep is resumed)."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial.

    Args:
        point: which.
        status: how far it is.
        reason: why it was stopped or failed.
        step: updates taken when this was written.
        seconds: wall time of the trial, its preparation included.
        stopping: the scheduler's decision to stop it, written down before the trial is concluded; empty: there is none.
        stops_at: the step of that decision.
        aside: name of the folder that its earlier run was moved to, as no checkpoint in it could be used.
        lineage: steps at which it took over another trial's state, with that trial and the values since then.
    """

    point: Point
    status: Status = "waiting"
    reason: str = ""
    step: int = 0
    seconds: float = 0.0
    stopping: str = ""
    stops_at: int = 0
    aside: str = ""
    lineage: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """What a trial has reported.

    Args:
        steps: when.
        values: metric -> value, for each.
    """

    steps: list[int] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)


class SweepFolder:
    """Reads and writes a sweep's folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sheet = path / "sweep.json"
        self.trials = path / "trials"
        self.interrupted = path / "interrupted"

    def create(self, space: Space, base: Config, points: Sequence[Point], key: str) -> None:
        """Writes what the sweep is; the list of trials is empty where the searcher makes them up as it goes."""
        self.trials.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(space.source, self.path / "space.yaml")
        (self.path / "config.yaml").write_text(to_yaml(base), encoding="utf-8")
        write_json(
            self.sheet,
            {
                "name": self.path.name,
                "space": space.name,
                "digest": space.digest,
                "key": key,
                "trials": [asdict(point) for point in points],
            },
        )

    def read(self) -> dict[str, Any]:
        """What `sweep.json` holds.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        try:
            sheet: dict[str, Any] = json.loads(self.sheet.read_text("utf-8"))
            sheet["points"] = [Point(**each) for each in sheet["trials"]]
            return sheet | {"name": str(sheet["name"]), "digest": str(sheet["digest"]), "key": str(sheet["key"])}
        except FileNotFoundError:
            raise CheckpointError(
                f"a sweep must have its `sweep.json`, got none (`{self.path}`). Name another sweep, or start a new one."
            ) from None
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"`sweep.json` must list the sweep's trials, got {type(error).__name__}: {error} (`{self.sheet}`). "
                "Restore it from a backup; the runs of the trials are intact, each can be evaluated alone."
            ) from None

    def differing(self, space: Space) -> str:
        """In which keys a space differs from the one that the sweep was started with, to go on in a sentence."""
        try:
            before, now = read_space(self.path / "space.yaml").content, space.content
        except ConfigProblems:
            return ""
        keys = [key for key in dict.fromkeys([*before, *now]) if before.get(key) != now.get(key)]
        return f"; they differ in {', '.join(f'`{key}`' for key in keys)}" if keys else ""

    def run_dir(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.trials / f"{number:05d}"

    def write(self, record: TrialRecord) -> None:
        """Writes a trial's record, whole or not at all."""
        write_json(self.trials / f"{record.point.name}.json", asdict(record))

    def record(self, number: int) -> TrialRecord | None:
        """A trial's record; None when it has none yet, or a damaged one (it then counts as not run)."""
        try:
            data = json.loads((self.trials / f"{number:05d}.json").read_text("utf-8"))
            point, lineage = Point(**data.pop("point")), tuple(data.pop("lineage"))
            return TrialRecord(point=point, lineage=lineage, **data)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def update(self, number: int, **changes: Any) -> None:
        """Changes a trial's record, if it has one."""
        if (record := self.record(number)) is not None:
            self.write(replace(record, **changes))

    def records(self) -> list[TrialRecord]:
        """All trials: those of `sweep.json`, and those that the searcher has made up, in their order."""
        listed = {point.number: TrialRecord(point=point) for point in self.read()["points"]}
        for path in self.trials.glob("*.json"):
            if path.stem.isdigit() and (record := self.record(int(path.stem))) is not None:
                listed[record.point.number] = record
        return [listed[number] for number in sorted(listed)]

    def evaluations(self, number: int) -> Evaluations:
        """What a trial has reported so far."""
        found = Evaluations()
        for entry in entries(TrackingFolder(self.run_dir(number)).journal, "evaluation"):
            found.steps.append(int(entry["step"]))
            # a confusion matrix stands there as well
            found.values.append({k: v for k, v in entry.items() if k != "step" and isinstance(v, int | float)})
        return found

    def summary(self, number: int) -> dict[str, Any] | None:
        """A trial's `summary.json`, once it has one."""
        try:
            found: dict[str, Any] = json.loads((self.run_dir(number) / "summary.json").read_text("utf-8"))
            return found
        except (OSError, ValueError):
            return None

    def can_resume(self, number: int) -> bool:
        """Whether a trial has a checkpoint to go on from.

        Raises:
            UnreadableCheckpointError: the storage does not tell.
        """
        try:
            newest_checkpoint(self.run_dir(number))
            return True
        except UnreadableCheckpointError:
            raise
        except CheckpointError:
            return False

    def set_aside(self, number: int) -> Path | None:
        """Renames the folder of a trial that starts anew, as it may hold somebody's work; None if there is none."""
        run_dir = self.run_dir(number)
        if not run_dir.exists():
            return None
        aside = self.path / "aside"
        aside.mkdir(exist_ok=True)
        names = (aside / f"{run_dir.name}-{count}" for count in itertools.count(1))
        return run_dir.rename(next(path for path in names if not path.exists()))
