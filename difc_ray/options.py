"""Options: what a dataset, a model, a loss, an objective or a rule lets its user choose, in one style.

Options are the fields of a frozen dataclass that stands beside its owner, each with its kind of value, its default and
a docstring; :func:`make_options` makes one of what a configuration gives, and says everything that is wrong with it:

    @dataclass(frozen=True, kw_only=True)
    class SmoothedOptions:
        smoothing: UnitInterval = 0.1
        \"\"\"Share of the probability that is spread over all classes, in [0, 1].\"\"\"

    @LOSSES.register("smoothed", options=SmoothedOptions)  # loss_options.smoothing=0.2
    class Smoothed(CrossEntropy): ...                      # self.options.smoothing

The kinds of values (:data:`Count`, :data:`Positive`, ...) carry the rule that a message quotes. Any other annotation
works as well (``int``, ``str | None``, ``Literal["a", "b"]``, ``tuple[float, ...]``).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from difc_ray.errors import ConfigError
from difc_ray.registry import Registry, did_you_mean
from difc_ray.secrets import masked_values

O = TypeVar("O")  # noqa: E741 - options

SHOWN = 120
"""Characters of a wrong value that a message shows."""


@dataclass(frozen=True)
class Rule:
    """What a value must be, as it ends the sentence "`key` must be ...".

    Args:
        text: the rule, unit and range included.
        remedy: how to fix a value that breaks it; empty for the general remedy.
    """

    text: str
    remedy: str = ""


@dataclass(frozen=True, kw_only=True)
class NoOptions:
    """The options of an owner that takes none."""


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def path_from_text(value: object) -> object:
    """Text becomes a path; empty text, text with a NUL and an address (`s3://...`) stay as they are, to be refused."""
    fit = isinstance(value, str) and value.strip() and "\0" not in value and not _ADDRESS.match(value)
    return Path(str(value)) if fit else value


Count = Annotated[int, Field(ge=1), Rule("an integer >= 1")]
Natural = Annotated[int, Field(ge=0), Rule("an integer >= 0")]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), Rule("a finite number > 0")]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), Rule("a finite number >= 0")]
UnitInterval = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), Rule("a number in [0, 1]")]
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), Rule("a number in [0, 1)")]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Rule("a number in (0, 1]")]
FilePath = Annotated[Path, BeforeValidator(path_from_text), Rule("a path")]

_PLAIN = {
    bool: Rule("true or false", "Write `true` or `false`."),
    int: Rule("an integer"),
    float: Rule("a number"),
    str: Rule("text"),
    Path: Rule("a path"),
}


def make_options(kind: type[O], given: Mapping[str, Any], title: str, key: str = "") -> O:
    """The options of an owner, from what its user gave.

    Values keep their type: an integer becomes a float where the field is one, a list a tuple, and nothing else changes.

    Args:
        kind: a dataclass; its fields are the options.
        given: name -> value; options that are missing keep their default.
        title: the owner as its user calls it, such as "loss `ldam`".
        key: the configuration's key for these options, such as "loss_options"; empty: there is none.

    Raises:
        ConfigError: unknown options, values of the wrong type or out of range, required ones that are missing; all of
            them in one message.

    >>> @dataclass(frozen=True)
    ... class Example:
    ...     rate: Positive = 0.5
    >>> make_options(Example, {"rate": 2}, "rule `example`")
    Example(rate=2.0)
    >>> make_options(Example, {"rate": -1}, "rule `example`")
    Traceback (most recent call last):
    difc_ray.errors.ConfigError: `rate` must be a finite number > 0, got -1 (rule `example`). The default is 0.5.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    hints = get_type_hints(kind, include_extras=True)
    values, problems = {}, []
    for name, value in given.items():
        if name not in fields:
            hint = did_you_mean(name, fields) if fields else "It takes no options."
            problems.append(f"Unknown option `{name}` of {title}. {hint}")
            continue
        try:
            plain = tuple(value) if isinstance(value, list) else value
            values[name] = TypeAdapter(hints[name]).validate_python(plain, strict=True)
        except ValidationError:
            rule, dotted = rule_of(hints[name]), f"{key}.{name}" if key else name
            remedy = rule.remedy or _remedy(fields[name])
            got = repr(masked_values(value, name))[:SHOWN]
            problems.append(f"`{dotted}` must be {rule.text}, got {got} ({title}). {remedy}")
    missing = [f"`{name}`" for name, field in fields.items() if default_of(field) is REQUIRED and name not in given]
    if missing:
        problems.append(
            f"{title[:1].upper()}{title[1:]} needs its option{'s' * (len(missing) > 1)} {', '.join(missing)}."
        )
    if problems:
        raise ConfigError(" ".join(problems))
    return kind(**values)


