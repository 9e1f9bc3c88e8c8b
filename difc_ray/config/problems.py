"""What is wrong with a configuration: sentences of one form, gathered and raised together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from difc_ray.errors import CheckpointError, ConfigError, DataError, DifcError
from difc_ray.secrets import HIDDEN, masked, masked_values

_SHOWN = 120


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One sentence for the user.

    Args:
        what: the rule that is broken.
        got: the value found, as text.
        where: where it was found: "command line", "run.yaml, line 3", "default".
        remedy: how to fix it, one or more sentences.
        keys: the keys that it depends on, dotted.
        data: whether the data are wrong rather than the configuration.
    """

    what: str
    got: str
    where: str
    remedy: str
    keys: tuple[str, ...] = ()
    data: bool = False

    def __str__(self) -> str:
        """``<what>, got <value> (<where>). <how to fix>``."""
        return f"{self.what}, got {self.got} ({self.where}). {self.remedy}"


class Problems(DifcError):
    """Several problems that are raised together.

    Args:
        problems: one finished sentence each, at least one.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type[Problems], tuple[list[str]]]:
        return type(self), (self.problems,)


class ConfigProblems(Problems, ConfigError):
    """Everything that is wrong with a configuration."""


class DataProblems(Problems, DataError):
    """Everything about the data that does not fit the configuration."""


class CheckpointProblems(Problems, CheckpointError):
    """Everything that keeps a run from being continued."""


def masked_argument(argument: str) -> str:
    """A ``key=value`` argument without its secrets."""
    key, equals, text = argument.partition("=")
    return f"{key}={masked_values(text, key)}" if equals else masked(argument)


def show(value: Any, key: str = "") -> str:
    """A value as an error message shows it: YAML's words, short, without secrets.

    >>> show("64"), show(True), show(None), show([1, "a"])
    ('the text `64`', 'true', 'null', '[1, a]')
    """
    shown = masked_values(value, key)
    if isinstance(shown, str) and shown != HIDDEN:
        return f"the text `{_short(shown)}`" if shown else "empty text"
    return _short(_plainly(shown))


def _plainly(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_plainly(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_plainly(item)}" for key, item in value.items()) + "}"
    return str(value)


def _short(text: str) -> str:
    """At most 120 characters, control characters escaped."""
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: _SHOWN + 1])
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
