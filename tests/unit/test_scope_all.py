"""Scope `all`: the rows of the whole network against joint autograd, in pieces and by several workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from difc_ray.config import Config
from difc_ray.determinism import derive_seed
from difc_ray.errors import ConfigError
from difc_ray.models import Model, build_model
from difc_ray.objectives.curvature import rademacher
from difc_ray.objectives.losses import LOSSES
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import GlobalStep
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep
from difc_ray.step.worker.memory import check_memory
from difc_ray.step.worker.third_order import check_third_order
from tests.runs import run_inline, small_config
from tests.unit.test_replicas import distance, run_divided

LONG: dict[str, Any] = {"optimizer": {"name": "sgd", "lr": 10.0}, "harmonize": {"rule": "mean"}}
"""Steps so long that the rounding of θ does not count."""

PICTURES: dict[str, Any] = {"dataset": "fashion", "sources": ["plain", "rotated"], "image_size": 32}

ALL: dict[str, dict[str, Any]] = {
    "hutchinson": {"scope": "all", "estimator": "hutchinson", "probes": 2},
    "released": {"scope": "all", "estimator": "hutchinson", "probe_sets": "released"},
    "hgp": {"scope": "all", "penalty": "hgp"},
    "hgp-attached": {"scope": "all", "penalty": "hgp", "detach_mean": False},
    "gradient": {"scope": "all", "penalty": "gradient"},
}


def config_of(name: str, **changes: Any) -> Config:
    common = {"alignment": ALL[name], "batch_size": 6, "model_options": {"hidden": [7]}}
    return small_config(**{**common, **LONG, **changes})


def joint_direction(config: Config) -> Tensor:
    """Gradient of mean loss and penalty by autograd of the printed formula, all domains at once, in float64."""
    model, loss = model_of(config)
    model.double()
    parameters = list(model.parameters())
    size = sum(p.numel() for p in parameters)
    seed = derive_seed(config.seed, "probes-own", "", 0)
    probes = rademacher(config.alignment.probes, size, seed, torch.float64)
    losses, gradients, diagonals = [], [], []
    for name in config.sources:
        batch = load_domain(config, name).batch(config.seed, 0, config.batch_size)
        losses.append(loss.value(model(batch.images.double()), batch.labels))
        gradient = flat(torch.autograd.grad(losses[-1], parameters, create_graph=True))
        gradients.append(gradient)
        products = [flat(torch.autograd.grad(gradient, parameters, v, create_graph=True)) for v in probes]
        diagonals.append(torch.stack([v * hv for v, hv in zip(probes, products, strict=True)]).mean(0))
    total = torch.stack(losses).mean()
    for weight, values in ((config.alignment.alpha, diagonals), (config.alignment.beta, gradients)):
        stacked = torch.stack(values)
        total = total + weight * (stacked - stacked.mean(0)).square().sum(1).mean()
    return flat(torch.autograd.grad(total, parameters))


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def test_a_step_is_the_gradient_of_the_joint_penalty() -> None:
    config = config_of("hutchinson", optimizer={"name": "sgd", "lr": 1000.0})
    start = prepare(config, None).state.theta_P.clone()
    state, records = run_inline(config, 1)
    moved = (start - state.theta_P).double() / 1000.0
    assert distance(moved, joint_direction(config)) < 1e-5
    assert records[0].penalty["hessian"] > 0
    plain = small_config(alignment={"alpha": 0, "beta": 0}, batch_size=6, model_options={"hidden": [7]}, **LONG)
    assert distance(moved, start - run_inline(plain, 1)[0].theta_P) > 1e-2, "the penalty does nothing"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("pieces", "replicas"), [(4, 1), (1, 2), (2, 2)])
def test_pieces_and_workers_change_nothing(name: str, pieces: int, replicas: int) -> None:
    whole, records = run_inline(config_of(name), 1)
    start = prepare(config_of(name), None).state.theta_P
    config = config_of(name, alignment={**ALL[name], "micro_batches": pieces})
    config = config.model_copy(update={"cluster": config.cluster.model_copy(update={"replicas": replicas})})
    found = run_divided(config, 1)
    assert distance(found.theta_P - start, whole.theta_P - start) < 2e-6
    assert records[0].penalty["gradient"] > 0


def test_dropout_is_that_of_the_batch_in_pieces_too() -> None:
    changes: dict[str, Any] = {"model": "mlp", "model_options": {"hidden": [7], "dropout": 0.4}}
    config = small_config(alignment=ALL["gradient"], batch_size=6, **changes, **LONG)
    pieces = small_config(alignment={**ALL["gradient"], "micro_batches": 3}, batch_size=6, **changes, **LONG)
    start = prepare(config, None).state.theta_P
    whole, found = run_inline(config, 1)[0], run_inline(pieces, 1)[0]
    assert distance(found.theta_P - start, whole.theta_P - start) < 1e-6


def test_statistics_are_of_the_size_of_the_network() -> None:
    config = config_of("hutchinson")
    local = LocalStep(config, load_domain(config, "mnist"), *model_of(config))
    step = GlobalStep(config, local.layout, prepare(config, None).state)
    from difc_ray.step.worker import Token

    answer = local.statistics(step.store.model_state(), Token(run="r", attempt=0, step=0, domain="mnist"))
    assert {name: vector.shape for name, vector in answer.vectors.items()} == dict.fromkeys(
        ("g", "D"), (local.layout.size,)
    )
    assert np.isfinite(answer.vectors["D"]).all()


# ---- what cannot be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alignment": {"scope": "all"}}, "has a closed form for the head only"),
        ({"alignment": {"scope": "all", "penalty": "fishr"}}, "objective `fishr` is about the classifier"),
        ({"alignment": ALL["hgp"], "precision": "bf16"}, "needs `precision: float32`"),
        ({"alignment": ALL["hgp"], "model": "vit_b_16", **PICTURES}, "which the fused kernels of `"),
        (
            {"alignment": {**ALL["hgp"], "micro_batches": 2}, "model": "resnet18", "batch_norm": "mean"},
            "above 1 needs frozen BatchNorm",
        ),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        small_config(**changes)


class Crooked(torch.autograd.Function):
    """x³, whose backward pass forgets that the derivative depends on x: first derivatives are right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return upstream[0] * 3 * x.detach() ** 2


class CrookedLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Crooked.apply(x)  # type: ignore[no-any-return, no-untyped-call]


def crooked() -> Model:
    model = build_model("mlp", (1, 4, 4), 3, {"hidden": [5]}, 0)
    model.featurizer = nn.Sequential(model.featurizer, CrookedLayer())
    return model


def test_a_layer_that_is_not_differentiated_in_full_is_found() -> None:
    config, loss = config_of("hutchinson"), LOSSES.get("cross_entropy")({})
    with pytest.raises(ConfigError, match="must agree with finite differences"):
        check_third_order(config, crooked(), loss, (1, 4, 4), 3)


def test_probes_that_do_not_fit_are_refused_before_the_run() -> None:
    config = config_of("hutchinson", alignment={**ALL["released"], "probes": 150_000})
    model = build_model("mlp", (1, 4, 4), 3, {"hidden": [5]}, 0)
    size = sum(parameter.numel() for parameter in model.parameters())
    check_memory(config, model, 2 * 4 * size * 300_000)
    with pytest.raises(ConfigError, match=f"must fit into memory, got 300,000 of {size} entries, 236 MiB per worker"):
        check_memory(config, model, 2 * 4 * size * 300_000 - 1)


def test_probes_of_the_head_are_counted_with_their_outputs() -> None:
    model = build_model("mlp", (1, 4, 4), 3, {"hidden": [5]}, 0)
    alignment = {"estimator": "hutchinson", "probes": 1000}
    needed = 4 * 1000 * (2 * 3 * 6 + 7 * 3)
    check_memory(small_config(alignment=alignment, batch_size=7), model, needed)
    with pytest.raises(ConfigError, match="got 1,000 of 18 entries"):
        check_memory(small_config(alignment=alignment, batch_size=7), model, needed - 1)
    divided = small_config(alignment=alignment, batch_size=7, cluster={"replicas": 2})
    needed = 4 * 1000 * (2 * 3 * 6 + 4 * 3)  # of seven examples one worker has four
    check_memory(divided, model, needed)
    with pytest.raises(ConfigError, match=r"got 1,000 of 18 entries.*Lower `alignment\.probes`"):
        check_memory(divided, model, needed - 1)
    check_memory(small_config(alignment={"probes": 1000}), model, 0)
    with pytest.raises(ConfigError, match="must fit into memory"):
        prepare(small_config(alignment={**alignment, "probes": 10**12}), None)


def test_an_objective_without_probes_has_one_product() -> None:
    model = build_model("mlp", (1, 4, 4), 3, {"hidden": [5]}, 0)
    needed = 2 * 4 * sum(parameter.numel() for parameter in model.parameters())
    config = config_of("hgp", alignment={**ALL["hgp"], "probes": 9})
    check_memory(config, model, needed)
    with pytest.raises(ConfigError, match="got 1 of 103 entries"):
        check_memory(config, model, needed - 1)


@pytest.mark.parametrize(
    ("name", "probes", "remedy"),
    [("hutchinson", 9, "Lower `alignment"), ("hutchinson", 1, "Write `alignment"), ("hgp", 9, "Write `alignment")],
)
def test_fewer_probes_are_no_remedy_where_there_is_one(name: str, probes: int, remedy: str) -> None:
    model = build_model("mlp", (1, 4, 4), 3, {"hidden": [5]}, 0)
    with pytest.raises(ConfigError, match=f"must fit into memory.* MiB free. {remedy}"):
        check_memory(config_of(name, alignment={**ALL[name], "probes": probes}), model, 0)


def test_the_check_leaves_the_model_as_it_was() -> None:
    config, loss = config_of("hutchinson"), LOSSES.get("cross_entropy")({})
    model = build_model("mlp", (1, 4, 4), 3, {"hidden": [5]}, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_third_order(config, model, loss, (1, 4, 4), 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
