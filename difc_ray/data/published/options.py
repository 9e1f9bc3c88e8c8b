"""Options that datasets of published collections share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from difc_ray.errors import ConfigError

MIN_LIMIT: Final = 100
"""Fewest examples of a domain: ten of each class, so that every split can have some."""


def flag(options: Mapping[str, Any], name: str, where: str) -> bool:
    """True or false, by default false.

    Raises:
        ConfigError: something else.
    """
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise wrong(name, "true or false", value, where)
    return value


def limit_of(options: Mapping[str, Any], where: str) -> int | None:
    """`limit`, the largest number of examples in a domain; None: all.

    Raises:
        ConfigError: no integer, or too small.
    """
    value = options.get("limit")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= MIN_LIMIT):
        return value
    raise wrong("limit", f"an integer >= {MIN_LIMIT}", value, where)


def ratio_of(options: Mapping[str, Any], name: str, default: float, where: str) -> float:
    """A number in (0, 1].

    Raises:
        ConfigError: something else.
    """
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise wrong(name, "a number in (0, 1]", value, where)
    return float(value)


def folder(root: Path) -> Path:
    """The root with ``~`` read as the home folder."""
    return root.expanduser()


def wrong(name: str, rule: str, value: object, where: str) -> ConfigError:
    """The error of an option's value."""
    return ConfigError(f"`dataset_options.{name}` must be {rule}, got {value!r} ({where}). Correct it or leave it out.")
