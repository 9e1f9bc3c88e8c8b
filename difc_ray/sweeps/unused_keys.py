"""Keys of a configuration that nothing in it reads: to search one is to train the same run again and again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from difc_ray.config import PENALTIES, Config, documentation, metric_kind, objective_name
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.objectives import OBJECTIVES

_ESTIMATED = ("alignment.probes", "alignment.probe_sets")
_HESSIAN = ("alignment.estimator", "alignment.detach_mean", *_ESTIMATED)
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
    found: dict[str, str] = {}
    for key in keys:
        reasons = [reason_for(key, config) for config in configs]
        if reasons and all(reasons):
            found[key] = ", ".join(dict.fromkeys(reasons))
    return found


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
    rule, told = HARMONIZERS.get(config.harmonize.rule), f"the rule `{config.harmonize.rule}`"
    if "lam" not in {field.name for field in dataclasses.fields(rule)}:
        yield "harmonize.lam", told
    kind = metric_kind(config)
    if not kind:
        yield from _each(("harmonize.flatness", "harmonize.curvature"), told)
    elif config.harmonize.flatness == 0:
        yield "harmonize.curvature", "`harmonize.flatness=0`"
    elif kind == "diagonal":
        yield "harmonize.curvature.order", "`harmonize.curvature.kind=diagonal`"
    else:
        yield from _each(_DIAGONAL, f"`harmonize.curvature.kind={kind}`")
        if not config.harmonize.curvature.adaptive:
            yield "harmonize.curvature.decay", f"`harmonize.curvature.kind={kind}` without `adaptive`"


def _unread_by_objective(config: Config) -> Iterator[tuple[str, str]]:
    """What the built-in objectives leave aside; a registered one may read all that it is given."""
    name = objective_name(config)
    told = f"the objective `{name}`"
    if OBJECTIVES.get(name).mixes:
        penalty = [key for key, *_ in documentation() if key.startswith("alignment.") and key != "alignment.mixup"]
        yield from _each(penalty, told)
        return
    yield "alignment.mixup", told
    if not OBJECTIVES.get(name).has_penalty:
        yield "alignment", told
        return
    anneal, alignment = config.alignment.anneal, config.alignment
    yield from _each([f"alignment.{key}" for key in ("alpha", "beta") if key not in OBJECTIVES.get(name).reads], told)
    if name in PENALTIES and name not in ("hutchinson", "hgp"):
        yield from _each(_HESSIAN, told)
    elif name == "hgp":
        yield from _each(("alignment.estimator", *_ESTIMATED), told)
    elif name == "hutchinson" and alignment.estimator == "exact":
        yield from _each((*_ESTIMATED, "alignment.detach_mean"), "`alignment.estimator=exact`")
    elif name == "hutchinson" and alignment.probe_sets != "released":
        yield "alignment.detach_mean", f"`alignment.probe_sets={alignment.probe_sets}`"
    if anneal.steps == 0:
        yield "alignment.anneal.weight_before", "`alignment.anneal.steps=0`"
        yield "alignment.anneal.reset_optimizer", "`alignment.anneal.steps=0`"
    elif anneal.steps >= config.steps:
        yield "alignment.anneal.weight_after", f"`alignment.anneal.steps={anneal.steps}` of {config.steps} steps"


def _each(keys: Sequence[str], reason: str) -> Iterator[tuple[str, str]]:
    return ((key, reason) for key in keys)
