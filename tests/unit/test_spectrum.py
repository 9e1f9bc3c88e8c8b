"""The Hessians of domains' losses, their distances and the transfer bound, against exact Hessians of small models."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from difc_ray.errors import ConfigError
from difc_ray.models import Model, build_model
from difc_ray.objectives.curvature import Density, lanczos, rademacher, trace
from difc_ray.objectives.losses import CrossEntropy, Ldam, Loss
from difc_ray.runs.checkpoint import newest_valid
from difc_ray.step.worker import ModelState, domain_buffer
from difc_ray.studies.spectrum.measure import SpectrumSurvey, drawn_examples
from difc_ray.studies.spectrum.options import Options, check_memory, check_options, chosen_steps, needed_bytes
from difc_ray.studies.spectrum.risks import (
    Combined,
    Examples,
    HeadRisk,
    Network,
    NetworkRisk,
    Risk,
    difference,
    kept_numbers,
    tell,
)
from difc_ray.studies.spectrum.transfer import bound_beside_gap, rises, unit
from tests.runs import small_config, train

SHAPE, CLASSES = (2, 6, 6), 3


def mlp() -> Model:
    return Model(nn.Sequential(nn.Flatten(), nn.Linear(72, 4), nn.Tanh()), nn.Linear(4, CLASSES))


def normed() -> Model:
    """As LeNet with normalisation: convolution, BatchNorm, pooling, LayerNorm, dropout."""
    layers = (
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.AvgPool2d(2), nn.Flatten(),
        nn.Linear(12, 5), nn.LayerNorm(5), nn.GELU(), nn.Dropout(0.5),
    )  # fmt: skip
    return Model(nn.Sequential(*layers), nn.Linear(5, CLASSES))


class Attending(nn.Module):
    """Attention, whose fused kernel has no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.mean(1)
        found: Tensor = self.attention(rows, rows, rows, need_weights=False)[0]
        return found.mean(1)


def attentive() -> Model:
    return Model(Attending(), nn.Linear(6, CLASSES))


MODELS: dict[str, Callable[[], Model]] = {"mlp": mlp, "normed": normed, "attentive": attentive}


def state_of(model: Model) -> ModelState:
    """The model's parameters, larger than at the start, and its buffers away from theirs."""
    generator = torch.Generator().manual_seed(5)
    size = sum(parameter.numel() for parameter in model.parameters())
    buffers = {
        name: (torch.rand(value.shape, generator=generator) + 0.5 if value.is_floating_point() else value).numpy()
        for name, value in model.named_buffers()
    }
    return ModelState(theta_P=(0.5 * torch.randn(size, generator=generator)).numpy(), buffers=buffers)


def examples(name: str, count: int, seed: int) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, *SHAPE, generator=generator)
    return Examples(name=name, images=images, labels=torch.randint(0, CLASSES, (count,), generator=generator))


