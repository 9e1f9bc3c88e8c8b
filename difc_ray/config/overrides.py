"""``key=value`` arguments: dotted keys, each value read as its key demands."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from difc_ray.config.problems import Problem, masked_argument, show
from difc_ray.config.schema import Leaf, leaves, nearest_key, sections
from difc_ray.config.yaml_strict import AMBIGUOUS, UnreadableError, read_value
from difc_ray.secrets import masked_values

WHERE = "command line"
LIST_ALL = "`difc-ray config` lists all keys."
VALUE = "VALUE"


def parse_overrides(arguments: Sequence[str]) -> tuple[dict[str, Any], list[Problem]]:
    """Values by dotted key, and what is wrong with the arguments.

    * text is taken as written (``name=2024`` is a name), in quotes if it shall be ``null`` or empty;
    * lists are comma-separated, or in YAML's brackets;
    * ``key=`` and ``key=null`` are null;
    * everything else is one YAML value.

    >>> parse_overrides(["optimizer.lr=1e-3", "sources=mnist,fonts", "target="])[0]
    {'optimizer.lr': 0.001, 'sources': ['mnist', 'fonts'], 'target': None}
    """
    values: dict[str, Any] = {}
    texts: dict[str, str] = {}
    problems: list[Problem] = []
    for argument in _joined(arguments):
        key, equals, text = argument.lstrip().partition("=")
        if not equals or not key or key.startswith("-") or key.endswith(" "):
            problems.append(_not_an_override(argument))
        elif (problem := _key_problem(key, text)) is not None:
            problems.append(problem)
        elif (other := _overlapping(key, texts)) is not None:
            problems.append(_given_twice(key, text, other, texts[other]))
        else:
            texts[key] = text
            try:
                values[key] = _value(key, text.strip())
            except UnreadableError as error:
                problems.append(error.problem)
    return values, problems


def as_argument(key: str, value: Any) -> str:
    """The right side of ``key=value`` that :func:`parse_overrides` reads back as the value.

    >>> as_argument("sources", ("mnist", "fonts")), as_argument("optimizer.lr", 1e-3), as_argument("root", None)
    ('mnist,fonts', '0.001', 'null')
    """
    leaf = owner(key)
    if value is None:
        return "null"
    if leaf is not None and leaf.kind == "options":
        return _option_argument(value)
    if isinstance(value, tuple | list):
        plain = [item if isinstance(item, str) else json.dumps(item) for item in value]
        simple = (
            plain and not plain[0].startswith("[") and not any("," in item or _needs_quotes(item) for item in plain)
        )
        return ",".join(plain) if simple else json.dumps(list(value), ensure_ascii=False)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if _needs_quotes(text) else text


def _needs_quotes(text: str) -> bool:
    """Whether text for a text key would be read as null, or lose quotes or spaces."""
    return text in ("", "null", "~") or text != text.strip() or text[0] in "'\""


def _option_argument(value: Any) -> str:
    """JSON, which is YAML too; text without quotes where nothing can mistake it."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w./-]*", value) and read_value(value, WHERE)[0] == value:
        return value
    return json.dumps(value, ensure_ascii=False)


def owner(key: str) -> Leaf | None:
    """The leaf that a dotted key names, or in whose free mapping it lies."""
    parts = key.split(".")
    for n in range(len(parts), 0, -1):
        leaf = leaves().get(".".join(parts[:n]))
        if leaf is not None:
            return leaf if n == len(parts) or (leaf.kind == "options" and all(parts)) else None
    return None


def unknown_key(key: str, got: str, where: str) -> Problem:
    """The problem of a key that does not exist, with the one that was probably meant; ``got`` holds no secrets."""
    near = nearest_key(key)
    hint = f"Did you mean `{near}`? {LIST_ALL}" if near else LIST_ALL
    return Problem(what=f"unknown key `{key}`", got=got, where=where, remedy=hint, keys=(key,))


def _joined(arguments: Sequence[str]) -> list[str]:
    """The arguments, where ``--key value``, ``key = value`` and ``key value`` are one."""
    joined: list[str] = []
    for argument in arguments:
        before = joined[-1] if joined else ""
        names_key = not set(" =") & set(before) and (before.startswith("-") or before in leaves())
        takes_value = names_key and "=" not in argument and not argument.startswith("--")
        if takes_value or (names_key and argument.startswith("=")) or before.endswith(" ="):
            joined[-1] = f"{before} {argument}"
        else:
            joined.append(argument)
    return joined


def _not_an_override(argument: str) -> Problem:
    """The problem of an argument that is not ``key=value``."""
    name, _, text = argument.lstrip("-").replace(" ", "=", 1).partition("=")
    name, text = name.strip().replace("-", "_"), text.removeprefix("=").strip()
    key = name if name in leaves() else nearest_key(name) if name else ""
    remedy = (
        f"Write `{masked_argument(f'{key}={text or VALUE}')}`, without dashes and spaces."
        if key
        else f"Write `key=value`. {LIST_ALL}"
    )
    got = f"`{_masked_option(argument)}`" if argument else "an empty argument"
    return Problem(what="configuration arguments must be `key=value`", got=got, where=WHERE, remedy=remedy)


