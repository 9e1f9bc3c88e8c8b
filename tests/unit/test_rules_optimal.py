"""Rules that solve a problem against general optimisers and closed forms; the published errors, kept failing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torchjd import aggregation

from difc_ray.errors import ConfigError, NumericError
from difc_ray.harmonizers import harmonize, simplex
from tests.samplers import Rows, gaussian_rows, generator, gram_of, improvable_rows, stationary_rows


def test_mgda_examples_that_contradict_the_text() -> None:
    def point(rows: Rows) -> Rows:
        return np.asarray(harmonize(gram_of(rows), "mgda").weights @ rows)

    right_angle = np.array([[1.0, 0.0], [0.0, 2.0]])  # Theorem 6.1: "proportional to the normalized sum"
    assert point(right_angle) == pytest.approx([0.8, 0.4])
    normalized = harmonize(gram_of(right_angle), "normalized").weights @ right_angle
    assert normalized / normalized[0] == pytest.approx([1.0, 1.0])
    bundle = np.array([[1.0, 0.0], [-0.8, 0.6], [-0.8, 0.6]])  # Theorem 6.2 has no use here
    assert bundle @ point(bundle) == pytest.approx([0.1, 0.1, 0.1])
    assert bundle[0] @ (harmonize(gram_of(bundle), "normalized").weights @ bundle) == pytest.approx(-0.6 / 3)
    equal = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # Theorem 11.1: "the mean is near the optimum"
    assert point(equal) == pytest.approx([0.5, 0.5])
    for _ in range(5):  # Lemma 3.1 has |u|²/2 where |u|² is right
        rows = improvable_rows(generator(_), 4, 6)
        u = point(rows)
        assert (rows @ u).min() == pytest.approx(u @ u)
        assert (rows @ u).min() != pytest.approx(u @ u / 2, rel=0.1)


def test_lower_bounds_cost_the_guarantee() -> None:
    rows = np.array([[1.0, 0.0], [-2.0, 0.1]])
    found = harmonize(gram_of(rows), "mgda", lower_bounds=0.45)
    assert found.weights == pytest.approx([0.55, 0.45])
    assert rows[0] @ (found.weights @ rows) == pytest.approx(-0.35)
    assert found.diagnostics["gap"] == pytest.approx(0.0, abs=1e-12)
    each = harmonize(gram_of(rows), "mgda", lower_bounds=(0.0, 0.45)).weights
    np.testing.assert_allclose(each, found.weights)
    for solver in ("frank_wolfe", "simplified_fw", "softmax"):
        iterated = harmonize(gram_of(rows), "mgda", lower_bounds=0.45, solver=solver, steps=3000)
        np.testing.assert_allclose(iterated.weights, found.weights, atol=2e-3)


@pytest.mark.parametrize("n", [1, 2, 5, 9])
def test_exact_mgda_is_the_shortest_of_all_solvers(n: int) -> None:
    rng = generator(n)
    for _ in range(5):
        rows = gaussian_rows(rng, n, 5, 1.0) - 0.2
        gram = gram_of(rows)
        best = harmonize(gram, "mgda")
        shortest = best.weights @ gram @ best.weights
        assert best.diagnostics["gap"] <= 1e-12
        for solver in ("frank_wolfe", "simplified_fw", "softmax"):
            other = harmonize(gram, "mgda", solver=solver, steps=300)
            square = other.weights @ gram @ other.weights
            gap = other.diagnostics["gap"] * np.diag(gram).mean()
            assert shortest <= square * (1 + 1e-12)
            assert square - shortest <= 2 * gap * (1 + 1e-9) + 1e-12 * shortest
            assert np.sum(((other.weights - best.weights) @ rows) ** 2) <= gap * (1 + 1e-9) + 1e-9 * shortest
            assert other.weights.sum() == pytest.approx(1.0)


def test_simplified_frank_wolfe_keeps_its_bound() -> None:
    """``|u_k - u*|² <= R² / k``."""
    rng = generator(3)
    for _ in range(10):
        rows = gaussian_rows(rng, 5, 5, 0.5)
        best = harmonize(gram_of(rows), "mgda").weights @ rows
        radius = max(np.sum((row - best) ** 2) for row in rows)
        for k in (1, 3, 10, 100):
            point = simplex.simplified_frank_wolfe(gram_of(rows), k).weights @ rows
            assert np.sum((point - best) ** 2) <= radius / k * (1 + 1e-12)


@pytest.mark.parametrize("tau", [0.01, 0.3, 5.0])
def test_entropy_against_a_general_optimizer(tau: float) -> None:
    rows = gaussian_rows(generator(4), 4, 5, 0.7)
    gram = gram_of(rows) / np.diag(gram_of(rows)).mean()

    def objective(theta: Rows) -> float:
        alpha = np.exp(theta - theta.max())
        alpha /= alpha.sum()
        return float(0.5 * alpha @ gram @ alpha + tau * np.sum(alpha * np.log(alpha)))

    best = minimize(objective, np.zeros(4), method="BFGS", options={"gtol": 1e-9})
    found = harmonize(gram_of(rows), "mgda", entropy=tau)
    assert found.diagnostics["kkt_residual"] < 1e-10
    assert objective(np.log(found.weights)) <= best.fun + 1e-12
    np.testing.assert_allclose(found.weights, np.exp(best.x) / np.exp(best.x).sum(), atol=1e-4)


def test_entropy_has_the_sign_that_keeps_weights_apart_from_the_corners() -> None:
    rows = np.array([[1.0, 0.0], [0.0, 1.1]])
    assert harmonize(gram_of(rows), "mgda", entropy=1e3).weights == pytest.approx([0.5, 0.5], abs=1e-3)
    assert harmonize(gram_of(rows), "mgda", entropy=1e-4).weights == pytest.approx(
        harmonize(gram_of(rows), "mgda").weights, abs=1e-3
    )
    assert harmonize(gram_of(rows), "mgda_paper", entropy=10.0).weights.max() > 0.999  # the printed sign: a corner


def test_mgda_as_printed_fails() -> None:
    agreeing = np.array([[1.0, 0.0], [2.0, 0.0]])  # Eq. 59 without the cut to [0, 1]
    assert harmonize(gram_of(agreeing), "mgda_paper").weights == pytest.approx([2.0, -1.0])
    assert harmonize(gram_of(agreeing), "mgda").weights == pytest.approx([1.0, 0.0])
    rng, conflicts = generator(5), []
    for _ in range(200):  # ten steps
        rows = rng.standard_normal((20, 20))
        conflicts.append((rows @ (harmonize(gram_of(rows), "mgda_paper").weights @ rows)).min() < -1e-9)
        assert (rows @ (harmonize(gram_of(rows), "mgda").weights @ rows)).min() > -1e-12
    assert 0.3 < np.mean(conflicts) < 0.9
    rows = np.array([[1.0, 0.0, 0.2], [-0.9, 0.5, 0.1], [0.1, -1.0, 3.0]])
    large, small = (harmonize(gram_of(rows * scale), "mgda_paper").weights for scale in (1.0, 1e-5))
    assert np.abs(large - small).max() > 0.01  # absolute thresholds


def test_normalized() -> None:
    rows = np.array([[3.0, 4.0], [0.0, 2.0]])
    found = harmonize(gram_of(rows), "normalized").weights @ rows
    assert found == pytest.approx(3.5 * np.array([0.6, 1.8]) / 2)
    found = harmonize(gram_of(rows), "normalized", length="one", weights=[1.0, 1.0]).weights @ rows
    assert found == pytest.approx([0.6, 1.8])
    tiny = rows * 1e-10  # Eq. 77's absolute ε
    printed = harmonize(gram_of(tiny), "normalized_paper", weights=[1.0, 1.0]).weights @ tiny
    assert np.linalg.norm(printed) < 0.1 * np.linalg.norm([0.6, 1.8])


@pytest.mark.parametrize("c", [0.1, 0.5, 0.99, 2.0])
def test_cagrad_against_a_general_optimizer(c: float) -> None:
    rng = generator(6)
    for n in (2, 4):
        rows = gaussian_rows(rng, n, 5, 0.5) - 0.3
        gram, mean = gram_of(rows), rows.mean(axis=0)
        direction = harmonize(gram, "cagrad", c=c).weights @ rows
        radius = c * np.linalg.norm(mean)
        assert np.linalg.norm(direction - mean) <= radius * (1 + 1e-9)

        def dual(theta: Rows, rows: Rows = rows, mean: Rows = mean, radius: float = radius) -> float:
            omega = np.exp(theta - theta.max())
            point = omega / omega.sum() @ rows
            return float(point @ mean + radius * np.linalg.norm(point))

        best = min(minimize(dual, start, method="BFGS", options={"gtol": 1e-10}).fun for start in np.eye(n))
        assert (rows @ direction).min() == pytest.approx(best, rel=1e-4)


def test_cagrad_between_mean_and_mgda() -> None:
    rows = improvable_rows(generator(7), 4, 6)
    gram = gram_of(rows)
    np.testing.assert_array_equal(harmonize(gram, "cagrad", c=0.0).weights, np.full(4, 0.25))
    far, shortest = (harmonize(gram, rule, **o).weights @ rows for rule, o in (("cagrad", {"c": 100.0}), ("mgda", {})))
    cosine = far @ shortest / np.linalg.norm(far) / np.linalg.norm(shortest)
    assert cosine > 0.999
    balanced = np.array([[1.0, 0.0], [-1.0, 0.0]])
    np.testing.assert_array_equal(harmonize(gram_of(balanced), "cagrad").weights, [0.5, 0.5])
    stationary = stationary_rows(generator(8), 4, 6)
    direction = harmonize(gram_of(stationary), "cagrad", c=2.0).weights @ stationary
    assert np.linalg.norm(direction) < 1e-6


@pytest.mark.parametrize(("rule", "q"), [("nash", 1.0), ("fairgrad", 0.5)])
@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_fair_rules_solve_their_equation(rule: str, q: float, n: int) -> None:
    rng = generator(n)
    for _ in range(5):
        rows, base = improvable_rows(rng, n, n + 3) * 10.0 ** rng.uniform(-1, 1, (n, 1)), rng.uniform(0.2, 1.0, n)
        found = harmonize(gram_of(rows), rule, weights=base)
        left = rows @ (found.weights @ rows) * found.weights**q
        np.testing.assert_allclose(left / base, (left / base)[0], rtol=1e-7)
        assert found.diagnostics["kkt_residual"] < 1e-12
    equal = np.tile(rows[:1], (n, 1))
    np.testing.assert_allclose(harmonize(gram_of(equal), rule).weights @ equal, rows[0], rtol=1e-9)
    zero = stationary_rows(rng, n + 1, n + 3)
    np.testing.assert_array_equal(harmonize(gram_of(zero), rule).weights, np.zeros(n + 1))


def test_fair_rules_maximise_their_utility() -> None:
    """Nash: no direction of that length has a larger product of margins. ``fairgrad(alpha=1)`` is ``nash``."""
    rng = generator(10)
    rows = improvable_rows(rng, 4, 6)
    nash = harmonize(gram_of(rows), "nash").weights
    np.testing.assert_allclose(harmonize(gram_of(rows), "fairgrad", alpha=1.0).weights, nash, rtol=1e-9)
    direction = nash @ rows
    length = math.sqrt(np.mean(np.sum(rows**2, axis=1)))
    assert np.linalg.norm(direction) == pytest.approx(length)
    best = np.log(rows @ direction).sum()
    for _ in range(200):
        other = direction + 0.1 * rng.standard_normal(6) * length
        margins = rows @ (other * length / np.linalg.norm(other))
        assert (margins <= 0).any() or np.log(margins).sum() <= best + 1e-12
    theirs = aggregation.FairGradWeighting(alpha=2.0)(torch.from_numpy(gram_of(rows))).numpy()
    mine = harmonize(gram_of(rows), "fairgrad").weights
    np.testing.assert_allclose(mine / mine.sum(), theirs / theirs.sum(), rtol=1e-3)
    towards_mgda = harmonize(gram_of(rows), "fairgrad", alpha=20.0).weights @ rows
    assert (rows @ towards_mgda).min() / (rows @ towards_mgda).max() > 0.7


def with_metric(rows: Rows, metric: Rows) -> Rows:
    """Gram of the rows g and M g, M a vector (diagonal) or a matrix."""
    behind = rows * metric if metric.ndim == 1 else rows @ metric
    return gram_of(np.vstack([rows, behind]))


def test_flat_worked_example() -> None:
    rows, curvature, lam = np.array([[1.0, 2.0], [-1.0, 1.0]]), np.array([2.0, 1.0]), 0.1
    base = [0.5, 0.5]
    for metric, expected in ((1 / (1 + lam * curvature), 1.5 / 1.1), (1 - lam * curvature, 1.35)):
        for rule in ("flat_dualproj", "flat_pcgrad_paper"):
            found = harmonize(with_metric(rows, metric), rule, weights=base)
            assert found.weights[:2].tolist() == [0.0, 0.0]
            direction = found.weights[2:] @ (rows * metric)
            assert direction == pytest.approx([0.0, expected], abs=1e-12)  # no conflict: both are M of the mean
            assert found.diagnostics["conflicts_after"] == 0.0
    assert round(1.5 / 1.1, 4) == 1.3636


@pytest.mark.parametrize("k", [2, 3, 5])
def test_flat_dualproj_against_a_general_optimizer(k: int) -> None:
    rng = generator(k)
    for lam in (0.3, 10.0):
        rows, curvature, base = rng.standard_normal((k, 4)) - 0.4, rng.exponential(size=4), rng.dirichlet(np.ones(k))
        mean = base @ rows
        found = harmonize(with_metric(rows, 1 / (1 + lam * curvature)), "flat_dualproj", weights=base)
        direction = found.weights[k:] @ (rows / (1 + lam * curvature))

        def cost(d: Rows, mean: Rows = mean, lam: float = lam, curvature: Rows = curvature) -> float:
            return float(np.sum((d - mean) ** 2) + lam * d @ (curvature * d))

        limits = {"type": "ineq", "fun": lambda d, rows=rows: rows @ d, "jac": lambda d, rows=rows: rows}
        best = minimize(cost, np.zeros(4), constraints=limits, method="SLSQP", options={"ftol": 1e-15, "maxiter": 500})
        assert cost(direction) == pytest.approx(best.fun, abs=1e-7)
        np.testing.assert_allclose(direction, best.x, atol=1e-4)
        assert (rows @ direction).min() > -1e-12


def test_flat_dualproj_of_two_rows_in_closed_form_and_with_a_full_metric() -> None:
    rng = generator(11)
    for _ in range(20):
        rows, w = gaussian_rows(rng, 2, 4, 0.5), rng.uniform(0.1, 1.0, 2)
        root = rng.standard_normal((4, 4))
        metric = np.linalg.inv(np.eye(4) + root @ root.T)
        a = rows @ metric @ rows.T
        expected, s = w.copy(), a @ w
        if s.min() < 0:
            expected[s.argmin()] -= s.min() / a[s.argmin(), s.argmin()]
        found = harmonize(with_metric(rows, metric), "flat_dualproj", weights=w)
        np.testing.assert_allclose(found.weights[2:], expected, rtol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_flat_dualproj_without_curvature_is_dualproj(n: int) -> None:
    rng = generator(n)
    for _ in range(10):
        rows, w = gaussian_rows(rng, n, 5, 1.0), rng.uniform(0.1, 1.0, n)
        plain = harmonize(gram_of(rows), "dualproj", weights=w)
        flat = harmonize(with_metric(rows, np.ones(5)), "flat_dualproj", weights=w)
        np.testing.assert_array_equal(flat.weights, [*np.zeros(n), *plain.weights])
        for name in ("kkt_residual", "conflicts", "min_cosine", "conflicts_after", "min_margin_cosine", "cos_mean"):
            assert flat.diagnostics[name] == pytest.approx(plain.diagnostics[name], abs=1e-9)
        default = harmonize(with_metric(rows, np.ones(5)), "flat_dualproj").weights
        np.testing.assert_array_equal(default[n:], harmonize(gram_of(rows), "dualproj").weights)


def test_flat_step_as_printed_never_resolves_a_conflict() -> None:
    rows = np.array([[1.0, 0.0], [-2.0, 1.0]])
    found = harmonize(with_metric(rows, np.ones(2)), "flat_pcgrad_paper")
    assert found.weights[2:] @ rows == pytest.approx([-0.25, 0.5])
    assert found.diagnostics["min_margin_cosine"] < -0.4
    rng, seen = generator(14), 0
    for _ in range(300):
        rows, metric = rng.standard_normal((2, 4)) * 10.0 ** rng.uniform(-1, 1, (2, 1)), 1 - 0.9 * rng.random(4)
        before = rows @ (rows.mean(axis=0) * metric)
        if before.min() < 0:
            seen += 1
            after = rows @ (harmonize(with_metric(rows, metric), "flat_pcgrad_paper").weights[2:] @ (rows * metric))
            assert after[before.argmin()] <= 0.5 * before.min()
            fixed = rows @ (harmonize(with_metric(rows, metric), "flat_dualproj").weights[2:] @ (rows * metric))
            assert fixed.min() > -1e-9
    assert seen > 50


def test_flat_rules_refuse_rows_that_are_not_paired() -> None:
    with pytest.raises(ConfigError, match=r"an even number. Found 3 rows"):
        harmonize(np.eye(3), "flat_dualproj")
    with pytest.raises(ConfigError, match=r"one entry in `base weights` per row. Found shape \(4,\) for 2 rows"):
        harmonize(np.eye(4), "flat_dualproj", weights=np.ones(4))
    rng = generator(15)
    rows = rng.standard_normal((2, 4))
    with pytest.raises(NumericError, match=r"must equal `g_j · M g_i` for a symmetric M.*i = 0, j = 1"):
        harmonize(gram_of(np.vstack([rows, rng.standard_normal((2, 4))])), "flat_dualproj")
