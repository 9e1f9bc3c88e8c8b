"""From methods and restarts to trials of a sweep, and from their folders to what each run came to."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from difc_ray.config import Config
from difc_ray.config.overrides import parse_overrides
from difc_ray.data import open_domain, open_family
from difc_ray.errors import CheckpointError, ConfigError
from difc_ray.studies.colored_mnist.checkpoints import Measured, measured
from difc_ray.studies.colored_mnist.methods import RECIPE, Method
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.space import Space
from difc_ray.sweeps.sweep import SweepDisplay, run_sweep
from difc_ray.sweeps.trials import Point, base_config, trial_config
from difc_ray.tracking import entries

FULL, SMALL = "colored_mnist", "colored_mnist_5k"
SWEEP: Final = "sweep"
OPTIONS: Final = "dataset_options."
EVALUATIONS: Final = 10
"""At least so many in a run, the last of them one step before its end."""

_OURS: Final = ("name", "output", "resume", "seed", "selection", "eval_every", "checkpoint", "batch_size", "engine")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be reproduced.

    Args:
        methods: rows of the table.
        restarts: runs of each, >= 1; run r has seed r and the r-th draw of the data, for every method.
        digits: folder with MNIST's files; None: the 5,000 digits.
        output: folder of the results; None: `runs/reproduce-DATASET`.
        settings: changes to the recipe, as `key=value`.
        command: the command that asks for it, to go on with.
    """

    methods: Sequence[Method]
    restarts: int
    digits: Path | None
    output: Path | None
    settings: Sequence[str] = ()
    command: str = ""

    @property
    def dataset(self) -> str:
        """Name of the dataset, which stands on everything that is written."""
        return SMALL if self.digits is None else FULL


@dataclass(frozen=True, kw_only=True)
class StepAccuracies:
    """A run after some updates; accuracies in [0, 1].

    Args:
        step: updates taken.
        train: mean over the training domains, on all training examples as they are.
        test: on the test domain.
        gray: without colour.
        validation: mean over the training domains, on examples that were held out.
    """

    step: int
    train: float
    test: float
    gray: float
    validation: float

    @property
    def gap(self) -> float:
        """``|train − test|``."""
        return abs(self.train - self.test)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of a method.

    Args:
        method: its name.
        restart: its number.
        moments: its evaluations, in order; the last is the published protocol's.
        measured: what was measured at its checkpoints, by step.
        seconds: wall time.
    """

    method: str
    restart: int
    moments: tuple[StepAccuracies, ...]
    measured: Mapping[int, Measured]
    seconds: float

    @property
    def last(self) -> StepAccuracies:
        """What the published protocol reports."""
        return self.moments[-1]

    @property
    def chosen(self) -> StepAccuracies:
        """The earliest of the evaluations with the best validation accuracy on the training domains."""
        return max(self.moments, key=lambda moment: (moment.validation, -moment.step))


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of it.

    Args:
        request: what was asked for.
        base: what all runs share.
        folder: where results go.
        runs: those that have come to their end.
        failed: the others.
        changed: how the settings differ from the recipe.
    """

    request: Request
    base: Config
    folder: Path
    runs: Sequence[Run]
    failed: Sequence[TrialRecord]
    changed: Sequence[str]

    def of(self, method: str) -> list[Run]:
        """The runs of a method, by restart."""
        return sorted((run for run in self.runs if run.method == method), key=lambda run: run.restart)


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What runs.

    Args:
        request: what was asked for.
        space: the sweep.
        base: what all trials share.
        points: the trials; the setting of each is the number of its method.
        resume: whether the sweep was begun before.
    """

    request: Request
    space: Space
    base: Config
    points: Sequence[Point]
    resume: bool

    @property
    def folder(self) -> Path:
        """Where results go."""
        return self.base.output

    def method(self, point: Point) -> str:
        """The name of a trial's method."""
        return self.request.methods[point.setting].name


