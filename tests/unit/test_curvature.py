"""The head's closed forms against autograd, and the Hutchinson estimator against its own theory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difc_ray.objectives.curvature import HeadCurvature, rademacher
from difc_ray.objectives.losses import LOSSES

N, FEATURES = 7, 4


def make_head(loss_name: str, classes: int, *, bias: bool) -> tuple[HeadCurvature, Tensor, Tensor, Tensor]:
    """A random head in float64 with its parameters flattened as torch lists them."""
    generator = torch.Generator().manual_seed(3)
    loss = LOSSES.get(loss_name)()
    outputs = loss.n_outputs(classes)
    features = torch.randn(N, FEATURES, generator=generator, dtype=torch.float64).abs()
    labels = torch.randint(0, classes, (N,), generator=generator)
    size = outputs * FEATURES + (outputs if bias else 0)
    theta = torch.randn(size, generator=generator, dtype=torch.float64)
    logits = logits_of(theta, features, outputs, bias=bias)
    ones = torch.ones(N, 1, dtype=torch.float64)
    head = HeadCurvature(
        features_ND=torch.cat([features, ones], 1) if bias else features,
        residual_NC=loss.residual(logits, labels),
        diagonal_NC=loss.hessian_diagonal(logits, labels),
        product=lambda outputs_NC: loss.hessian_product(logits, labels, outputs_NC),
        logits_NC=logits,
        risk=loss.value(logits, labels),
        has_bias=bias,
    )
    return head, theta, features, labels


def logits_of(theta: Tensor, features: Tensor, outputs: int, *, bias: bool) -> Tensor:
    weight = theta[: outputs * FEATURES].view(outputs, FEATURES)
    logits = features @ weight.T
    return logits + theta[outputs * FEATURES :] if bias else logits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("loss_name", "classes"), [("cross_entropy", 3), ("bce", 2)])
def test_closed_forms_equal_autograd(loss_name: str, classes: int, bias: bool) -> None:
    head, theta, features, labels = make_head(loss_name, classes, bias=bias)
    loss = LOSSES.get(loss_name)()

    def value(flat: Tensor) -> Tensor:
        return loss.value(logits_of(flat, features, loss.n_outputs(classes), bias=bias), labels)

    gradient = torch.func.grad(value)(theta)
    hessian = torch.func.hessian(value)(theta)
    torch.testing.assert_close(head.gradient(), gradient, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(head.hessian_diagonal(), hessian.diagonal(), rtol=1e-12, atol=1e-14)
    vectors = rademacher(5, head.size, seed=1, dtype=torch.float64) * 0.3
    torch.testing.assert_close(head.hessian_product(vectors), vectors @ hessian, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(head.hessian_product(vectors[0]), hessian @ vectors[0], rtol=1e-12, atol=1e-14)
    assert (head.hessian_diagonal() >= 0).all()


def test_hutchinson_is_unbiased_within_its_standard_error() -> None:
    head, _, _, _ = make_head("cross_entropy", 3, bias=True)
    hessian = head.hessian_product(torch.eye(head.size, dtype=torch.float64))
    draws = 4_000
    probes = rademacher(draws, head.size, seed=5, dtype=torch.float64)
    estimates = probes * head.hessian_product(probes)
    off = hessian - torch.diag(hessian.diagonal())
    variance = off.square().sum(1)  # the docstring's formula at m = 1
    error = (estimates.mean(0) - hessian.diagonal()).abs()
    assert (error <= 5 * (variance / draws).sqrt() + 1e-12).all()
    measured = estimates.var(0)
    torch.testing.assert_close(measured, variance, rtol=0.15, atol=float(variance.max()) * 0.02)
    torch.testing.assert_close(head.hutchinson_diagonal(probes), estimates.mean(0))


def test_probes_are_a_function_of_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = rademacher(3, 10, seed=7)
    torch.manual_seed(2)
    assert torch.equal(first, rademacher(3, 10, seed=7))
    assert not torch.equal(first, rademacher(3, 10, seed=8))
    assert set(first.flatten().tolist()) == {-1.0, 1.0}
