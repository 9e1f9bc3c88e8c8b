"""From a space to its trials: which settings, each with which seeds and folds, and the configuration of every one.

Everything that can be wrong with a sweep is found here, before anything starts.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from difc_ray.config import SYMBOLS, Config, ConfigProblems, DataProblems, Problem, load_config, resolve
from difc_ray.config.overrides import as_argument
from difc_ray.config.yaml_strict import UnreadableError, read_file
from difc_ray.determinism import generator
from difc_ray.errors import ConfigError
from difc_ray.nested import all_keys, put
from difc_ray.registry import did_you_mean
from difc_ray.sweeps.space import Space
from difc_ray.sweeps.unused_keys import unread_by_all

PERTURBED = (
    "alignment.alpha", "alignment.beta", "harmonize.lam", "harmonize.flatness",
    "optimizer.lr", "optimizer.weight_decay",
)  # fmt: skip
"""What population-based training may change in mid-run: numbers that the state of a run does not depend on."""

_REDRAWS = 100


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial.

    Args:
        number: the trial, from 0.
        setting: the setting that it shares with the trials of other seeds and folds, from 0.
        seed: its seed.
        values: dotted key -> value, as searched.
        fold: a source domain that is held out and evaluated in place of the target, for leave-one-domain-out; or empty.
    """

    number: int
    setting: int
    seed: int
    values: Mapping[str, Any] = field(default_factory=dict)
    fold: str = ""

    @property
    def name(self) -> str:
        """The trial's name, which is that of its folder."""
        return f"{self.number:05d}"


def settings(space: Space, seed: int) -> list[dict[str, Any]]:
    """The settings of a space, in order: every draw with every combination of the grid; none twice.

    Args:
        space: whose searcher is `random` or `grid`.
        seed: of the draws.
    """
    listed = {key: d.listed() for key, d in space.space.items() if d.kind == "grid" or space.searcher == "grid"}
    drawn = [key for key in space.space if key not in listed]
    combinations = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    found: dict[str, dict[str, Any]] = {}
    for sample in range(space.samples):
        before = len(found)
        for again in range(_REDRAWS):
            rng = generator(seed, "sweep", str(again) if again else "", sample)
            values = {key: space.space[key].draw(rng) for key in drawn}
            for combination in combinations:
                setting = space.spread({key: (values | combination)[key] for key in space.space})
                found.setdefault(json.dumps(setting, sort_keys=True), setting)
            if len(found) > before:
                break  # else all of it was drawn before, as happens with short lists
    return list(found.values())


def points(space: Space, base: Config) -> list[Point]:
    """All trials of a space whose settings are known before it starts."""
    folds = ("", *base.sources) if space.selection == "leave_one_domain_out" else ("",)
    chosen = itertools.product(enumerate(settings(space, base.seed)), space.seeds, folds)
    return [
        Point(number=number, setting=setting, seed=seed, values=values, fold=fold)
        for number, ((setting, values), seed, fold) in enumerate(chosen)
    ]


def trial_config(base: Config, point: Point, folder: Path, where: str = "sweep") -> Config:
    """The configuration of one trial.

    Args:
        base: what all trials share.
        point: which trial.
        folder: where the run folders of the trials lie.
        where: where the values were given, for messages.

    Raises:
        ConfigProblems: the values do not fit the configuration, or each other.
        DataProblems: they name data that are not there.
    """
    data = base.model_dump(mode="json")
    engine = data["engine"] if base.trial.engine == "auto" else base.trial.engine
    data |= {"name": point.name, "output": str(folder), "seed": point.seed, "engine": engine, "resume": None}
    for key, value in point.values.items():
        put(data, key.split("."), copy.deepcopy(value))
    if point.fold:
        data |= {"sources": [name for name in data["sources"] if name != point.fold], "target": point.fold}
        data["harmonize"]["weights"] = None
        data["cluster"]["bundles"].pop(point.fold, None)  # the target has no process of its own
    try:
        return resolve(load_config(None, base=data))
    except (ConfigProblems, DataProblems) as error:
        raise type(error)([text.replace("(base configuration)", f"({where})") for text in error.problems]) from None


def metrics_of(config: Config) -> list[str]:
    """The metrics that every evaluation of a run reports."""
    found = ["selection/score"]
    found += [f"val/{what}/{name}" for name in config.sources for what in ("accuracy", "macro_f1", "loss")]
    if config.selection == "oracle" and config.target:
        found += [f"all/{what}/{config.target}" for what in ("accuracy", "macro_f1", "loss")]
    found += [f"all/{what}/{name}" for name in config.observe for what in ("accuracy", "macro_f1", "loss")]
    return list(dict.fromkeys(found))


