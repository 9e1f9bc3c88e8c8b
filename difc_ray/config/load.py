"""From a file, ``key=value`` arguments and a base to a checked configuration, with every problem at once."""

from __future__ import annotations

import copy
import difflib
import importlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from difc_ray.config.checks import semantic_problems
from difc_ray.config.keys import Config
from difc_ray.config.overrides import LIST_ALL, WHERE, ambiguous, as_argument, owner, parse_overrides, unknown_key
from difc_ray.config.preflight import path_problems
from difc_ray.config.problems import ConfigProblems, DataProblems, Problem, show
from difc_ray.config.schema import Leaf, leaves, sections
from difc_ray.config.yaml_strict import AMBIGUOUS, FLOAT, Document, Dumper, KeyPath, UnreadableError, read_file
from difc_ray.nested import put


def load_config(
    file: Path | None,
    overrides: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    *,
    paths: bool = False,
    new: bool = True,
    data: bool = True,
    about: Collection[str] | None = None,
) -> Config:
    """The configuration that a file and arguments describe, checked.

    Later ones win, key by key: defaults, ``base``, ``file``, ``overrides``. A whole free mapping (`model_options` and
    the like) is one value: a file replaces it, ``model_options.dropout=0.5`` changes one entry. An empty section in a
    file stands for its defaults.

    Args:
        file: YAML file, or None.
        overrides: ``key=value`` arguments with dotted keys.
        base: values to start from, nested, such as the configuration of another run.
        paths: whether the folders are checked too, as before a new run (see :func:`check_paths`).
        new: whether the folder that `name` means must then be new.
        data: whether the dataset's files must be here; False for a run that takes place elsewhere.
        about: the only keys whose values must fit together; None: all of them.

    Raises:
        ConfigProblems: with all problems; nothing has been written.
        DataProblems: the only problems are with the dataset's files.
    """
    draft = _Draft()
    if base is not None:
        draft.add(copy.deepcopy(dict(base)), lambda _: "base configuration")
    readable = True
    if file is not None:
        try:
            draft.add_document(read_file(file), str(file))
        except UnreadableError as error:
            readable = False
            draft.problems.append(error.problem)
    values, problems = parse_overrides(overrides)
    draft.refuse(problems)
    for key, value in values.items():
        draft.put(tuple(key.split(".")), value)
    config = draft.validated()
    if readable:
        found = plugin_problems(config.plugins, draft.where("plugins")) if "plugins" not in draft.bad else []
        found += semantic_problems(config, draft.where, plugins_failed=bool(found) or "plugins" in draft.bad)
        found += path_problems(config, draft.where, new=new) if paths else []
        found = [problem for problem in found if about is None or set(problem.keys) <= set(about)]
        draft.problems += [problem for problem in found if not draft.bad.intersection(problem.keys)]
    if not data:
        draft.problems = [problem for problem in draft.problems if not problem.data]
    if draft.problems:
        only_data = all(problem.data for problem in draft.problems)
        ordered = sorted(draft.problems, key=lambda problem: _line(problem.where))
        raise (DataProblems if only_data else ConfigProblems)([str(problem) for problem in ordered])
    return config


def import_plugins(plugins: Sequence[str]) -> None:
    """Imports the modules that register a user's own models, datasets and rules; to be done in every process.

    Raises:
        ConfigProblems: a module cannot be imported; each with its reason.
    """
    problems = plugin_problems(plugins, "plugins")
    if problems:
        raise ConfigProblems([str(problem) for problem in problems])


