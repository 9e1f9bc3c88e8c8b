"""Curvature over all parameters: against exact Hessians, finite differences, and torch's own layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from difc_ray.objectives.curvature import NetworkCurvature, WrittenOut, fused_layers, rademacher


class Case:
    """A small network in float64 on a batch, as a function of its flat parameters."""

    def __init__(self, *layers: nn.Module) -> None:
        torch.manual_seed(3)
        self.model = nn.Sequential(*layers).double()
        for parameter in self.model.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.images = torch.randn(6, 3, 4, dtype=torch.float64)
        self.labels = torch.arange(6) % 4
        self.parameters = list(self.model.parameters())
        self.theta_P = torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def named(self, theta_P: Tensor) -> dict[str, Tensor]:
        found, start = {}, 0
        for name, parameter in self.model.named_parameters():
            found[name] = theta_P[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return found

    def loss(self, theta_P: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(self.model, self.named(theta_P), self.images), self.labels)

    def curvature(self, theta_P: Tensor | None = None) -> NetworkCurvature:
        with torch.no_grad():
            for (_, value), parameter in zip(self.named(self.theta_P if theta_P is None else theta_P).items(),
                                             self.parameters, strict=True):  # fmt: skip
                parameter.copy_(value)
        with WrittenOut():
            loss = nn.functional.cross_entropy(self.model(self.images), self.labels)
        return NetworkCurvature(loss, self.parameters)


def smooth() -> Case:
    return Case(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4))


NORMS = {
    "layer": lambda: Case(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Linear(12, 5), nn.LayerNorm(5), nn.Linear(5, 4)),
    "batch": lambda: Case(nn.BatchNorm1d(3), nn.Flatten(), nn.Linear(12, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)),
    "instance": lambda: Case(nn.InstanceNorm1d(3, affine=True), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 4)),
    "group": lambda: Case(nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 4)),
}  # fmt: skip


def test_gradient_and_products_are_those_of_the_exact_hessian() -> None:
    case = smooth()
    curvature = case.curvature()
    exact_PP = torch.autograd.functional.hessian(case.loss, case.theta_P)
    torch.testing.assert_close(curvature.gradient(), torch.func.grad(case.loss)(case.theta_P), rtol=1e-12, atol=1e-14)
    vectors = torch.randn(3, curvature.size, dtype=torch.float64)
    torch.testing.assert_close(curvature.hessian_product(vectors), vectors @ exact_PP, rtol=1e-10, atol=1e-12)
    assert curvature.size == len(case.theta_P)


def test_the_estimate_of_the_diagonal_is_unbiased_within_its_standard_error() -> None:
    case, m = smooth(), 4000
    exact_PP = torch.autograd.functional.hessian(case.loss, case.theta_P)
    probes = rademacher(m, len(case.theta_P), 0, torch.float64)
    with torch.no_grad():
        products = probes @ exact_PP
    assert torch.allclose(case.curvature().hutchinson_diagonal(probes[:5]), (probes * products)[:5].mean(0))
    error = ((probes * products).mean(0) - exact_PP.diag()).abs()
    variance = exact_PP.square().sum(1) - exact_PP.diag().square()
    assert (error <= 5 * (variance / m).sqrt() + 1e-15).all()


@pytest.mark.parametrize("kind", NORMS)
def test_third_derivatives_are_those_of_finite_differences(kind: str) -> None:
    case = NORMS[kind]()
    size = len(case.theta_P)
    cotangent, direction = torch.randn(2, size, dtype=torch.float64)
    probes = rademacher(2, size, 1, torch.float64)

    def penalty(theta_P: Tensor) -> Tensor:
        curvature = case.curvature(theta_P)
        return cotangent @ curvature.hutchinson_diagonal(probes) + cotangent @ curvature.gradient()

    gradient = torch.autograd.grad(penalty(case.theta_P), case.parameters, allow_unused=True, materialize_grads=True)
    slope = torch.cat([g.reshape(-1) for g in gradient]) @ direction
    step = 1e-5
    expected = (penalty(case.theta_P + step * direction) - penalty(case.theta_P - step * direction)) / (2 * step)
    assert float(slope) == pytest.approx(float(expected.detach()), rel=1e-6)


def by_torchs_own_layers(kind: str) -> tuple[float, float]:
    """Slope of the penalty in a random direction, by differentiation and by differences."""
    case = NORMS[kind]()
    cotangent, direction = torch.randn(2, len(case.theta_P), dtype=torch.float64)
    probes = rademacher(1, len(case.theta_P), 1, torch.float64)

    def penalty(theta_P: Tensor) -> Tensor:
        case.curvature(theta_P)  # sets the parameters
        loss = nn.functional.cross_entropy(case.model(case.images), case.labels)
        return cotangent @ NetworkCurvature(loss, case.parameters).hutchinson_diagonal(probes)

    gradient = torch.autograd.grad(penalty(case.theta_P), case.parameters)
    slope = float(torch.cat([g.reshape(-1) for g in gradient]) @ direction)
    ahead, behind = (penalty(case.theta_P + sign * 1e-5 * direction).detach() for sign in (1, -1))
    return slope, float(ahead - behind) / 2e-5


def test_torchs_own_layers_would_not_do() -> None:
    """Negative control: that writing them out is needed with this torch."""
    slope, expected = by_torchs_own_layers("layer")
    assert slope != pytest.approx(expected, rel=1e-3)
    with pytest.raises(RuntimeError, match="3rd\\+ order"):
        by_torchs_own_layers("batch")


@pytest.mark.parametrize("layer", [nn.LayerNorm((3, 4)), nn.LayerNorm(4, elementwise_affine=False), nn.BatchNorm1d(3),
                                   nn.BatchNorm1d(3, momentum=None), nn.InstanceNorm1d(3, affine=True),
                                   nn.BatchNorm1d(3).eval()])  # fmt: skip
def test_written_out_layers_say_what_torchs_say(layer: nn.Module) -> None:
    import copy

    images, other = torch.randn(6, 3, 4) * 3 + 1, copy.deepcopy(layer)
    for _ in range(2):
        with WrittenOut():
            found = layer(images)
        torch.testing.assert_close(found, other(images), rtol=1e-5, atol=1e-6)
    for (name, mine), theirs in zip(layer.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6, msg=name)


def test_fused_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.GRU(4, 4))
    assert fused_layers(model) == ["1", "2"]
    with WrittenOut(), pytest.raises(NotImplementedError, match=r"alignment\.scope=head"):
        torch.nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 2, 4, 4))
