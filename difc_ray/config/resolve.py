"""What a configuration means: the values behind `auto` and null that the configuration alone decides."""

from __future__ import annotations

import dataclasses
import re
import secrets
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from difc_ray.config.tree import Config, Penalty
from difc_ray.data import DATASETS
from difc_ray.data.augmentation import NAMED
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.models import absolute_model_options
from difc_ray.objectives import OBJECTIVES
from difc_ray.options import absolute

PENALTIES = get_args(Penalty)
"""The objectives of `alignment.penalty`."""


def resolve(config: Config, now: datetime | None = None) -> Config:
    """The configuration with its name, absolute paths, objective, view, detachment and BatchNorm written out.

    What depends on the cluster (`cluster.cpus_per_worker` and the like) stays `auto` until the run starts.

    Args:
        config: a configuration that :func:`load_config` has accepted.
        now: time for the name; None: the current local time.
    """
    two_rows = HARMONIZERS.get(config.harmonize.rule).two_rows
    between = {"auto": "tasks" if two_rows else "domains"}.get(config.harmonize.between, config.harmonize.between)
    objective = objective_name(config)
    detach = objective == "hgp" if config.alignment.detach_mean == "auto" else config.alignment.detach_mean
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
    """The objective behind `auto`: the penalty if it has a weight, else `erm`."""
    if config.objective != "auto":
        return config.objective
    return config.alignment.penalty if config.alignment.alpha > 0 or config.alignment.beta > 0 else "erm"


def has_penalty(config: Config) -> bool:
    """Whether there are alignment gradients to harmonize (for a registered objective)."""
    name = objective_name(config)
    return OBJECTIVES.get(name).has_penalty and (name not in PENALTIES or penalty_weight(config, name) > 0)


def rows_per_domain(config: Config) -> int:
    """2 where a rule sees the alignment gradients apart from those of the classification, else 1 (resolved)."""
    assert config.harmonize.between != "auto", "resolve the configuration first"
    return 2 if OBJECTIVES.get(config.objective).has_penalty and config.harmonize.between != "domains" else 1


def domain_weights(config: Config) -> np.ndarray:
    """(K,) float64 weights of the source domains, sum 1."""
    given = config.harmonize.weights
    weights_K = np.ones(len(config.sources)) if given is None else np.array(given, dtype=np.float64)
    return np.asarray(weights_K / weights_K.sum())


def penalty_weight(config: Config, penalty: str) -> float:
    """The largest coefficient that a penalty ever gets; 0: it does nothing."""
    alignment, anneal = config.alignment, config.alignment.anneal
    factors = [anneal.weight_before] * (anneal.steps > 0) + [anneal.weight_after] * (anneal.steps < config.steps)
    weights = {"alpha": alignment.alpha, "beta": alignment.beta}
    return max(factors) * max(weights[name] for name in OBJECTIVES.get(penalty).reads)


def batch_norm_policy(config: Config) -> Literal["freeze", "mean", "per_domain"]:
    """What becomes of BatchNorm's running statistics, with `auto` decided: pretrained ones are frozen."""
    if config.batch_norm != "auto":
        return config.batch_norm
    return "mean" if config.model_options.get("weights") in (None, "none") else "freeze"


def rule_options(config: Config) -> dict[str, Any]:
    """Options of the configured rule: `harmonize.options`, and `harmonize.lam` for the rules that have one."""
    fields = {field.name for field in dataclasses.fields(HARMONIZERS.get(config.harmonize.rule))}
    lam = {"lam": config.harmonize.lam} if "lam" in fields else {}
    return lam | config.harmonize.options


def metric_kind(config: Config) -> str:
    """The curvature that the configured rule asks workers for: `diagonal`, `hvp`, or nothing (empty)."""
    wanted = getattr(HARMONIZERS.get(config.harmonize.rule), "needs_metric", False)
    return config.harmonize.curvature.kind if wanted else ""


def run_folder(config: Config) -> Path:
    """``<output>/<name>`` of a resolved configuration."""
    assert config.name is not None, "resolve the configuration first"
    return config.output / config.name