def plugin_problems(plugins: Sequence[str], where: str) -> list[Problem]:
    """Imports the modules; one problem for each that cannot be imported."""
    problems = []
    for module in plugins:
        if module.endswith(".py"):
            what, remedy = "a plug-in must be the name of a module", f"Write `{module[:-3]}`, without `.py`."
            problems.append(Problem(what=what, got=f"`{module}`", where=where, remedy=remedy, keys=("plugins",)))
            continue
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever a user's module raises
            missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
            remedy = "Install it, or put its folder on PYTHONPATH." if missing else "Correct the module."
            what = f"plugin `{module}` must be importable"
            got = f"{type(error).__name__}: {error}"
            problems.append(Problem(what=what, got=got, where=where, remedy=remedy, keys=("plugins",)))
    return problems


@dataclass
class _Draft:
    """Values on their way to a configuration, with where each came from and what is wrong so far.

    Args:
        data: nested values.
        origins: where a value was given, by path.
        plain: source text of values that a file has without quotes, by path.
        problems: what is wrong.
        bad: dotted keys whose values cannot be used.
    """

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    plain: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    bad: set[str] = field(default_factory=set)

    def where(self, key: str) -> str:
        """Where a key's value was given; of a free mapping, where its entries were, the latest first."""
        path: KeyPath = tuple(key.split("."))
        inside = [origin for given, origin in self.origins.items() if given[: len(path)] == path]
        above = [self.origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.origins]
        return "; ".join(dict.fromkeys([*reversed(inside), *above])) or "default"

    def refuse(self, problems: Sequence[Problem]) -> None:
        """Takes over problems; nothing else is said about their keys."""
        self.problems += problems
        for problem in problems:
            for key in problem.keys:
                leaf = owner(key)
                self.bad.add(leaf.key if leaf is not None else key)

    def add_document(self, document: Document, source: str) -> None:
        """Takes over what a file says."""
        self.problems += document.problems
        self.add(document.data, lambda path: f"{source}, line {document.lines.get(path, 1)}")
        self.plain |= document.plain
        for path, text in document.plain.items():
            leaf = owner(".".join(map(str, path)))
            if leaf is not None and leaf.kind == "options" and AMBIGUOUS.fullmatch(text):
                self.refuse([ambiguous(".".join(map(str, path)), text, self.where(leaf.key))])

    def add(self, values: Mapping[Any, Any], origin: Any, path: tuple[str, ...] = ()) -> None:
        """Takes over nested values, section by section."""
        for name, value in values.items():
            if not isinstance(name, str):
                what, remedy = "config keys must be text", "Quote it."
                self.problems.append(Problem(what=what, got=show(name), where=origin(path), remedy=remedy))
                continue
            inner = (*path, name)
            if ".".join(inner) in sections() and isinstance(value, Mapping):
                self.add(value, origin, inner)
            elif not (".".join(inner) in sections() and value is None):
                self._set(inner, value, origin(inner))

    def put(self, path: tuple[str, ...], value: Any) -> None:
        """Takes over one argument."""
        self._set(path, value, WHERE)

    def _set(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        put(self.data, path, value)
        for table in (self.origins, self.plain):
            for old in [old for old in table if old[: len(path)] == path]:
                del table[old]
        self.origins[path] = origin

    def validated(self) -> Config:
        """The configuration; values that break a rule become problems and are replaced by their defaults."""
        for leaf in leaves().values():
            self._take_text_as_written(leaf)
        try:
            return Config.model_validate(self.data)
        except ValidationError as error:
            paths = {_path(item["loc"]): item["type"] == "extra_forbidden" for item in error.errors(include_url=False)}
        found = {path: self._problem(path, unknown) for path, unknown in paths.items()}
        self.problems += found.values()
        for path in found:
            self.bad |= {".".join(path), *(key for key in leaves() if key.startswith(".".join(path) + "."))}
            self._drop(path)
        return Config.model_validate(self.data)

    def _take_text_as_written(self, leaf: Leaf) -> None:
        """``name: 2024`` and ``name: 1.10`` in a file are text for a text key."""
        path: KeyPath = tuple(leaf.key.split("."))
        value = self._get(path)
        if leaf.kind == "text" and isinstance(value, bool | int | float) and path in self.plain:
            self._replace(path, self.plain[path])
        if leaf.kind == "texts" and isinstance(value, list):
            items = [self.plain.get((*path, i), item) if item is not None else item for i, item in enumerate(value)]
            self._replace(path, items)

    def _problem(self, path: tuple[str, ...], unknown: bool) -> Problem:
        """The problem of a key that does not exist, or whose value breaks its rule."""
        key, value = ".".join(path), self._get(path)
        where = self.origins.get(path) or self.where(key)
        if unknown:
            if len(path) == 1 and key in leaves():  # a dotted key written out in a file
                parent, _, last = key.rpartition(".")
                remedy = f"Nest it: `{parent}:` with `{last}:` indented below. {LIST_ALL}"
                return Problem(
                    what=f"unknown key `{key}`", got=show(value, key), where=where, remedy=remedy, keys=(key,)
                )
            return unknown_key(key, show(value, key), where)
        leaf = leaves().get(key)
        if leaf is None:
            what, remedy = f"`{key}` must be a section of keys", "Write its keys indented below it."
            return Problem(what=what, got=show(value), where=where, remedy=remedy, keys=(key,))
        if leaf.kind in ("value", "values") and isinstance(value, str) and AMBIGUOUS.fullmatch(value):
            return ambiguous(key, value, where)
        got = show(value, key)
        got = got.removeprefix("the text ") if leaf.kind == "text" else got
        return Problem(
            what=f"`{key}` must be {leaf.rule}", got=got, where=where, remedy=_remedy(leaf, value, where), keys=(key,)
        )

    def _get(self, path: KeyPath) -> Any:
        node: Any = self.data
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        return node

    def _replace(self, path: KeyPath, value: Any) -> None:
        self._get(path[:-1])[path[-1]] = value

    def _drop(self, path: tuple[str, ...]) -> None:
        self._get(path[:-1]).pop(path[-1], None)


def _path(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The key of an error's location, without the branches of unions and the positions in lists."""
    path: tuple[str, ...] = ()
    for part in location:
        path = (*path, str(part))
        if ".".join(path) not in sections():
            break
    return path


def _line(where: str) -> tuple[bool, int]:
    """Problems of a file come first, in the order of its lines."""
    match = re.search(r", line (\d+)", where)
    return match is None, int(match[1]) if match else 0


def _remedy(leaf: Leaf, value: Any, where: str) -> str:
    """How to fix a value of the wrong type or out of range."""
    in_file = _line(where)[1] > 0
    if leaf.choices:
        near = difflib.get_close_matches(str(value).lower(), leaf.choices, n=1)
        return f"Did you mean `{near[0]}`?" if near else f"Write for example `{_example(leaf, leaf.default, in_file)}`."
    if leaf.kind == "value" and isinstance(value, str) and FLOAT.fullmatch(value.strip()):
        return f"Write {value.strip()} without quotes."
    if "integer" in leaf.rule and isinstance(value, float) and value.is_integer():
        return f"Write {int(value)}."
    if in_file and leaf.kind in ("texts", "values") and isinstance(value, str) and value:
        items = dict.fromkeys(item.strip() for item in value.split(","))
        return f"Write a list, such as `{_example(leaf, list(items), in_file)}`."
    if leaf.remedy:
        return leaf.remedy
    if leaf.default is None:
        return "Correct it, or leave it out."
    return f"Write for example `{_example(leaf, leaf.default, in_file)}`."


def _example(leaf: Leaf, value: Any, in_file: bool) -> str:
    """A key with a value, as it is written in a file or on a command line."""
    if not in_file:
        return f"{leaf.key}={as_argument(leaf.key, value)}"
    shown = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    text = yaml.dump([shown], Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=1000).strip()[1:-1]
    *above, last = leaf.key.split(".")
    text = f"{last}: {text}"
    for section in reversed(above):
        text = f"{section}: {{{text}}}"
    return text
