"""Looking at the tree itself: its keys by dotted name, their rules, their documentation, and the nearest to a typo."""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import dataclass
from functools import cache, reduce
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from difc_ray.config.keys import Config
from difc_ray.config.types import Section
from difc_ray.options import Rule, rule_of

Kind = Literal["text", "texts", "values", "value", "options"]
"""How a key's value is read: text as written, a list of texts, a list of values, one value, or a free mapping."""

FAMILIAR = {
    "batch": "batch_size",
    "cpus": "cluster.cpus_per_worker",
    "domains": "sources",
    "epochs": "steps",
    "experiment": "tracking.experiment",
    "gpus": "cluster.gpus_per_worker",
    "harmonizer": "harmonize.rule",
    "iterations": "steps",
    "lambda": "harmonize.lam",
    "learning_rate": "optimizer.lr",
    "mlflow_uri": "tracking.uri",
    "out": "output",
    "output_dir": "output",
    "run_name": "name",
    "source": "sources",
    "targets": "target",
    "tracking_uri": "tracking.uri",
}
"""Names that other programs use -> ours."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """One key that holds a value.

    Args:
        key: dotted name.
        kind: how its value is read.
        rule: what its value must be.
        remedy: how to fix a value that breaks the rule; empty: write the default.
        choices: the values of a plain choice, else empty.
        default: default value.
        doc: meaning, unit and range.
    """

    key: str
    kind: Kind
    rule: str
    remedy: str
    choices: tuple[str, ...]
    default: Any
    doc: str


@cache
def leaves() -> dict[str, Leaf]:
    """Every key that holds a value, in the order of the tree, by dotted name."""
    return {leaf.key: leaf for leaf in _leaves_of(Config, "")}


@cache
def sections() -> frozenset[str]:
    """The dotted names of all keys that hold keys; the root is the empty name."""
    dotted = (key.split(".")[:-1] for key in leaves())
    return frozenset(".".join(parts[:n]) for parts in dotted for n in range(len(parts) + 1))


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    return reduce(getattr, key.split("."), config)


def documentation() -> list[tuple[str, str, Any, str]]:
    """One row per key: dotted name, what its value must be, default, meaning with unit and range."""
    return [(leaf.key, leaf.rule, leaf.default, leaf.doc) for leaf in leaves().values()]


def nearest_key(key: str) -> str:
    """The key that was probably meant by an unknown one, or the empty text.

    >>> nearest_key("batchsize"), nearest_key("lr"), nearest_key("optimizer.learning_rate")
    ('batch_size', 'optimizer.lr', 'optimizer.lr')
    """
    parent, _, last = key.lower().replace("-", "_").rpartition(".")
    known = [*leaves(), *sorted(sections() - {""})]
    siblings = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    if last in siblings:
        return siblings[last]
    if last in FAMILIAR:
        return FAMILIAR[last]
    same_name = [name for name in known if name.rpartition(".")[2] == last]
    near = [siblings[name] for name in difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)]
    if same_name or near:
        return (near + same_name if parent else same_name + near)[0]
    anywhere = {name.rpartition(".")[2]: name for name in reversed(known)} | {name: name for name in known}
    near = difflib.get_close_matches(last, anywhere, n=1, cutoff=0.75)
    return anywhere[near[0]] if near else ""


def _leaves_of(section: type[Section], prefix: str) -> list[Leaf]:
    """The leaves of a section and of those below it."""
    found: list[Leaf] = []
    for name, field in section.model_fields.items():
        key, annotation = f"{prefix}{name}", field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            found += _leaves_of(annotation, f"{key}.")
            continue
        rule = next((item for item in field.metadata if isinstance(item, Rule)), None) or rule_of(annotation)
        assert field.description, f"{key} has no docstring"
        found.append(
            Leaf(
                key=key,
                kind=_kind(annotation),
                rule=rule.text,
                remedy=rule.remedy,
                choices=get_args(annotation) if get_origin(annotation) is Literal else (),
                default=field.get_default(call_default_factory=True),
                doc=" ".join(field.description.split()),
            )
        )
    return found


def _members(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, bare of their constraints."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(member for argument in get_args(annotation) for member in _members(argument))
    return (annotation,)


def _kind(annotation: Any) -> Kind:
    """How values of the annotated type are read."""
    members = [member for member in _members(annotation) if member is not type(None)]
    origin = get_origin(members[0])
    if origin is dict:
        return "options"
    if origin is tuple:
        return "texts" if _members(get_args(members[0])[0]) == (str,) else "values"
    return "text" if all(member in (str, Path) or get_origin(member) is Literal for member in members) else "value"