def check_sweep(space: Space, base: Config, told: Collection[str]) -> list[Point]:
    """The trials of a space, all of whose configurations are valid.

    Args:
        space: the search space.
        base: what all trials share.
        told: keys that the user set besides.

    Raises:
        ConfigProblems: with everything that is wrong.
        DataProblems: only data are missing.
    """
    problems = [*_contradictions(space, told), *_scheduler_problems(space, base), *_searcher_problems(space)]
    if problems:
        raise ConfigProblems([str(problem) for problem in problems])
    found = points(space, base) if space.searcher != "optuna" else []
    ends = list(_ends(space, found[0] if found else _any_point(space)))
    configs: list[Config] = []
    sentences, only_data = _trial_problems(space, base, ends, configs)
    if not sentences:  # else the draws of a range that is wrong would be a sentence each
        sentences, only_data = _trial_problems(space, base, found, configs)
    if sentences:
        raise (DataProblems if only_data else ConfigProblems)(sentences)
    if unread := [str(problem) for problem in _unread_problems(space, configs)]:
        raise ConfigProblems(unread)
    return found


def _unread_problems(space: Space, configs: Sequence[Config]) -> Iterator[Problem]:
    """Searched keys that would change nothing: every setting would be trained as often as the key has values."""
    for key, reason in unread_by_all(space.keys, configs).items():
        yield Problem(
            what=f"`{key}` must be read by a trial to be searched", got=f"{reason}, which does not read it",
            where=space.where(key), remedy=f"Search another key, or see `difc-ray config` for what `{key}` is for.",
        )  # fmt: skip


def _trial_problems(
    space: Space, base: Config, trials: Iterable[Point], configs: list[Config]
) -> tuple[list[str], bool]:
    """What is wrong with the configurations of trials, each sentence once; and whether it is the data alone.

    Those with nothing wrong are added to `configs`.
    """
    sentences: dict[str, None] = {}
    only_data = True
    for point in trials:
        where = space.where(next(iter(space.space))) if len(space.space) == 1 else space.source
        try:
            config = trial_config(base, point, Path("/"), where)
        except (ConfigProblems, DataProblems) as error:
            only_data &= isinstance(error, DataProblems)
            sentences |= dict.fromkeys(error.problems)
            continue
        configs.append(config)
        if space.metric not in (known := metrics_of(config)):
            what = f"`metric` must be one that every trial reports, got `{space.metric}` ({space.source})."
            sentences[f"{what} {did_you_mean(space.metric, known)}"] = None
            only_data = False
    return list(sentences), only_data


def _any_point(space: Space) -> Point:
    """A point inside the space, to vary one key at a time."""
    rng = generator(0, "sweep")
    values = {key: d.values[0] if d.kind == "grid" else d.draw(rng) for key, d in space.space.items()}
    return Point(number=0, setting=0, seed=space.seeds[0], values=space.spread(values))


def _ends(space: Space, inside: Point) -> Iterator[Point]:
    """Points at both ends of every range, which no draw may reach before the sweep has run for hours."""
    for key, distribution in space.space.items():
        low, high = distribution.values[0], distribution.values[-1]
        ends = (low, high - 1 if distribution.kind == "randint" else high)
        for value in ends if distribution.is_range else distribution.listed():
            yield Point(number=0, setting=0, seed=inside.seed, values={**inside.values, **space.spread({key: value})})


def _contradictions(space: Space, told: Collection[str]) -> Iterator[Problem]:
    """What the space searches and somebody sets as well; measures that point the wrong way."""
    inside = dict.fromkeys(all_keys(space.config), "under `config`") | dict.fromkeys(told, "by the user")
    for key, by in inside.items():
        if key in space.keys:
            what, remedy = f"`{key}` must be searched or set, not both", "Remove one of them."
            yield Problem(what=what, got=f"a distribution, and a value {by}", where=space.where(key), remedy=remedy)
    better = "min" if "/loss/" in f"{space.metric}/" else "max"
    if space.mode != better:
        what = f"`mode` must be `{better}` for the metric `{space.metric}`"
        yield Problem(what=what, got=f"`{space.mode}`", where=space.source, remedy=f"Write `mode: {better}`.")


