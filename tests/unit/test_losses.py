"""Losses: values against the definition, closed derivatives against autograd."""

from __future__ import annotations

import math

import pytest
import torch

from difc_ray.errors import ConfigError
from difc_ray.objectives.losses import LOSSES, Loss

N_CLASSES = {"cross_entropy": 5, "bce": 2, "ldam": 5, "ldam in use": 5}
NAMES = sorted(N_CLASSES)


def made(name: str) -> Loss:
    """A loss; `in use`: with margins and weights, as a worker has it."""
    loss = LOSSES.get(name.split()[0])()
    if not name.endswith("in use"):
        return loss
    margins = torch.tensor([0.3, 0.1, 0.0, 0.25, 0.2], dtype=torch.float64)
    return loss.with_vectors(
        {"margins": margins, "weights": torch.tensor([2.0, 0.5, 1.0, 3.0, 0.0], dtype=torch.float64)}
    )


def sample(name: str, n: int = 6, scale: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(3)
    outputs = made(name).n_outputs(N_CLASSES[name])
    logits = scale * torch.randn(n, outputs, dtype=torch.float64, generator=source)
    return logits, torch.randint(N_CLASSES[name], (n,), generator=source)


def test_number_of_outputs() -> None:
    assert LOSSES.get("cross_entropy")().n_outputs(7) == 7
    assert LOSSES.get("bce")().n_outputs(2) == 1
    with pytest.raises(ConfigError, match=r"exactly two classes\. Found 10\."):
        LOSSES.get("bce")().n_outputs(10)
    with pytest.raises(ConfigError, match=r"at least two classes\. Found 1\."):
        LOSSES.get("cross_entropy")().n_outputs(1)


def test_cross_entropy_value_by_definition() -> None:
    logits, labels = sample("cross_entropy")
    rows = [[math.exp(z) for z in row] for row in logits.tolist()]
    expected = -sum(math.log(row[k] / sum(row)) for row, k in zip(rows, labels.tolist(), strict=True)) / len(rows)
    assert float(LOSSES.get("cross_entropy")().value(logits, labels)) == pytest.approx(expected, rel=1e-12)


def test_bce_value_by_definition() -> None:
    logits, labels = sample("bce")
    ones = [1 / (1 + math.exp(-z)) for (z,) in logits.tolist()]
    expected = -sum(math.log(s if k else 1 - s) for s, k in zip(ones, labels.tolist(), strict=True)) / len(ones)
    assert float(LOSSES.get("bce")().value(logits, labels)) == pytest.approx(expected, rel=1e-12)


def test_bce_is_cross_entropy_on_the_logits_zero_and_z() -> None:
    logits, labels = sample("bce")
    two = torch.cat([torch.zeros_like(logits), logits], dim=1)
    bce, softmax = LOSSES.get("bce")(), LOSSES.get("cross_entropy")()
    assert torch.allclose(bce.value(logits, labels), softmax.value(two, labels), rtol=1e-12)
    assert torch.allclose(bce.predictions(logits), softmax.predictions(two), rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_are_probabilities(name: str) -> None:
    logits, _ = sample(name)
    probabilities = made(name).predictions(logits)
    assert probabilities.shape == (len(logits), N_CLASSES[name])
    assert torch.allclose(probabilities.sum(dim=1), torch.ones(len(logits), dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_residual_is_the_gradient_of_each_sample(name: str) -> None:
    loss, (logits, labels) = made(name), sample(name)
    leaf = logits.clone().requires_grad_()
    (mean_gradient,) = torch.autograd.grad(loss.value(leaf, labels), leaf)
    assert torch.allclose(loss.residual(logits, labels), len(logits) * mean_gradient, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_those_of_autograd(name: str) -> None:
    loss, (logits, labels) = made(name), sample(name)
    vectors = torch.randn_like(logits)
    diagonal, product = loss.hessian_diagonal(logits, labels), loss.hessian_product(logits, labels, vectors)
    for i in range(len(logits)):
        hessian = torch.autograd.functional.hessian(
            lambda z, i=i: loss.value(z[None], labels[i : i + 1]), logits[i], strict=True
        )
        assert torch.allclose(diagonal[i], hessian.diagonal(), atol=1e-14)
        assert torch.allclose(product[i], hessian @ vectors[i], atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_everything_is_differentiable_twice_through_the_logits(name: str) -> None:
    loss, (logits, labels) = made(name), sample(name, n=3)
    leaf, vectors = logits.requires_grad_(), torch.randn_like(logits)
    for function in (
        lambda z: loss.value(z, labels),
        lambda z: loss.residual(z, labels),
        lambda z: loss.hessian_diagonal(z, labels),
        loss.predictions,
        lambda z: loss.hessian_product(z, labels, vectors),
    ):
        assert torch.autograd.gradcheck(function, (leaf,))
        assert torch.autograd.gradgradcheck(function, (leaf,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite_and_keep_their_dtype(name: str, dtype: torch.dtype) -> None:
    loss, (logits, labels) = made(name), sample(name)
    logits = (200 * logits).to(dtype)
    results = (
        loss.value(logits, labels),
        loss.residual(logits, labels),
        loss.hessian_diagonal(logits, labels),
        loss.hessian_product(logits, labels, logits),
        loss.predictions(logits),
    )
    assert all(torch.isfinite(result).all() for result in results)
    assert {result.dtype for result in results} == {dtype}
    assert (loss.hessian_diagonal(logits, labels) >= 0).all()