def exact_loss(model: Model, loss: Loss, state: ModelState, held: Examples) -> Callable[[Tensor], Tensor]:
    """The mean loss as a function of the flat parameters, by torch alone, in one piece."""
    twin = model.double().eval()
    buffers = {
        name: torch.from_numpy(state.buffers.get(domain_buffer(held.name, name), state.buffers[name])).to(value)
        for name, value in twin.named_buffers()
    }

    def of(theta_P: Tensor) -> Tensor:
        named, start = {}, 0
        for name, parameter in twin.named_parameters():
            named[name] = theta_P[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
        return loss.value(functional_call(twin, {**named, **buffers}, held.images.double()), held.labels)

    return of


def exact_hessian(of: Callable[[Tensor], Tensor], state: ModelState) -> Tensor:
    """All second derivatives."""
    assert state.theta_P is not None
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found: Tensor = torch.autograd.functional.hessian(of, torch.from_numpy(state.theta_P).double())
    return found


class Case:
    """A model with two domains in float64, and what torch says of them."""

    def __init__(self, make: Callable[[], Model], loss: Loss | None = None, chunk: int = 4, scope: str = "all") -> None:
        torch.manual_seed(0)
        self.loss = loss or CrossEntropy()
        self.state = state_of(make())
        self.sets = [examples("a", 11, 1), examples("b", 6, 2)]
        self.network = Network(make(), self.loss, self.state, torch.float64)
        made = NetworkRisk if scope == "all" else HeadRisk
        self.risks: list[Risk] = [made(self.network, held, chunk) for held in self.sets]
        self.functions = [exact_loss(make(), self.loss, self.state, held) for held in self.sets]
        self.hessians = [exact_hessian(of, self.state) for of in self.functions]
        self.theta_P = torch.from_numpy(np.asarray(self.state.theta_P)).double()


@pytest.mark.parametrize("model", MODELS)
def test_loss_gradient_and_products_are_exact_whatever_the_chunks(model: str) -> None:
    for chunk in (1, 4, 64):
        case = Case(MODELS[model], chunk=chunk)
        for risk, of, hessian in zip(case.risks, case.functions, case.hessians, strict=True):
            theta = case.theta_P.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(of(theta), theta)
            torch.testing.assert_close(risk.gradient(), gradient, rtol=1e-10, atol=1e-13)
            vectors = torch.randn(2, risk.size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            for vector in vectors:
                torch.testing.assert_close(risk.product(vector), hessian @ vector, rtol=1e-9, atol=1e-12)
            offset = 0.1 * vectors[0]
            assert risk.value(offset) == pytest.approx(float(of(case.theta_P + offset)), rel=1e-12)
            assert risk.value() == pytest.approx(float(of(case.theta_P)), rel=1e-12)


def test_the_closed_form_of_the_head_is_the_block_of_the_exact_hessian() -> None:
    whole, head = Case(normed), Case(normed, scope="head")
    for risk, hessian in zip(head.risks, whole.hessians, strict=True):
        block = hessian[-risk.size :, -risk.size :]
        eye = torch.eye(risk.size, dtype=torch.float64)
        found = torch.stack([risk.product(row) for row in eye])
        torch.testing.assert_close(found, block, rtol=1e-9, atol=1e-13)
    for one, other in zip(head.risks, whole.risks, strict=True):
        torch.testing.assert_close(one.gradient(), other.gradient()[-one.size :], rtol=1e-10, atol=1e-14)
        offset = torch.zeros(other.size, dtype=torch.float64)
        offset[-one.size :] = torch.linspace(-0.3, 0.4, one.size, dtype=torch.float64)
        assert one.value(offset[-one.size :]) == pytest.approx(other.value(offset), rel=1e-12)


def test_eigenvalues_trace_density_and_distance_are_those_of_the_exact_hessian() -> None:
    case = Case(normed)
    risk, exact = case.risks[0], torch.linalg.eigvalsh(case.hessians[0]).numpy()
    size = risk.size
    krylov = lanczos(risk.product, rademacher(1, size, 3, torch.float64)[0], 30)
    ritz = krylov.ritz()
    np.testing.assert_allclose(ritz.values_K[-3:], exact[-3:], rtol=1e-6)
    np.testing.assert_allclose(ritz.values_K[0], exact[0], rtol=1e-6)
    assert (np.abs(exact[:, None] - ritz.values_K).min(0) <= ritz.residuals_K + 1e-10).all()
    estimate = trace(risk.product, rademacher(20, size, 4, torch.float64), krylov)
    assert estimate.error is not None
    assert abs(estimate.value - exact.sum()) <= 4 * estimate.error + 1e-9
    eye = torch.eye(size, dtype=torch.float64)
    density = Density.of([lanczos(risk.product, row, 3).ritz() for row in eye])
    for degree in range(6):
        moment = float(density.weights_Q @ density.nodes_Q**degree)
        assert moment == pytest.approx(float((exact**degree).mean()), rel=1e-8, abs=1e-12)
    apart = difference(*case.risks)
    norm = np.abs(torch.linalg.eigvalsh(case.hessians[0] - case.hessians[1]).numpy()).max()
    found = lanczos(apart.product, rademacher(1, size, 5, torch.float64)[0], 40, tolerance=1e-2).ritz()
    assert abs(found.values_K[found.extreme]) == pytest.approx(norm, rel=1e-3)
    assert abs(found.values_K[found.extreme]) <= norm + 1e-10


def test_float32_products_agree_to_float32() -> None:
    case = Case(normed)
    single = NetworkRisk(Network(normed(), case.loss, case.state, torch.float32), case.sets[0], 4)
    vector = torch.randn(single.size, generator=torch.Generator().manual_seed(2))
    found, exact = single.product(vector), case.hessians[0] @ vector.double()
    assert found.dtype == torch.float32
    assert float((found - exact).norm() / exact.norm()) < 1e-5
    assert single.value() == pytest.approx(case.risks[0].value(), rel=1e-13)  # losses are float64 all the same


def test_a_domain_with_buffers_of_its_own_is_measured_with_them() -> None:
    state = state_of(normed())
    name = "featurizer.1.running_mean"
    own = {**state.buffers, domain_buffer("a", name): state.buffers[name] + 2}
    state = ModelState(theta_P=state.theta_P, buffers=own)
    network = Network(normed(), CrossEntropy(), state, torch.float64)
    sets = [examples("a", 5, 1), examples("b", 5, 1)]
    risks = [NetworkRisk(network, held, 64) for held in sets]
    for risk, held in zip(risks, sets, strict=True):
        assert risk.value() == pytest.approx(
            float(
                exact_loss(normed(), CrossEntropy(), state, held)(torch.from_numpy(np.asarray(state.theta_P)).double())
            )
        )
    hessian = exact_hessian(exact_loss(normed(), CrossEntropy(), state, sets[0]), state)
    vector = torch.ones(risks[0].size, dtype=torch.float64)
    risks[1].product(vector)  # another domain in between
    torch.testing.assert_close(risks[0].product(vector), hessian @ vector, rtol=1e-9, atol=1e-12)
    assert risks[0].value() != risks[1].value()


def test_the_loss_is_the_one_that_the_run_was_told() -> None:
    loss = Ldam()
    memory = loss.begin(np.array([100, 10, 2]), 5, 10)
    late = tell(loss, memory, 9)
    case = Case(mlp, loss=late)
    plain = Case(mlp)
    assert case.risks[0].value() != pytest.approx(plain.risks[0].value())
    vector = torch.ones(case.risks[0].size, dtype=torch.float64)
    torch.testing.assert_close(case.risks[0].product(vector), case.hessians[0] @ vector, rtol=1e-9, atol=1e-12)


class Quadratic:
    """``½ xᵀHx + gᵀx + c`` around θ = 0."""

    def __init__(self, hessian: Tensor, gradient: Tensor, constant: float) -> None:
        self.hessian, self.slope, self.constant = hessian, gradient, constant

    @property
    def size(self) -> int:
        return len(self.slope)

    def value(self, offset_S: Tensor | None = None) -> float:
        x = torch.zeros_like(self.slope) if offset_S is None else offset_S
        return float(0.5 * x @ self.hessian @ x + self.slope @ x) + self.constant

    def gradient(self) -> Tensor:
        return self.slope

    def product(self, vector_S: Tensor) -> Tensor:
        return self.hessian @ vector_S


def quadratics(seed: int, *, stationary: bool) -> tuple[Quadratic, Quadratic]:
    generator = torch.Generator().manual_seed(seed)
    found = []
    for constant in (0.3, 1.7):
        drawn = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        slope = torch.randn(6, generator=generator, dtype=torch.float64) * (not stationary)
        found.append(Quadratic(drawn + drawn.T, slope, constant))
    return found[0], found[1]


@pytest.mark.parametrize("stationary", [True, False])
def test_the_bound_holds_exactly_on_quadratics_and_is_met_in_the_worst_direction(stationary: bool) -> None:
    for seed in range(5):
        source, target = quadratics(seed, stationary=stationary)
        apart = difference(source, target)
        krylov = lanczos(apart.product, torch.ones(6, dtype=torch.float64), 6)
        ritz = krylov.ritz()
        norm, gradient = abs(float(ritz.values_K[ritz.extreme])), float(apart.gradient().norm())
        assert norm == pytest.approx(float(torch.linalg.matrix_norm(source.hessian - target.hessian, 2)))
        eigenvector = krylov.vector(ritz.extreme)
        drawn = torch.randn(300, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for delta in (0.01, 1.0, 30.0):
            measured = {
                "eigenvector": [rises(source, target, eigenvector, delta)],
                "random": [rises(source, target, row / row.norm(), delta) for row in drawn],
            }
            found = bound_beside_gap(measured, delta, gradient, norm)
            assert found.gap <= found.bound * (1 + 1e-9) + 1e-14
            assert found.even_gap == pytest.approx(found.curvature_term, rel=1e-6)  # the eigenvector attains it
            if stationary:
                assert found.gap == pytest.approx(found.bound, rel=1e-6)
                assert found.worst == "eigenvector"
            else:
                assert found.gap > found.curvature_term  # without the first-order term the bound is false


def test_near_theta_the_gap_of_a_network_is_within_the_bound_and_its_even_part_is_the_curvature() -> None:
    case = Case(normed)
    source, target = case.risks
    apart = difference(source, target)
    krylov = lanczos(apart.product, rademacher(1, apart.size, 1, torch.float64)[0], 40)
    ritz = krylov.ritz()
    norm = abs(float(ritz.values_K[ritz.extreme]))
    directions = {"eigenvector": krylov.vector(ritz.extreme), "gradient": unit(apart.gradient())}
    delta = 1e-3
    measured = {kind: [rises(source, target, u, delta)] for kind, u in directions.items() if u is not None}
    found = bound_beside_gap(measured, delta, float(apart.gradient().norm()), norm)
    assert found.gap <= found.bound
    assert found.gap == pytest.approx(found.gradient_term, rel=1e-2)
    assert found.worst == "gradient"
    assert found.even_gap == pytest.approx(found.curvature_term, rel=1e-3)


def test_a_mean_of_risks_is_the_mean() -> None:
    case = Case(mlp)
    mean = Combined(case.risks, [0.25, 0.75])
    vector = torch.linspace(-1, 1, mean.size, dtype=torch.float64)
    exact = 0.25 * case.hessians[0] + 0.75 * case.hessians[1]
    torch.testing.assert_close(mean.product(vector), exact @ vector, rtol=1e-9, atol=1e-12)
    assert mean.value() == pytest.approx(0.25 * case.risks[0].value() + 0.75 * case.risks[1].value())
    assert unit(torch.zeros(3)) is None


def test_what_a_forward_pass_keeps_is_told_before() -> None:
    model = build_model("lenet", (3, 28, 28), 10, {}, 0)
    image = torch.randn(1, 3, 28, 28)
    kept = kept_numbers(model, CrossEntropy(), image)
    assert 20_000 < kept < 100_000
    assert 72 + 4 <= kept_numbers(mlp(), CrossEntropy(), torch.randn(1, *SHAPE)) < 1000


def test_what_does_not_fit_is_refused_with_what_it_would_take() -> None:
    options = Options(lanczos=90)
    needed = needed_bytes(options, size=10**6, parameters=10**6, features=10**6, chunk_bytes=10**6)
    assert needed == 100 * 4 * 10**6 + 20 * 10**6 + 12 * 10**6 + 10**6
    check_memory(options, needed, 10**6, needed)
    with pytest.raises(ConfigError, match=r"got 90 \+ 10 vectors of 1,000,000 entries \(381 MiB\).*--scope head"):
        check_memory(options, needed, 10**6, needed - 1)


@pytest.mark.parametrize("scope", ["head", "all"])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_what_a_measurement_takes_is_asked_for_to_the_byte(scope: Any, precision: Any, tmp_path: Path) -> None:
    config = small_config(steps=1, engine="inline", output=str(tmp_path))
    run_dir = train(config).run_dir
    options = Options(scope=scope, precision=precision, lanczos=30, seed=0)
    examples = [drawn_examples(config, name, options) for name in ("mnist", "fonts")]
    survey = SpectrumSurvey(config, options, examples, newest_valid(run_dir / "checkpoints")[1])
    assert survey.chunk == 64
    item, image = (4 if precision == "float32" else 8), examples[0].images[:1]
    parameters = image.numel() * 32 + 32 + 33 * 10
    size = {"head": 33 * 10, "all": parameters}[scope]
    kept = kept_numbers(survey.model, survey.loss, image)
    features = {"head": 2 * 128 * 32, "all": 0}[scope]
    passed = {"head": 8 * kept, "all": 4 * item * kept}[scope]
    needed = 40 * size * item + parameters * (16 + item) + features * (8 + item) + 64 * (8 * image.numel() + passed)
    survey.check_memory(needed)
    with pytest.raises(ConfigError, match="must fit into memory"):
        survey.check_memory(needed - 1)


def test_options_are_checked() -> None:
    check_options(Options(domains=("x",), top=20, lanczos=20), ("x", "y"))
    for options, words in (
        (Options(top=21, lanczos=20), "got 21 of 20"),
        (Options(domains=("z",)), "got `z`"),
        (Options(domains=("x", "x")), "got `x,x`"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_options(options, ("x", "y"))


def test_checkpoints_are_chosen() -> None:
    there = [0, 50, 100, 150, 200]
    assert chosen_steps(Options(), there) == there
    assert chosen_steps(Options(checkpoints=2), there) == [0, 200]
    assert chosen_steps(Options(checkpoints=1), there) == [200]
    assert chosen_steps(Options(checkpoints=9), there) == there
    assert chosen_steps(Options(steps=(150, 0)), there) == [0, 150]
    with pytest.raises(ConfigError, match=r"got 7 .*There are 0, 50, 100, 150, 200"):
        chosen_steps(Options(steps=(0, 7)), there)
    assert math.isclose(Options(precision="float64").dtype.itemsize, 8)