def _masked_option(argument: str) -> str:
    """An argument of any style without its secrets."""
    key, blank, text = argument.partition(" ")
    return f"{key} {masked_values(text, key)}" if blank and "=" not in key else masked_argument(argument)


def _key_problem(key: str, text: str) -> Problem | None:
    """The problem of a key that cannot be set, if it cannot."""
    if key in sections():
        inside = next(name for name in leaves() if name.startswith(f"{key}."))
        remedy = f"Set its keys one by one, such as `{inside}={as_argument(inside, leaves()[inside].default)}`."
        return Problem(
            what=f"`{key}` is a section of keys",
            got=f"`{masked_values(text, key)}`",
            where=WHERE,
            remedy=remedy,
            keys=(key,),
        )
    if owner(key) is not None:
        return None
    parts = key.split(".")
    above = next((".".join(parts[:n]) for n in range(len(parts)) if ".".join(parts[:n]) in leaves()), "")
    if above and leaves()[above].kind != "options":
        what, remedy = f"`{above}` holds a value and no keys", f"Write `{above}={masked_values(text, key)}`."
        return Problem(what=what, got=f"`{key}`", where=WHERE, remedy=remedy, keys=(above,))
    return unknown_key(key, f"`{masked_values(text, key)}`", WHERE)


def _overlapping(key: str, given: Iterable[str]) -> str | None:
    """A key given before that is this one, or lies above or below it."""
    return next((o for o in given if f"{o}.".startswith(f"{key}.") or f"{key}.".startswith(f"{o}.")), None)


def _given_twice(key: str, text: str, other: str, other_text: str) -> Problem:
    got = f"`{masked_argument(f'{other}={other_text}')}` and `{masked_argument(f'{key}={text}')}`"
    what = f"`{key}` is given twice" if key == other else f"`{key}` and `{other}` overlap"
    return Problem(what=what, got=got, where=WHERE, remedy="Remove one of them.", keys=(key,))


def _value(key: str, text: str) -> Any:
    """The value of an argument, read as its key demands.

    Raises:
        UnreadableError: a free option is not YAML.
    """
    leaf = owner(key)
    assert leaf is not None, key
    if leaf.kind == "options":
        return _option(key, text)
    if text in ("", "null", "~"):
        return None
    if leaf.kind == "text":
        return _unquoted(text)
    if leaf.kind == "value":
        return _yaml_or_text(text)
    if text.startswith("["):
        items = _yaml_or_text(text)
        return items if leaf.kind == "values" else _texts(text, items)
    read = _unquoted if leaf.kind == "texts" else _yaml_or_text
    return [read(item.strip()) for item in text.split(",")]


def _option(key: str, text: str) -> Any:
    """A value for a free option, where only YAML can tell text from numbers."""
    try:
        value, plain = read_value(text, WHERE)
    except UnreadableError as error:
        what, remedy = f"`{key}` must be a YAML value", "Put text in quotes."
        raise UnreadableError(
            Problem(what=what, got=show(text, key), where=WHERE, remedy=remedy, keys=(key,))
        ) from error
    for path, scalar in plain.items():
        if AMBIGUOUS.fullmatch(scalar):
            raise UnreadableError(ambiguous(".".join(map(str, (key, *path))), scalar, WHERE))
    return value


def ambiguous(key: str, text: str, where: str) -> Problem:
    """The problem of ``012``, which is 10 to some parsers and 12 to others."""
    remedy = "Write a decimal number, or quote the text."
    digits = text.lstrip("+-").replace("_", "")
    what = f"`{key}` is ambiguous"
    if digits.isdigit() and set(digits) <= set("01234567"):
        what, remedy = f"{what} (octal {int(digits, 8)})", f"Write {int(digits, 8)} or {int(digits)}."
    return Problem(what=what, got=f"`{text}`", where=where, remedy=remedy, keys=(key,))


def _yaml_or_text(text: str) -> Any:
    """A YAML value; what is no YAML stays text, which its key then refuses."""
    try:
        return read_value(text, WHERE)[0]
    except UnreadableError:
        return text


def _texts(text: str, items: Any) -> Any:
    """A bracketed list of names, each as written."""
    if not isinstance(items, list) or any(isinstance(item, list | dict) for item in items):
        return items
    inner = text[1:-1].strip()
    plain = '"' not in inner and "'" not in inner
    return [item.strip() for item in inner.split(",")] if inner and plain else items


def _unquoted(text: str) -> str:
    """The text without a pair of quotes around it."""
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"":
        value = _yaml_or_text(text)
        return value if isinstance(value, str) else text
    return text
