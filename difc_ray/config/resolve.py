"""What a configuration means: the values behind `auto` and null that the configuration alone decides."""

from __future__ import annotations

import dataclasses
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from difc_ray.config.keys import Config
from difc_ray.data import DATASETS
from difc_ray.data.augmentation import NAMED
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.models import MODELS, absolute_model_options, named_weights
from difc_ray.objectives import BASELINE, OBJECTIVES, ObjectiveSettings
from difc_ray.objectives.losses import LOSSES
from difc_ray.options import absolute, documentation, option_type


def resolve(config: Config, now: datetime | None = None) -> Config:
    """The configuration with its name, absolute paths, rule, objective, view, detachment and BatchNorm written out.

    What depends on the cluster (`cluster.cpus_per_worker` and the like) stays `auto` until the run starts.

    Args:
        config: a configuration that :func:`load_config` has accepted.
        now: time for the name; None: the current local time.
    """
    rule = HARMONIZERS.canonical(config.harmonize.rule)
    config = config.model_copy(update={"harmonize": config.harmonize.model_copy(update={"rule": rule})})
    two_rows = HARMONIZERS.get(rule).two_rows
    between = {"auto": "tasks" if two_rows else "domains"}.get(config.harmonize.between, config.harmonize.between)
    objective = objective_name(config)
    detach = objective_settings(config).detach_mean
    resume = config.resume if config.resume in (None, "auto") else str(absolute(Path(config.resume)))
    return config.model_copy(
        update={
            "name": config.name or unique_name(config, now or datetime.now()),
            "output": absolute(config.output),
            "dataset_options": DATASETS.get(config.dataset).absolute_options(config.dataset_options),
            "augment": config.augment if config.augment in NAMED else str(absolute(Path(config.augment))),
            "root": None if config.root is None else absolute(config.root),
            "model_options": absolute_model_options(config.model, config.model_options),
            "batch_norm": batch_norm_policy(config),
            "resume": resume,
            "objective": objective,
            "alignment": config.alignment.model_copy(update={"detach_mean": detach}),
            "harmonize": config.harmonize.model_copy(update={"between": between}),
        }
    )


def unique_name(config: Config, now: datetime) -> str:
    """``<dataset>-<rule>-<YYYYmmdd-HHMMSS>-<4 hex digits>``, at most 128 characters."""
    what = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{config.dataset}-{config.harmonize.rule}").lstrip("._-")
    return f"{what[:100] or 'run'}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def objective_name(config: Config) -> str:
    """The objective behind `auto`: the penalty if it has a weight, else that without any."""
    if config.objective != "auto":
        return config.objective
    return config.alignment.penalty if config.alignment.alpha > 0 or config.alignment.beta > 0 else BASELINE


def objective_settings(config: Config, *, divided: bool = False) -> ObjectiveSettings:
    """What the objective is told of the configuration; `divided` is for whoever knows how batches are shared."""
    alignment = config.alignment
    automatic = OBJECTIVES.get(objective_name(config)).detaches_mean
    return ObjectiveSettings(
        estimator=alignment.estimator,
        probes=alignment.probes,
        probe_sets=alignment.probe_sets,
        detach_mean=automatic if alignment.detach_mean == "auto" else alignment.detach_mean,
        examples=config.batch_size,
        mixup=alignment.mixup,
        divided=divided,
    )


def has_penalty(config: Config) -> bool:
    """Whether there are alignment gradients to harmonize (for a registered objective)."""
    return OBJECTIVES.get(objective_name(config)).has_penalty and not has_idle_penalty(config)


def has_idle_penalty(config: Config) -> bool:
    """Whether the objective has a penalty whose weight is 0 in every step."""
    objective = OBJECTIVES.get(objective_name(config))
    alignment, anneal = config.alignment, config.alignment.anneal
    factors = [anneal.weight_before] * (anneal.steps > 0) + [anneal.weight_after] * (anneal.steps < config.steps)
    weights = [getattr(alignment, name) for name in objective.coefficients()]
    return objective.has_penalty and bool(weights) and max(factors) * max(weights) == 0


def rows_per_domain(config: Config) -> int:
    """2 where a rule sees the alignment gradients apart from those of the classification, else 1 (resolved)."""
    assert config.harmonize.between != "auto", "resolve the configuration first"
    return 2 if OBJECTIVES.get(config.objective).has_penalty and config.harmonize.between != "domains" else 1


def domain_weights(config: Config) -> np.ndarray:
    """(K,) float64 weights of the source domains, sum 1."""
    given = config.harmonize.weights
    weights_K = np.ones(len(config.sources)) if given is None else np.array(given, dtype=np.float64)
    return np.asarray(weights_K / weights_K.sum())


def batch_norm_policy(config: Config) -> Literal["freeze", "mean", "per_domain"]:
    """What becomes of BatchNorm's running statistics, with `auto` decided: pretrained ones are frozen."""
    if config.batch_norm != "auto":
        return config.batch_norm
    return "mean" if named_weights(config.model_options) is None else "freeze"


def rule_options(config: Config) -> dict[str, Any]:
    """Options of the configured rule: `harmonize.options`, and `harmonize.lam` for the rules that have one."""
    fields = {field.name for field in dataclasses.fields(HARMONIZERS.get(config.harmonize.rule))}
    lam = {"lam": config.harmonize.lam} if "lam" in fields else {}
    return lam | config.harmonize.options


def own_options(config: Config) -> dict[str, list[tuple[str, str, Any, str]]]:
    """The options of what is chosen, by the key that holds them: name, what its value must be, default, meaning."""
    owners: dict[str, Any] = {
        "dataset_options": DATASETS.get(config.dataset),
        "model_options": MODELS.get(config.model),
        "loss_options": LOSSES.get(config.loss),
        "alignment.options": OBJECTIVES.get(objective_name(config)),
    }
    rows = {key: documentation(option_type(owner)) for key, owner in owners.items()}
    rule = documentation(HARMONIZERS.get(config.harmonize.rule))
    return rows | {"harmonize.options": [row for row in rule if row[0] != "lam"]}


def metric_kind(config: Config) -> str:
    """The curvature that the configured rule asks workers for: `diagonal`, `hvp`, or nothing (empty)."""
    wanted = getattr(HARMONIZERS.get(config.harmonize.rule), "needs_metric", False)
    return config.harmonize.curvature.kind if wanted else ""


def run_folder(config: Config) -> Path:
    """``<output>/<name>`` of a resolved configuration."""
    assert config.name is not None, "resolve the configuration first"
    return config.output / config.name