def _scheduler_problems(space: Space, base: Config) -> Iterator[Problem]:
    """What does not fit the scheduler."""
    name, options = space.scheduler, space.options
    if name == "none":
        return

    def problem(what: str, got: str, remedy: str) -> Problem:
        line = space.lines.get(f"scheduler/{name}", space.lines.get("scheduler", 1))
        return Problem(what=what, got=got, where=f"{space.source}, line {line}", remedy=remedy)

    if base.eval_every >= base.steps:
        got = f"`eval_every={base.eval_every}` and `steps={base.steps}`"
        remedy = "Lower `eval_every`: schedulers decide at evaluations only."
        yield problem(f"`{name}` needs more than one evaluation per trial", got, remedy)
    if space.selection == "leave_one_domain_out":
        what = "`leave_one_domain_out` compares trials that are trained to the end"
        yield problem(what, f"the scheduler `{name}`", "Write `scheduler: none`.")
    bound = options.get("max_t", base.steps)
    if bound > base.steps:
        yield problem("`max_t` must be at most `steps`", f"{bound} and {base.steps}", "Leave it out: it is `steps`.")
    grace = options.get("grace_period", options.get("perturbation_interval", base.eval_every))
    if base.eval_every < base.steps and not base.eval_every <= grace < bound:
        what = (
            f"`{'perturbation_interval' if name == 'pbt' else 'grace_period'}` must be in steps, at least `eval_every` "
        )
        got = f"{grace}, with `eval_every={base.eval_every}` and {bound} steps"
        yield problem(f"{what}and less than a trial's steps", got, "Correct it, or leave it out: it is `eval_every`.")
    if name == "pbt":
        others = [key for key, d in space.space.items() if key not in PERTURBED or not d.is_range]
        if others:
            what = "`pbt` perturbs numbers of a range that may change in mid-run"
            yield problem(what, f"`{'`, `'.join(others)}`", f"Search only {', '.join(PERTURBED)} by a range.")
        if len(space.seeds) > 1 or space.samples < 2 or space.searcher == "optuna":
            got = f"`samples: {space.samples}`, {len(space.seeds)} seeds, `searcher: {space.searcher}`"
            yield problem("`pbt` needs a population drawn at random, of one seed", got, "Write `samples: 4` or more.")
        elif base.trial.concurrent is not None and base.trial.concurrent < space.samples:
            got = f"`trial.concurrent={base.trial.concurrent}` for `samples: {space.samples}`"
            remedy = "Leave `trial.concurrent` out: trials take turns where there is no room for all."
            yield problem("`pbt` needs its whole population in training at the same time", got, remedy)


def _searcher_problems(space: Space) -> Iterator[Problem]:
    """What does not fit the searcher."""
    where = f"{space.source}, line {space.lines.get('searcher', 1)}"
    for key, distribution in space.space.items():
        if space.searcher == "grid" and not distribution.listed():
            what, remedy = f"`searcher: grid` needs a list of values for `{key}`", "Write `{grid: [0.1, 1]}`."
            yield Problem(what=what, got=f"`{distribution.kind}`", where=space.where(key), remedy=remedy)
        if space.searcher == "optuna" and distribution.kind == "grid":
            what, remedy = f"`searcher: optuna` chooses values for `{key}` itself", "Write `choice` in place of `grid`."
            yield Problem(what=what, got="`grid`", where=space.where(key), remedy=remedy)
        if (
            space.searcher == "optuna"
            and distribution.kind == "choice"
            and not all(map(_is_plain, distribution.values))
        ):
            what, remedy = f"`searcher: optuna` chooses among text and numbers for `{key}`", "Use `searcher: random`."
            yield Problem(what=what, got="a list or a mapping", where=space.where(key), remedy=remedy)
    if space.searcher == "optuna":
        if space.selection == "leave_one_domain_out":
            what = "`leave_one_domain_out` needs settings that are known before"
            yield Problem(what=what, got="`searcher: optuna`", where=where, remedy="Write `searcher: random`.")
        if importlib.util.find_spec("optuna") is None:
            what, remedy = "`searcher: optuna` needs Optuna", "Run `pip install 'difc_ray[optuna]'`."
            yield Problem(what=what, got="no such package", where=where, remedy=remedy)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def told_keys(settings_told: Collection[str], file: Path | None) -> list[str]:
    """The keys that a user sets on the command line and in a configuration file."""
    told = [argument.partition("=")[0] for argument in settings_told]
    if file is not None:
        with contextlib.suppress(UnreadableError):  # said by the loading of the configuration
            told += all_keys(read_file(file).data)
    return told


def label(values: Mapping[str, Any]) -> str:
    """Searched values in a few characters, for lines and tables.

    >>> label({"alignment.alpha": 0.012345, "harmonize.rule": "gh"})
    'α 0.0123 rule gh'
    """
    parts = []
    for key, value in values.items():
        shown = f"{value:.3g}" if isinstance(value, float) else as_argument(key, value)
        parts.append(f"{SYMBOLS.get(key, key.rpartition('.')[2])} {shown}")
    return " ".join(parts)


def base_config(space: Space, file: Path | None, overrides: list[str]) -> Config:
    """What all trials of a sweep share: defaults, below the space's settings, below the user's file and arguments.

    Whether the folder of the sweep may be there is for the sweep to say: it may be resumed.

    Raises:
        ConfigProblems, DataProblems: as :func:`difc_ray.config.load_config`.
        ConfigError: the sweep would resume a single run.
    """
    try:
        config = load_config(file, overrides, base=dict(space.config), paths=True, new=False)
    except (ConfigProblems, DataProblems) as error:
        raise type(error)([t.replace("(base configuration)", f"({space.source})") for t in error.problems]) from None
    if config.resume is not None:
        raise ConfigError(
            f"`resume` continues a single run, got `{config.resume}` (command line). Write `difc-ray tune SPACE "
            "--resume` to continue a sweep."
        )
    resolved = resolve(config)  # only the folders: what `auto` means depends on the trial
    return config.model_copy(update={"output": resolved.output, "root": resolved.root})
