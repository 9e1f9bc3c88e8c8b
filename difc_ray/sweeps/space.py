"""The file that describes a sweep: what is searched, how, how often, and by which measure.

Reading finds every problem of the file at once, each with its line. What the file says about the configuration is
checked against the configuration itself by :mod:`difc_ray.sweeps.trials`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from difc_ray.config import ConfigProblems, Problem
from difc_ray.config.overrides import owner, unknown_key
from difc_ray.config.problems import show
from difc_ray.config.schema import sections
from difc_ray.config.yaml_strict import Document, UnreadableError, read_file
from difc_ray.registry import did_you_mean

RANGES = ("uniform", "loguniform", "randint")
LISTS = ("choice", "grid")

SCHEDULERS: dict[str, dict[str, str]] = {
    "none": {},
    "asha": {"grace_period": "count", "reduction_factor": "factor", "brackets": "count", "max_t": "count"},
    "median": {"grace_period": "count", "min_samples_required": "count"},
    "pbt": {"perturbation_interval": "count", "quantile_fraction": "half", "resample_probability": "unit"},
}
"""Schedulers and their options, each with the kind of its value."""

_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "count": ("an integer >= 1", lambda v: isinstance(v, int) and v >= 1),
    "factor": ("a number > 1", lambda v: isinstance(v, int | float) and math.isfinite(v) and v > 1),
    "half": ("a number in (0, 0.5]", lambda v: isinstance(v, int | float) and 0 < v <= 0.5),
    "unit": ("a number in [0, 1]", lambda v: isinstance(v, int | float) and 0 <= v <= 1),
}

SEARCHERS = ("random", "grid", "optuna")
SELECTIONS = ("train_domain_val", "leave_one_domain_out", "oracle")
KEYS = (
    "description", "metric", "mode", "config", "space", "scheduler", "searcher", "samples", "seeds", "selection",
)  # fmt: skip

_OURS = ("name", "output", "resume", "seed", "engine", "eval_every", "selection", "plugins")
_OUR_SECTIONS = ("tracking", "cluster", "checkpoint", "trial")


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """What one key is drawn from.

    Args:
        kind: `uniform`, `loguniform` and `randint` between two ends (of `randint` the upper one is not drawn); `choice`
            draws from a list; `grid` takes all of a list in turn.
        values: the two ends, or the list.
    """

    kind: str
    values: tuple[Any, ...]

    @property
    def is_range(self) -> bool:
        """Whether it is a range rather than a list."""
        return self.kind in RANGES

    def draw(self, rng: np.random.Generator) -> Any:
        """One value; not for `grid`."""
        if self.kind == "choice":
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "randint":
            return int(rng.integers(low, high))
        if self.kind == "uniform":
            return float(rng.uniform(low, high))
        return float(min(high, max(low, math.exp(rng.uniform(math.log(low), math.log(high))))))

    def listed(self) -> tuple[Any, ...]:
        """All values, where they can be listed; empty for a continuous range."""
        return tuple(range(*self.values)) if self.kind == "randint" else () if self.is_range else self.values

    def clipped(self, value: int | float) -> int | float:
        """The value inside the range."""
        low, high = self.values
        return int(min(max(value, low), high - 1)) if self.kind == "randint" else float(min(max(value, low), high))


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space.

    Args:
        source: the file, for messages.
        name: the file's name without its ending.
        description: a sentence for people.
        metric: the metric that trials are compared by while they train.
        mode: `max` or `min`.
        config: settings of every trial, nested; the user's own are above them.
        space: dotted key -> distribution; ``a, b`` for keys that change together, whose values are lists.
        scheduler: one of :data:`SCHEDULERS`.
        options: its options.
        searcher: one of :data:`SEARCHERS`.
        samples: settings that are drawn.
        seeds: seeds of every setting.
        selection: rule by which the best setting is chosen at the end.
        lines: line of each key of the file, by dotted path.
        content: what the file holds.
        resume: the command that goes on with its sweep; empty: `difc-ray tune`.
    """

    source: str
    name: str
    description: str
    metric: str
    mode: str
    config: Mapping[str, Any]
    space: Mapping[str, Distribution]
    scheduler: str
    options: Mapping[str, Any]
    searcher: str
    samples: int
    seeds: tuple[int, ...]
    selection: str
    lines: Mapping[str, int]
    content: Mapping[str, Any]
    resume: str = ""

    @property
    def keys(self) -> list[str]:
        """The searched keys, one by one."""
        return [key for together in self.space for key in keys_of(together)]

    def spread(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        """What was drawn, key by key."""
        found: dict[str, Any] = {}
        for together, value in drawn.items():
            keys = keys_of(together)
            found |= dict(zip(keys, value if len(keys) > 1 else [value], strict=True))
        return found

    @property
    def digest(self) -> str:
        """sha256 of what the file says, comments and layout aside."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()

    def where(self, key: str) -> str:
        """Where a key of the searched space was written, alone or with others."""
        written = {tuple(keys_of(path[6:])): line for path, line in self.lines.items() if path.startswith("space/")}
        line = next((line for keys, line in written.items() if set(keys_of(key)) <= set(keys)), 1)
        return f"{self.source}, line {line}"


def read_space(path: Path) -> Space:
    """The space in a file.

    Raises:
        ConfigProblems: with every problem of the file.
    """
    try:
        document = read_file(path)
    except UnreadableError as error:
        raise ConfigProblems([str(error.problem).replace("config file", "search space")]) from None
    reader = _Reader(document, str(path))
    space = reader.space(path.stem)
    if reader.problems:
        raise ConfigProblems([str(problem) for problem in reader.problems])
    return space


class _Reader:
    """Takes a document apart and gathers what is wrong."""

    def __init__(self, document: Document, source: str) -> None:
        self.data, self.document, self.source = document.data, document, source
        self.problems = list(document.problems)

    def space(self, name: str) -> Space:
        """The space; what is wrong with it is among the problems, and has its default."""
        for key in self.data:
            if key not in KEYS:
                self.refuse(
                    f"unknown key `{key}` of a search space", (key,), did_you_mean(key, KEYS), show(self.data[key])
                )
        scheduler, options = self.scheduler()
        distributions = self.distributions()
        searcher = self.one_of("searcher", SEARCHERS, "random")
        samples = self.samples(searcher, distributions)
        lines = {"/".join(map(str, path)): line for path, line in self.document.lines.items()}
        return Space(
            source=self.source, name=name, description=self.text("description", ""),
            metric=self.text("metric", "selection/score"), mode=self.one_of("mode", ("max", "min"), "max"),
            config=self.config(), space=distributions, scheduler=scheduler, options=options, searcher=searcher,
            samples=samples, seeds=self.seeds(), selection=self.one_of("selection", SELECTIONS, "train_domain_val"),
            lines=lines, content=dict(self.data),
        )  # fmt: skip

    def refuse(self, what: str, path: tuple[Any, ...], remedy: str, got: str | None = None) -> None:
        value: Any = self.data
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        line = self.document.lines.get(path, 1)
        where = f"{self.source}, line {line}"
        self.problems.append(Problem(what=what, got=show(value) if got is None else got, where=where, remedy=remedy))

    def text(self, key: str, default: str) -> str:
        value = self.data.get(key, default)
        if not isinstance(value, str) or (not value.strip() and key != "description"):
            self.refuse(f"`{key}` must be text", (key,), "Correct it, or leave it out.")
            return default
        return " ".join(value.split())

    def one_of(self, key: str, names: tuple[str, ...], default: str) -> str:
        value = self.data.get(key, default)
        if value not in names:
            self.refuse(f"`{key}` must be one of {', '.join(names)}", (key,), did_you_mean(str(value), names))
            return default
        return str(value)

    def seeds(self) -> tuple[int, ...]:
        """Seeds of each setting, each once."""
        value = self.data.get("seeds", [0])
        given = value if isinstance(value, list) else [value]
        good = all(isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63 for seed in given)
        if not given or not good:
            self.refuse("`seeds` must be a list of integers in [0, 2^63)", ("seeds",), "Write for example `[0, 1, 2]`.")
            return (0,)
        if len(set(given)) < len(given):
            self.refuse("every seed must be given once", ("seeds",), "Remove the repetition.")
        return tuple(given)

    def samples(self, searcher: str, distributions: Mapping[str, Distribution]) -> int:
        """Settings to draw; with nothing to draw at random, one pass over the grid."""
        random = [key for key, each in distributions.items() if each.kind != "grid"]
        value = self.data.get("samples", 1 if searcher == "grid" or not random else None)
        if value is None:
            self.refuse(
                "`samples` must say how many settings are drawn", (), "Write for example `samples: 16`.", "nothing"
            )
            return 1
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            self.refuse("`samples` must be an integer >= 1", ("samples",), "Write for example `samples: 16`.")
            return 1
        if searcher == "grid" and value > 1:
            self.refuse("`searcher: grid` takes every setting once", ("samples",), "Leave `samples` out, or add seeds.")
        return value

    def scheduler(self) -> tuple[str, dict[str, Any]]:
        """`asha`, or `{asha: {grace_period: 50}}`."""
        value = self.data.get("scheduler", "none")
        if value is None:
            value = "none"
        name, options = (value, {}) if not isinstance(value, dict) else next(iter(value.items()), ("", {}))
        if not isinstance(name, str) or name not in SCHEDULERS or (isinstance(value, dict) and len(value) != 1):
            remedy = f"Write `scheduler: asha` or `scheduler: {{asha: {{...}}}}`. {did_you_mean(str(name), SCHEDULERS)}"
            one = isinstance(name, str) and name and (not isinstance(value, dict) or len(value) == 1)
            what = "`scheduler` must be a known one" if one else "`scheduler` must be one scheduler"
            self.refuse(what, ("scheduler",), remedy)
            return "none", {}
        options = {} if options is None else options
        if not isinstance(options, dict):
            self.refuse(
                f"the options of `{name}` must be a mapping", ("scheduler", name), "Write `option: value` lines."
            )
            return name, {}
        known = SCHEDULERS[name]
        for option, given in options.items():
            path = ("scheduler", name, option)
            if option not in known:
                remedy = did_you_mean(option, known) if known else "It takes no options."
                self.refuse(f"unknown option `{option}` of the scheduler `{name}`", path, remedy)
            elif isinstance(given, bool) or not _KINDS[known[option]][1](given):
                self.refuse(f"`{option}` of `{name}` must be {_KINDS[known[option]][0]}", path, "Correct it.")
        return name, {option: given for option, given in options.items() if option in known}

    def config(self) -> dict[str, Any]:
        """Settings, written nested or with dotted keys, as one nested mapping."""
        value = self.data.get("config") or {}
        if not isinstance(value, dict):
            self.refuse(
                "`config` must be a mapping from configuration keys to values", ("config",), "Write `steps: 100`."
            )
            return {}
        nested: dict[str, Any] = {}
        for key, given in value.items():
            node, parts = nested, str(key).split(".")
            if owner(str(key)) is None and str(key) not in sections():
                self.problems.append(unknown_key(str(key), show(given), self.at("config", key)))
                continue
            for part in parts[:-1]:
                node = node.setdefault(part, {})
            if isinstance(given, dict) and isinstance(node.get(parts[-1]), dict):
                node[parts[-1]].update(given)
            else:
                node[parts[-1]] = given
        return nested

    def at(self, *path: Any) -> str:
        return f"{self.source}, line {self.document.lines.get(path, 1)}"

    def distributions(self) -> dict[str, Distribution]:
        """The searched keys."""
        value = self.data.get("space")
        if not isinstance(value, dict) or not value:
            got = "nothing" if "space" not in self.data else None
            remedy = "Write for example `space: {alignment.alpha: {loguniform: [1e-3, 10]}}`."
            self.refuse("`space` must name at least one key to search", ("space",), remedy, got)
            return {}
        found = {}
        seen: set[str] = set()
        for together, given in value.items():
            usable = True
            for key in keys_of(str(together)):
                problem: str | None = None
                if owner(key) is None:
                    self.problems.append(unknown_key(key, show(given), self.at("space", together)))
                    usable = False
                elif key in _OURS or key.split(".")[0] in _OUR_SECTIONS:
                    problem = f"`{key}` belongs to the sweep and cannot be searched"
                    remedy = "Write `seeds: [0, 1, 2]`." if key == "seed" else "Set it for all trials, under `config`."
                elif key in seen:
                    problem, remedy = f"`{key}` must be searched once", "Remove one of its distributions."
                if problem is not None:
                    self.refuse(problem, ("space", together), remedy)
                    usable = False
                seen.add(key)
            if usable and (distribution := self.distribution(str(together), given)) is not None:
                found[", ".join(keys_of(str(together)))] = distribution
        return found

    def distribution(self, key: str, given: Any) -> Distribution | None:
        """One distribution, or None where it has a problem."""
        path = ("space", key)
        kinds = (*RANGES, *LISTS)
        if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in kinds:
            unknown = next(iter(given)) if isinstance(given, dict) and len(given) == 1 else None
            hint = did_you_mean(str(unknown), kinds) if unknown else f"Known: {', '.join(kinds)}."
            self.refuse(f"`{key}` must have one distribution", path, f"Write for example `{{uniform: [0, 1]}}`. {hint}")
            return None
        ((kind, values),) = given.items()
        inner = (*path, kind)
        width = len(keys_of(key))
        if width > 1 and (
            kind not in LISTS or not isinstance(values, list) or not all(_is_row(v, width) for v in values)
        ):
            remedy = f"Write `{{grid: [[...], [...]]}}` with {width} values in each."
            self.refuse(f"keys that change together, `{key}`, must have a list of lists", inner, remedy)
            return None
        if kind in LISTS:
            if not isinstance(values, list) or not values:
                self.refuse(f"`{kind}` of `{key}` must be a list of values", inner, "Write for example `[0.1, 1]`.")
                return None
            if len({json.dumps(value, sort_keys=True) for value in values}) < len(values):
                self.refuse(f"every value of `{key}` must be given once", inner, "Remove the repetition.")
                return None
            return Distribution(kind=kind, values=tuple(values))
        if problem := _range_problem(kind, values):
            self.refuse(f"`{kind}` of `{key}` must be {problem}", inner, "Write for example `[0.001, 10]`.")
            return None
        return Distribution(kind=kind, values=tuple(values) if kind == "randint" else tuple(map(float, values)))


def keys_of(together: str) -> list[str]:
    """The keys that change together, as ``a, b`` names them; mostly one."""
    return [key.strip() for key in together.split(",")]


def _is_row(value: Any, width: int) -> bool:
    return isinstance(value, list) and len(value) == width


def _range_problem(kind: str, values: Any) -> str:
    """What the two ends of a range must be and are not; empty: nothing is wrong."""
    number = int if kind == "randint" else (int, float)
    pair = isinstance(values, list) and len(values) == 2
    if not pair or any(isinstance(v, bool) or not isinstance(v, number) or not math.isfinite(v) for v in values):
        return "two integers [low, high)" if kind == "randint" else "two finite numbers [low, high]"
    if not values[0] < values[1]:
        return "two ends, the lower one first"
    return "above 0 at both ends" if kind == "loguniform" and values[0] <= 0 else ""
