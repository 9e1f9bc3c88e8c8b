"""Nested values and their dotted keys: `{"optimizer": {"lr": 0.1}}` and `optimizer.lr`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets what lies at the end of a path; what is in its way and holds no keys is replaced.

    >>> values = {"steps": 5}
    >>> put(values, ["optimizer", "lr"], 0.1)
    >>> values
    {'steps': 5, 'optimizer': {'lr': 0.1}}
    """
    for part in path[:-1]:
        inner = values.get(part)
        values[part] = inner if isinstance(inner, dict) else {}
        values = values[part]
    values[path[-1]] = value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value; an empty mapping is a value.

    >>> flat({"seed": 1, "optimizer": {"name": "adam", "lr": 0.1}})
    {'seed': 1, 'optimizer.name': 'adam', 'optimizer.lr': 0.1}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return found


def all_keys(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys, those of the mappings inside among them."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from all_keys(value, f"{prefix}{key}.")
