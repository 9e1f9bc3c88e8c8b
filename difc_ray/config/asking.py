"""A configuration that is looked at, and how what is wrong with it is put into words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

from difc_ray.config.overrides import as_argument
from difc_ray.config.problems import Problem, masked_argument, show
from difc_ray.config.tree import Config

Where = Callable[[str], str]
"""Dotted key -> where its value was given."""


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), config)


@dataclass(frozen=True)
class Asked:
    """A configuration and where its values were given."""

    config: Config
    where: Where

    def problem(self, what: str, remedy: str, *keys: str, data: bool = False) -> Problem:
        """The problem of one key's value, or of several together."""
        origins = list(dict.fromkeys(self.where(key) for key in keys))
        values = [value_of(self.config, key) for key in keys]
        if len(keys) == 1:
            got = show(values[0], keys[0]).removeprefix("the text ")
        else:
            got = " and ".join(
                f"`{masked_argument(f'{k}={as_argument(k, v)}')}`" for k, v in zip(keys, values, strict=True)
            )
        return Problem(what=what, got=got, where="; ".join(origins), remedy=remedy, keys=keys, data=data)
