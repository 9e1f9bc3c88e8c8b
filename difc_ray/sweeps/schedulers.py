"""From a space to what Tune runs with: its scheduler, and the searcher where that makes up the trials as it goes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from ray import tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from difc_ray.config import Config
from difc_ray.determinism import derive_seed
from difc_ray.sweeps.folder import Evaluations
from difc_ray.sweeps.space import Distribution, Space


def scheduler_of(space: Space, base: Config) -> TrialScheduler:
    """The scheduler; its time is counted in steps of training, and it decides at evaluations."""
    measure = {"time_attr": "step", "metric": space.metric, "mode": space.mode}
    options = dict(space.options)
    if space.scheduler == "asha":
        defaults = {"grace_period": base.eval_every, "reduction_factor": 3, "max_t": base.steps}
        return ASHAScheduler(**measure, **(defaults | options))
    if space.scheduler == "median":
        return MedianStoppingRule(**measure, **({"grace_period": base.eval_every} | options))
    if space.scheduler == "pbt":
        random.seed(derive_seed(base.seed, "population"))  # PBT draws from the global generators
        np.random.seed(derive_seed(base.seed, "population") % 2**32)  # noqa: NPY002
        defaults = {"perturbation_interval": base.eval_every}
        mutations = {"point": {"values": {key: tune_domain(each) for key, each in space.space.items()}}}
        return PopulationBasedTraining(
            **measure, hyperparam_mutations=mutations, custom_explore_fn=lambda config: clipped(config, space),
            require_attrs=False, log_config=False, **(defaults | options),
        )  # fmt: skip
    return FIFOScheduler()


def clipped(config: dict[str, Any], space: Space) -> dict[str, Any]:
    """A perturbed configuration, back inside the ranges of the space."""
    values = config["point"]["values"]
    values |= {key: space.space[key].clipped(value) for key, value in values.items()}
    return config


def replay(scheduler: TrialScheduler, earlier: Mapping[int, Evaluations], metric: str) -> None:
    """Tells ASHA what the trials of an interrupted sweep had reported, as if they reported it now.

    Args:
        scheduler: a new one.
        earlier: evaluations by trial.
        metric: what it compares.
    """
    if not isinstance(scheduler, ASHAScheduler):
        return  # the others look at trials that run at the same time
    for number, evaluations in earlier.items():
        trial: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        scheduler.on_trial_add(None, trial)
        for step, values in zip(evaluations.steps, evaluations.values, strict=True):
            if metric in values:
                scheduler.on_trial_result(None, trial, {"step": step, metric: values[metric]})


def tune_domain(distribution: Distribution) -> Any:
    """A distribution in Tune's terms."""
    if distribution.kind == "choice":
        return tune.choice(list(distribution.values))
    return getattr(tune, distribution.kind)(*distribution.values)


def optuna_searcher(space: Space, base: Config, earlier: Sequence[tuple[Mapping[str, Any], float]]) -> Any:
    """Optuna's sampler, which sees the mean over the seeds of a setting.

    Args:
        space: the search space.
        base: whose seed draws.
        earlier: settings of an interrupted sweep with what they came to.
    """
    import optuna
    from ray.tune.search import Repeater
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known: dict[str, Any] = {}
    if earlier:
        known["points_to_evaluate"] = [{f"values/{key}": value for key, value in each.items()} for each, _ in earlier]
        known["evaluated_rewards"] = [reward for _, reward in earlier]
    searcher = OptunaSearch(
        space={"values": {key: tune_domain(each) for key, each in space.space.items()}},
        metric=space.metric, mode=space.mode, seed=derive_seed(base.seed, "optuna") % 2**32, **known,
    )  # fmt: skip
    return Repeater(searcher, repeat=len(space.seeds))
