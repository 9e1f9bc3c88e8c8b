"""A configuration as text: YAML, flat parameters, and what differs from another one."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import yaml

from difc_ray.config.keys import Config
from difc_ray.config.overrides import as_argument
from difc_ray.config.problems import Problem
from difc_ray.config.resolve import resolve
from difc_ray.config.schema import leaves, value_of
from difc_ray.config.yaml_strict import Dumper
from difc_ray.objectives.base import SYMBOLS as COEFFICIENTS
from difc_ray.secrets import HIDDEN, masked_values

RESUMABLE = (
    "checkpoint",
    "cluster",
    "engine",
    "eval_every",
    "loader",
    "log_level",
    "name",
    "on_bad_image",
    "on_nonfinite",
    "output",
    "profile",
    "resume",
    "steps",
    "tracking",
    "trial",
)
"""Keys, and sections, that may differ between a run and its continuation: none of them changes a step that is taken."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")

SYMBOLS = {"harmonize.lam": "λ"} | {f"alignment.{name}": symbol for name, symbol in COEFFICIENTS.items()}
"""Keys that have a symbol in the formulas, by which tables and figures call them."""


def to_yaml(config: Config, *, secrets: bool = False) -> str:
    """The whole tree as YAML, which :func:`load_config` reads back to an equal configuration, secrets aside.

    Args:
        config: the configuration.
        secrets: whether user names and passwords in addresses, and values of keys that name secrets, are written out;
            otherwise the former are left out (MLflow has environment variables for them), the latter become ``***``.
    """
    data = config.model_dump(mode="json")
    if not secrets:
        data = _without_userinfo(masked_values(data))
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def flat(config: Config) -> dict[str, str]:
    """Dotted key -> value as text, without secrets.

    ``f"{key}={text}"`` is an argument that sets the value again, secrets aside.
    """
    found: dict[str, str] = {}
    for key, leaf in leaves().items():
        value = value_of(config, key)
        if leaf.kind == "options":
            _flatten_options(key, value, found)
        else:
            found[key] = as_argument(key, masked_values(value, key))
    return found


def differences(a: Config, b: Config, allowed: Collection[str] = RESUMABLE) -> list[str]:
    """What keeps a run from going on under another configuration, one sentence per key.

    Args:
        a: the configuration of the run.
        b: the one to go on with.
        allowed: dotted keys and sections that may differ. `steps` may not under a cosine schedule, whose learning rates
            depend on it from the first step on.
    """
    a, b = resolve(a), resolve(b)
    problems = []
    for key in leaves():
        before, after = (masked_values(value_of(config, key), key) for config in (a, b))
        reason = " when a run is resumed"
        if key == "steps" and a.optimizer.schedule == b.optimizer.schedule == "cosine":
            reason += " under `optimizer.schedule: cosine`, whose learning rates all depend on it"
        elif _covered(key, allowed):
            continue
        if before != after:
            what = f"`{key}` cannot change{reason}"
            got, was = as_argument(key, after), as_argument(key, before)
            problems.append(
                str(
                    Problem(
                        what=what, got=f"`{got}`", where=f"the run has `{was}`", remedy="Leave it, or start a new run."
                    )
                )
            )
    return problems


def _covered(key: str, names: Collection[str]) -> bool:
    """Whether a key or a section above it is among the names."""
    parts = key.split(".")
    return any(".".join(parts[:n]) in names for n in range(1, len(parts) + 1))


def _without_userinfo(value: Any) -> Any:
    """A copy in which masked user names and passwords are gone from addresses."""
    if isinstance(value, dict):
        return {name: _without_userinfo(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_without_userinfo(item) for item in value]
    return value.replace("://***@", "://") if isinstance(value, str) else value


def _flatten_options(key: str, value: Any, found: dict[str, str]) -> None:
    """One entry per option where their names allow it, else the mapping in JSON."""
    if isinstance(value, dict) and value and all(_NAME.fullmatch(name) for name in value):
        for name, item in value.items():
            _flatten_options(f"{key}.{name}", item, found)
        return
    shown = masked_values(value, key)
    found[key] = shown if shown == HIDDEN else as_argument(key, shown)