def planned(request: Request) -> StudyPlan:
    """The trials of a request, all of whose configurations are valid; nothing is written.

    Raises:
        ConfigError: a setting cannot be changed here, or does not fit.
        DataError: the digits cannot be used.
        CheckpointError: the folder holds another reproduction.
    """
    folder = request.output or Path("runs") / f"reproduce-{request.dataset}"
    given = [argument.partition("=")[0] for argument in request.settings]
    for key in given:
        if key.split(".")[0] in _OURS:
            raise ConfigError(
                f"a reproduction sets `{key}` itself, got it among the settings (command line). Leave it out; the "
                "folder is `--output`."
            )
        if owners := [method.name for method in request.methods if key in method.values]:
            raise ConfigError(
                f"a method sets `{key}` itself, got it among the settings with `{owners[0]}` (command line). Leave it "
                "out, or search it with `difc-ray tune`."
            )
    root = {} if request.digits is None else {"root": str(request.digits)}
    given_values, _ = parse_overrides(request.settings)  # what is wrong with them is told below
    options = {key.removeprefix(OPTIONS): value for key, value in given_values.items() if key.startswith(OPTIONS)}
    family = open_family(request.dataset, options, request.digits, 0)
    size = open_domain(request.dataset, family, RECIPE["sources"][0]).size("train")
    content = {**RECIPE, **root, "dataset": request.dataset, "batch_size": size}
    seeds = tuple(range(request.restarts))
    space = Space(
        source=str(folder / "recipe.yaml"), name="colored-mnist", description=f"Colored MNIST on {request.dataset}",
        metric="selection/score", mode="max", config=content, space={}, scheduler="none", options={}, searcher="grid",
        samples=1, seeds=seeds, selection="train_domain_val", lines={},
        content={"config": content, "settings": list(request.settings), "restarts": request.restarts,
                 "methods": {method.name: dict(method.values) for method in request.methods}},
        resume=request.command,
    )  # fmt: skip
    base = base_config(space, None, [*request.settings, f"output={folder}"])
    if base.steps <= EVALUATIONS:
        raise ConfigError(
            f"`steps` must be above {EVALUATIONS} to be evaluated on the way, got {base.steps} (command line). Leave "
            "it out, or raise it."
        )
    every = evaluated_every(base.steps)
    base = base.model_copy(
        update={"name": SWEEP, "eval_every": every,
                "checkpoint": base.checkpoint.model_copy(update={"every": every, "keep": base.steps})}
    )  # fmt: skip
    points = [
        Point(number=number, setting=setting, seed=seed, values={**method.values, "dataset_options.draw": seed})
        for number, (setting, method, seed) in enumerate(
            (setting, method, seed) for seed in seeds for setting, method in enumerate(request.methods)
        )
    ]
    for point in points[: len(request.methods)]:
        trial_config(base, point, Path("/"), f"method {request.methods[point.setting].name}")
    return StudyPlan(request=request, space=space, base=base, points=points, resume=begun(space, base))


