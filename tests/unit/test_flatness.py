"""The metric behind the rows: diagonal, Neumann series, adaptive λ, and what workers measure for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from difc_ray.models import Model
from difc_ray.objectives.losses import LOSSES
from difc_ray.step.curvature_metric import (
    SAFE,
    Flatness,
    combine_behind_head,
    gram_behind_head,
    head_slice,
    lanczos_norm,
)
from difc_ray.step.worker import Rows, Token, diagonal_row, head_curvature
from difc_ray.vectors import ParameterLayout, combine, gram
from tests.runs import small_config

P, S = 30, 8
LAYOUT = ParameterLayout(("body", "head.weight", "head.bias"), ((22,), (2, 3), (2,)))
WEIGHTS = np.array([0.5, 0.3, 0.2])


def replies(seed: int = 0, noise: float = 0.0) -> list[Rows]:
    rng = np.random.default_rng(seed)
    return [
        Rows(
            token=Token(run="r", attempt=0, step=0, domain=str(e)),
            rows_RP=rng.standard_normal((1, P)).astype(np.float32),
            buffers={},
            compute_s=0.0,
            curvature_P=rng.random(P).astype(np.float32),
            noise=noise,
        )
        for e in range(3)
    ]


def make(**curvature: object) -> Flatness:
    config = small_config(harmonize={"flatness": 0.7, "curvature": curvature})
    return Flatness(config, LAYOUT, WEIGHTS, {})


def spectrum(seed: int = 0, size: int = S) -> np.ndarray:
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return (basis * np.linspace(0.1, 3.0, size) ** 2) @ basis.T


@pytest.mark.parametrize("normalize", [True, False])
def test_diagonal_metric_is_the_inverse_of_one_plus_lambda_d(normalize: bool) -> None:
    flatness, first, second = make(normalize=normalize, decay=0.9), replies(1), replies(2)
    means = [sum(w * r.curvature_P for w, r in zip(WEIGHTS, part, strict=True)) for part in (first, second)]
    flatness.metric(first)
    assert flatness.state == {}  # nothing is kept before the step is taken
    flatness.commit()
    found = flatness.metric(second).numpy()
    averaged = 0.9 * means[0] + 0.1 * means[1]
    expected = 1 / (1 + 0.7 * averaged / (averaged.mean() if normalize else 1.0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert (found > 0).all()
    assert (found <= 1).all()


def test_gram_and_combination_with_a_metric_equal_explicit_rows() -> None:
    rows = [torch.from_numpy(r.rows_RP[0]) for r in replies(3)]
    metric = torch.rand(P) + 0.1
    doubled = rows + [row * metric for row in rows]
    np.testing.assert_allclose(gram(rows, metric), gram(doubled), rtol=1e-5, atol=1e-5)
    weights = np.array([0.0, 0.0, 0.0, 1.5, -0.5, 2.0])
    torch.testing.assert_close(combine(weights, rows, metric), combine(weights, doubled))
    weights[:3] = [1.0, -2.0, 0.25]
    torch.testing.assert_close(combine(weights, rows, metric), combine(weights, doubled))


def test_neumann_series_converges_to_the_inverse() -> None:
    hessian = spectrum()
    calls = []

    def products(vectors: np.ndarray) -> np.ndarray:
        calls.append(len(vectors))
        return vectors @ hessian

    vectors = np.random.default_rng(5).standard_normal((3, S))
    exact = vectors @ np.linalg.inv(np.eye(S) + 0.05 * hessian)
    errors = []
    for order in (1, 4, 60):
        config = small_config(
            harmonize={"flatness": 0.05, "curvature": {"kind": "hvp", "order": order, "normalize": False}}
        )
        flatness = Flatness(config, LAYOUT, WEIGHTS, {})
        found = flatness.neumann(0, replies(), vectors, products)
        assert not flatness.capped
        errors.append(float(np.abs(found - exact).max()))
        if order == 1:
            np.testing.assert_allclose(found, vectors - 0.05 * vectors @ hessian)
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9
    assert calls


def test_lambda_is_capped_where_the_series_would_diverge() -> None:
    hessian = spectrum()
    config = small_config(harmonize={"flatness": 10.0, "curvature": {"kind": "hvp", "order": 3, "normalize": False}})
    flatness = Flatness(config, LAYOUT, WEIGHTS, {})
    flatness.neumann(0, replies(), np.ones((1, S)), lambda vectors: vectors @ hessian)
    assert flatness.capped
    assert flatness.used * np.linalg.norm(hessian, 2) == pytest.approx(SAFE, rel=1e-6)
    assert flatness.diagnostics()["flatness_capped"] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_lanczos_finds_norm_and_mean_of_a_spectrum(seed: int) -> None:
    hessian = spectrum(seed, 40)
    start = np.sign(np.random.default_rng(seed).standard_normal(40))
    norm, mean = lanczos_norm(start, lambda vectors: vectors @ hessian)
    assert norm == pytest.approx(np.linalg.norm(hessian, 2), rel=0.02)
    assert mean == pytest.approx(start @ hessian @ start / 40)
    assert lanczos_norm(start, lambda vectors: 0 * vectors) == (0.0, 0.0)


def test_rows_behind_the_head_equal_explicit_rows() -> None:
    rows = [torch.from_numpy(r.rows_RP[0]).double() for r in replies(7)]
    head = head_slice(LAYOUT)
    assert (head.start, head.stop) == (22, 30)
    rng = np.random.default_rng(1)
    moved = rng.standard_normal((3, S))
    explicit = [row.clone() for row in rows]
    for row, part in zip(explicit, moved, strict=True):
        row[head] = torch.from_numpy(part)
    heads = np.stack([row[head].numpy() for row in rows])
    np.testing.assert_allclose(gram_behind_head(gram(rows), heads, moved), gram(rows + explicit), atol=1e-12)
    weights = rng.standard_normal(6)
    torch.testing.assert_close(combine_behind_head(weights, rows, moved, head), combine(weights, rows + explicit))


def test_adaptive_lambda_follows_the_share_of_noise() -> None:
    still, noisy = make(adaptive=True), make(adaptive=True)
    still.metric(replies(0, noise=0.0))
    noisy.metric(replies(0, noise=0.5))
    assert still.used == 0.0
    mean = sum(w * r.rows_RP[0, head_slice(LAYOUT)].astype(float) for w, r in zip(WEIGHTS, replies(0), strict=True))
    noise, power = 0.5 * float(WEIGHTS @ WEIGHTS), float(mean @ mean)
    assert noisy.used == pytest.approx(0.7 * noise / power)
    noisy.commit()
    noisy.metric(replies(0, noise=1e9))
    assert noisy.used == 0.7  # never more than what was asked for


class Tiny(Model):
    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(5, 4), nn.Tanh()), nn.Linear(4, 3))


def tiny() -> tuple[Tiny, torch.Tensor, torch.Tensor]:
    torch.manual_seed(2)
    return Tiny(), torch.randn(9, 1, 1, 5), torch.randint(0, 3, (9,))


def test_gradient_noise_is_the_variance_of_the_batch_mean() -> None:
    model, images, labels = tiny()
    loss = LOSSES.get("cross_entropy")()
    features = model.featurizer(images)
    head = head_curvature(loss, model, features, model.head(features), labels)
    per_sample = []
    for i in range(9):
        value = loss.value(model.head(features[i : i + 1].detach()), labels[i : i + 1])
        per_sample.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(value, list(model.head.parameters()))]))
    stacked = torch.stack(per_sample)
    expected = stacked.var(0, unbiased=True).sum().item() / 9
    assert head.gradient_noise() == pytest.approx(expected, rel=1e-4)


def test_diagonal_rows_against_the_exact_hessian() -> None:
    model, images, labels = tiny()
    loss = LOSSES.get("cross_entropy")()
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    flat = torch.cat([p.detach().reshape(-1) for p in parameters])
    names = [name for name, _ in model.named_parameters()]

    def value(theta: torch.Tensor) -> torch.Tensor:
        parts = {n: t.view(p.shape) for n, t, p in zip(names, theta.split(sizes), parameters, strict=True)}
        return loss.value(torch.func.functional_call(model, parts, (images,)), labels)

    hessian = torch.func.hessian(value)(flat)
    rows = []
    for seed in range(4):
        features = model.featurizer(images)
        logits = model.head(features)
        head = head_curvature(loss, model, features, logits, labels)
        gradients = torch.autograd.grad(loss.value(logits, labels), parameters, create_graph=True)
        probe = torch.randint(0, 2, (flat.numel(),), generator=torch.Generator().manual_seed(seed)).float() * 2 - 1
        raw = torch.empty(flat.numel())
        diagonal_row("hutchinson", head, gradients, parameters, probe, raw)
        assert (raw >= 0).all()
        exact = (probe * (hessian @ probe)).clamp(min=0)
        torch.testing.assert_close(raw[: -head.size], exact[: -head.size], rtol=1e-3, atol=1e-5)
        rows.append(raw)
    torch.testing.assert_close(rows[0][-head.size :], hessian.diagonal()[-head.size :], rtol=1e-4, atol=1e-6)
    diagonal_row("squared_gradient", head, gradients, parameters, None, raw)
    gradient = torch.cat([g.detach().reshape(-1) for g in gradients])
    torch.testing.assert_close(raw[: -head.size], 9 * gradient[: -head.size] ** 2)
    diagonal_row("none", head, gradients, parameters, None, raw)
    assert not raw[: -head.size].any()
