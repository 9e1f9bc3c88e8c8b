"""Keys of a configuration that nothing in it reads: to search one is to train the same run again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from difc_ray.config import Config, documentation, metric_kind, objective_name, objective_settings
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.objectives import OBJECTIVES

_DIAGONAL = ("harmonize.curvature.rest",)
_ADAM, _SGD = ("optimizer.betas", "optimizer.eps"), ("optimizer.momentum",)


def unread_by_all(keys: Sequence[str], configs: Sequence[Config]) -> dict[str, str]:
    """Searched keys that no trial reads.

    Args:
        keys: dotted keys.
        configs: configurations of the trials, resolved.

    Returns:
        Key -> what the trials have that does not read it.
    """
    unread: dict[str, str] = {}
    for key in keys:
        reasons = [reason_for(key, config) for config in configs]
        if reasons and all(reasons):
            unread[key] = ", ".join(dict.fromkeys(reasons))
    return unread


def reason_for(key: str, config: Config) -> str:
    """What a run has that does not read a key; empty: the key is read, as far as is known."""
    for pattern, reason in _unread(config):
        if key == pattern or key.startswith(f"{pattern}."):
            return reason
    return ""


def _unread(config: Config) -> Iterator[tuple[str, str]]:
    """Keys, or sections, that a run does not read, each with what does not read it."""
    yield from _unread_by_rule(config)
    yield from _unread_by_objective(config)
    adam = config.optimizer.name != "sgd"
    yield from _each(_SGD if adam else _ADAM, f"`optimizer.name={config.optimizer.name}`")


def _unread_by_rule(config: Config) -> Iterator[tuple[str, str]]:
    rule, owner = HARMONIZERS.get(config.harmonize.rule), f"the rule `{config.harmonize.rule}`"
    if "lam" not in {field.name for field in dataclasses.fields(rule)}:
        yield "harmonize.lam", owner
    kind = metric_kind(config)
    if not kind:
        yield from _each(("harmonize.flatness", "harmonize.curvature"), owner)
    elif config.harmonize.flatness == 0:
        yield "harmonize.curvature", "`harmonize.flatness=0`"
    elif kind == "diagonal":
        yield "harmonize.curvature.order", "`harmonize.curvature.kind=diagonal`"
    else:
        yield from _each(_DIAGONAL, f"`harmonize.curvature.kind={kind}`")
        if not config.harmonize.curvature.adaptive:
            yield "harmonize.curvature.decay", f"`harmonize.curvature.kind={kind}` without `adaptive`"


def _unread_by_objective(config: Config) -> Iterator[tuple[str, str]]:
    """What the objective says that it does not read, of the keys that any objective reads."""
    name, anneal = objective_name(config), config.alignment.anneal
    objective, owner = OBJECTIVES.get(name), f"the objective `{name}`"
    read = {*objective.reads, *(["options"] if dataclasses.fields(objective.option_type) else [])}
    if objective.has_penalty:
        known = {"options", *(key for each in OBJECTIVES for key in OBJECTIVES.get(each).reads)}
    else:
        known = {key.partition(".")[2] for key, *_ in documentation() if key.startswith("alignment.")}
    yield from _each([f"alignment.{key}" for key in sorted(known - read)], owner)
    if not objective.has_penalty:
        return
    for key, reason in objective.idle(objective_settings(config)).items():
        yield f"alignment.{key}", reason
    if anneal.steps == 0:
        yield "alignment.anneal.weight_before", "`alignment.anneal.steps=0`"
        yield "alignment.anneal.reset_optimizer", "`alignment.anneal.steps=0`"
    elif anneal.steps >= config.steps:
        yield "alignment.anneal.weight_after", f"`alignment.anneal.steps={anneal.steps}` of {config.steps} steps"


def _each(keys: Sequence[str], reason: str) -> Iterator[tuple[str, str]]:
    return ((key, reason) for key in keys)