def evaluated_every(steps: int) -> int:
    """Steps between two evaluations: as many as divide the steps before the last one into ten evaluations or more.

    >>> evaluated_every(501), evaluated_every(41), evaluated_every(12)
    (50, 4, 1)
    """
    return next(every for every in range((steps - 1) // EVALUATIONS, 0, -1) if (steps - 1) % every == 0)


def begun(space: Space, base: Config) -> bool:
    """Whether the folder holds the sweep already.

    Raises:
        CheckpointError: it holds that of other methods, restarts or settings.
    """
    folder = SweepFolder(base.output / SWEEP)
    if not folder.sheet.is_file():
        return False
    if folder.read()["digest"] != space.digest:
        raise CheckpointError(
            f"a folder holds one reproduction, got `{base.output}` with that of other methods, restarts or settings. "
            "Choose another `--output`, or ask for the same to go on with it."
        )
    return True


class Measuring:
    """A display that measures every run as soon as it has ended, so that its checkpoints do not pile up.

    Args:
        plan: what runs.
        display: where a person looks.
    """

    def __init__(self, plan: StudyPlan, display: SweepDisplay) -> None:
        self.plan, self.display = plan, display
        self.phase, self.notice = display.phase, display.notice

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """Measures, and passes on what the table will say, which is the state before the last update."""
        if record.status == "finished":
            last = run_of(self.plan, SweepFolder(self.plan.folder / SWEEP), record).last
            values = {**values, f"all/accuracy/{self.plan.base.target}": last.test}
        self.display.trial(record, values)


def reproduce(plan: StudyPlan, display: SweepDisplay) -> Reproduction:
    """Runs what is left of a plan, and reads what came of all of it.

    Raises:
        DifcError: as :func:`difc_ray.sweeps.sweep.run_sweep`.
    """
    plan.folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(dict(plan.space.content), sort_keys=False)
    Path(plan.space.source).write_text(text, encoding="utf-8")
    folder = SweepFolder(plan.folder / SWEEP)
    if not (plan.resume and all(record.status == "finished" for record in folder.records())):
        run_sweep(plan.space, plan.base, plan.points, Measuring(plan, display), resume=plan.resume, register=None)
    display.phase("measuring gradients and Hessians")
    records = folder.records()
    runs = [run_of(plan, folder, record) for record in records if record.status == "finished"]
    failed = [record for record in records if record.status != "finished"]
    return Reproduction(
        request=plan.request, base=plan.base, folder=plan.folder, runs=runs, failed=failed, changed=changes(plan)
    )  # fmt: skip


def changes(plan: StudyPlan) -> list[str]:
    """The settings by which the runs differ from the recipe; where they run is none of it."""
    return [each for each in plan.request.settings if each.split(".")[0] not in ("cluster", "trial", "tracking")]


def run_of(plan: StudyPlan, folder: SweepFolder, record: TrialRecord) -> Run:
    """What a finished trial came to."""
    point = record.point
    run_dir = folder.run_dir(point.number)
    config = trial_config(plan.base, point, folder.trials)
    at = measured(config, run_dir)
    return Run(
        method=plan.method(point), restart=point.seed, moments=moments(run_dir / "metrics.jsonl", config, at),
        measured=at, seconds=record.seconds,
    )  # fmt: skip


def moments(path: Path, config: Config, at: Mapping[int, Measured]) -> tuple[StepAccuracies, ...]:
    """The evaluations of a run before its last update: the state that the published scripts report is the last of them.

    Args:
        path: `metrics.jsonl` of the run.
        config: its configuration.
        at: what was measured at its checkpoints; there is one at every evaluation.

    Raises:
        CheckpointError: there is none at one.
    """
    target, colourless = str(config.target), config.observe[-1]
    found = []
    for entry in entries(path, "evaluation"):
        if entry["step"] >= config.steps:
            continue
        if entry["step"] not in at:
            raise CheckpointError(
                f"a reproduction needs what was measured at every evaluation, got nothing of step {entry['step']} "
                f"(`{path.parent}`). Remove this reproduction's folder, or choose another `--output`."
            )
        validations = [entry[f"val/accuracy/{name}"] for name in config.sources]
        found.append(
            StepAccuracies(
                step=entry["step"],
                train=at[entry["step"]].train,
                test=entry[f"all/accuracy/{target}"],
                gray=entry[f"all/accuracy/{colourless}"],
                validation=math.fsum(validations) / len(validations),
            )
        )
    return tuple(found)


def command_of(request: Request) -> str:
    """The command that asks for the same."""
    words = ["difc-ray", "reproduce", "colored-mnist", "--restarts", str(request.restarts)]
    words += ["--methods", ",".join(method.name for method in request.methods)]
    words += [] if request.digits is None else ["--digits", str(request.digits)]
    words += [] if request.output is None else ["--output", str(request.output)]
    return shlex.join([*words, *request.settings])