def options_of(owner: Any, given: Mapping[str, Any] | None, registry: Registry[Any], key: str) -> Any:
    """The options of a registered object: an instance of its ``option_type``.

    Args:
        owner: what is registered, a class or a function.
        given: what the configuration holds under ``key``.
        registry: where it is registered; for messages.
        key: the configuration's key.

    Raises:
        ConfigError: as :func:`make_options`.
    """
    return make_options(option_type(owner), given or {}, registry.title(owner), key)


def option_type(owner: Any) -> type[Any]:
    """The dataclass of a registered object's options; :class:`NoOptions` for one that says nothing."""
    kind: type[Any] = getattr(owner, "option_type", NoOptions)
    return kind


def absolute_options(kind: type[Any], given: Mapping[str, Any], title: str, key: str = "") -> dict[str, Any]:
    """What the user gave, with paths from the root of the file system: workers may run in another folder.

    Raises:
        ConfigError: as :func:`make_options`.
    """
    made = make_options(kind, given, title, key)
    paths = {name: value for name in given if isinstance(value := getattr(made, name), Path)}
    return dict(given) | {name: str(absolute(path)) for name, path in paths.items()}


def absolute(path: Path) -> Path:
    """The path from the root, with ``~`` written out where that is somebody's home; links are kept."""
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        return path.absolute()


def documentation(kind: type[Any]) -> list[tuple[str, str, Any, str]]:
    """One row per option: name, what its value must be, default, and the docstring under its field.

    >>> @dataclass(frozen=True)
    ... class Example:
    ...     hidden: tuple[int, ...] = (8, 8)
    >>> documentation(Example)
    [('hidden', 'a list', (8, 8), '')]
    """
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        meanings |= _field_docstrings(base)
    hints = get_type_hints(kind, include_extras=True)
    return [
        (field.name, rule_of(hints[field.name]).text, default_of(field), meanings.get(field.name, ""))
        for field in dataclasses.fields(kind)
    ]


def rule_of(annotation: Any) -> Rule:
    """What a value of the annotated type must be; a :class:`Rule` in the annotation says it itself."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        told = next((item for item in arguments[1:] if isinstance(item, Rule)), None)
        return told or rule_of(arguments[0])
    if origin is Literal:
        return Rule("one of " + ", ".join(f"`{choice}`" for choice in arguments))
    if origin in (typing.Union, types.UnionType):
        rules = [rule_of(member) for member in arguments if member is not type(None)]
        texts = [rule.text for rule in rules] + ["null"] * (type(None) in arguments)
        return Rule(" or ".join(texts), rules[0].remedy)
    if origin in (tuple, list):
        return Rule("a list")
    return _PLAIN.get(annotation, Rule(f"a {getattr(annotation, '__name__', annotation)}"))


REQUIRED = object()
"""The default of an option that has none."""


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field, or :data:`REQUIRED`."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _remedy(field: dataclasses.Field[Any]) -> str:
    """How to fix an option whose rule has no remedy of its own."""
    default = default_of(field)
    if default is None or default is REQUIRED:
        return "Correct it." if default is REQUIRED else "Correct it or leave it out."
    return f"The default is {default if isinstance(default, str) else json.dumps(default, default=str)}."


def _field_docstrings(kind: type[Any]) -> dict[str, str]:
    """Field -> the docstring below it in the class's source; nothing where there is no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = typing.cast(ast.ClassDef, tree.body[0]).body
    return {
        above.target.id: " ".join(below.value.value.split())
        for above, below in itertools.pairwise(body)
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name)
        and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
    }  # fmt: skip
