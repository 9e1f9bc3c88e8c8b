"""The quadratic programs against brute force over active sets, against scipy, and on input at the edges."""

from __future__ import annotations

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize, nnls

from difc_ray.errors import NumericError
from difc_ray.harmonizers import solvers
from tests.samplers import (
    SCALES,
    Rows,
    degenerate_rows,
    gaussian_rows,
    generator,
    gram_of,
    improvable_rows,
    low_rank_rows,
    stationary_rows,
)


def root_of(gram: Rows) -> Rows:
    """S with SᵀS = gram, dropping what is rounding."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(gram) * 1e-15 * values[-1]
    return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def cone_by_nnls(gram: Rows, bounds: Rows) -> Rows:
    """Weights by scipy on the root of the equilibrated Gram."""
    lengths = np.sqrt(np.diag(gram))
    root = root_of(gram / np.outer(lengths, lengths))
    raised, _ = nnls(root, -root @ (lengths * bounds))
    return bounds + raised / lengths


def cone_by_enumeration(rows: Rows, bounds: Rows) -> Rows:
    """The direction: of all supports, the shortest feasible one (``weights @ rows`` that opposes no row)."""
    n, best = len(rows), None
    for support in itertools.product((False, True), repeat=n):
        index = np.flatnonzero(support)
        direction = bounds @ rows
        if index.size:  # remove from it what lies along the rows of the support
            basis = np.linalg.qr(rows[index].T)[0]
            direction = direction - basis @ (basis.T @ direction)
            multipliers = np.linalg.lstsq(rows[index].T, direction - bounds @ rows, rcond=None)[0]
            if (multipliers < -1e-9).any():
                continue
        if (rows @ direction >= -1e-9).all():
            distance = np.linalg.norm(direction - bounds @ rows)
            best = (distance, direction) if best is None or distance < best[0] else best
    assert best is not None
    return np.asarray(best[1])


def shortest_by_enumeration(rows: Rows) -> float:
    """Squared length of the shortest point of the hull: the smallest over the affine hulls that hold it inside."""
    n, best = len(rows), np.inf
    for size in range(1, n + 1):
        for support in itertools.combinations(range(n), size):
            corner, edges = rows[support[0]], rows[list(support[1:])] - rows[support[0]]
            shares = np.linalg.lstsq(edges.T, -corner, rcond=None)[0] if size > 1 else np.zeros(0)
            if (shares >= -1e-12).all() and shares.sum() <= 1 + 1e-12:
                best = min(best, float(np.sum((corner + shares @ edges) ** 2)))
    return best


SAMPLES = {
    "gaussian": lambda rng, n: gaussian_rows(rng, n, 6),
    "lengths": lambda rng, n: gaussian_rows(rng, n, 6, 2.0),
    "conflicting": lambda rng, n: (rows := rng.standard_normal((n, 6))) - 1.2 * rows.mean(axis=0),
    "improvable": lambda rng, n: improvable_rows(rng, n, 6),
}


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_against_enumeration(n: int, kind: str) -> None:
    rng = generator(n)
    for _ in range(12):
        rows, bounds = SAMPLES[kind](rng, n), rng.uniform(0.0, 1.0, n)
        found = solvers.dual_cone(gram_of(rows), bounds)
        np.testing.assert_allclose(found.weights @ rows, cone_by_enumeration(rows, bounds), atol=1e-8)
        assert (found.weights >= bounds).all()
        assert found.value == pytest.approx(np.sum((found.weights @ rows) ** 2), abs=1e-10)
        shortest = solvers.min_norm(gram_of(rows))
        assert shortest.value == pytest.approx(shortest_by_enumeration(rows), abs=1e-10)
        assert shortest.value == pytest.approx(np.sum((shortest.weights @ rows) ** 2), abs=1e-10)
        assert shortest.weights.sum() == pytest.approx(1.0)
        assert (shortest.weights >= 0).all()


@pytest.mark.parametrize("n", [2, 5, 12, 20])
def test_against_nnls(n: int) -> None:
    rng = generator(100 + n)
    for _ in range(10):
        rows = gaussian_rows(rng, n, n, 1.0) - 0.3 * rng.standard_normal(n)
        gram, bounds = gram_of(rows), np.full(n, 1.0 / n)
        expected = cone_by_nnls(gram, bounds) @ rows
        np.testing.assert_allclose(solvers.dual_cone(gram, bounds).weights @ rows, expected, atol=1e-9)
        scale = np.diag(gram).mean()
        stacked = np.vstack([root_of(gram / scale), np.ones(n)])
        y, _ = nnls(stacked, np.eye(len(stacked))[-1])
        np.testing.assert_allclose(solvers.min_norm(gram).weights @ rows, y / y.sum() @ rows, atol=1e-9)


def test_lower_bounds_against_a_general_optimizer() -> None:
    rng = generator(5)
    for n in (2, 3, 5):
        rows, lower = rng.standard_normal((n, 4)), rng.uniform(0.0, 1.5 / n, n)
        lower *= min(1.0, 0.9 / lower.sum())
        gram = gram_of(rows)
        found = solvers.min_norm(gram, lower)
        best = minimize(
            lambda a, gram=gram: a @ gram @ a, lower + (1 - lower.sum()) / n, jac=lambda a, gram=gram: 2 * gram @ a,
            bounds=[(x, 1.0) for x in lower], constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            method="SLSQP", options={"ftol": 1e-15},
        )  # fmt: skip
        assert found.value == pytest.approx(best.fun, abs=1e-9)
        assert (found.weights >= lower - 1e-15).all()
        assert found.weights.sum() == pytest.approx(1.0)
    everything = np.array([0.25, 0.75])
    np.testing.assert_allclose(solvers.min_norm(np.eye(2), everything).weights, everything)


@pytest.mark.parametrize("seed", range(5))
def test_two_rows_in_closed_form(seed: int) -> None:
    rng = generator(seed)
    rows, w = gaussian_rows(rng, 2, 3, 1.0), rng.uniform(0.1, 2.0, 2)
    gram = gram_of(rows)
    expected, s = w.copy(), gram @ w
    if s.min() < 0:
        k = int(s.argmin())
        expected[k] -= s[k] / gram[k, k]
    found = solvers.dual_cone(gram, w)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    assert found.active.tolist() == (expected > w).tolist()
    share = np.clip((gram[1, 1] - gram[0, 1]) / (gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]), 0.0, 1.0)
    np.testing.assert_allclose(solvers.min_norm(gram).weights, [share, 1 - share], atol=1e-12)


@pytest.mark.parametrize("n", [2, 5, 20])
def test_residuals_on_bad_scales(n: int) -> None:
    """Norm ratios to a million at scales 1e-12 to 1e12; the residual is what an outside look finds."""
    rng = generator(n)
    for scale in SCALES:
        for rank in (1, max(1, n // 2), n):
            rows = low_rank_rows(rng, n, n + 2, rank) * np.logspace(-3, 3, n)[:, None] * scale
            gram, w = gram_of(rows), np.full(n, 1.0 / n)
            lengths = np.linalg.norm(rows, axis=1)
            cone, shortest = solvers.dual_cone(gram, w), solvers.min_norm(gram)
            assert max(cone.kkt_residual, shortest.kkt_residual) < 1e-12
            direction, size = cone.weights @ rows, cone.weights @ lengths
            margins = rows @ direction / lengths / size
            assert margins.min() > -1e-12
            assert np.abs(margins[cone.active]).max(initial=0.0) < 1e-12
            point, size = shortest.weights @ rows, shortest.weights @ lengths
            excess = (rows @ point - point @ point) / lengths / size
            assert excess.min() > -1e-12
            assert np.abs(excess[shortest.active]).max() < 1e-12


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_a_common_factor_changes_nothing(factor: float) -> None:
    rows, w = gaussian_rows(generator(3), 6, 6, 1.0), np.linspace(0.1, 1.0, 6)
    plain, scaled = gram_of(rows), gram_of(rows * factor)
    np.testing.assert_allclose(solvers.dual_cone(plain, w).weights, solvers.dual_cone(scaled, w).weights, rtol=1e-9)
    np.testing.assert_allclose(solvers.min_norm(plain).weights, solvers.min_norm(scaled).weights, atol=1e-12)


def test_degenerate_input_has_the_documented_answer() -> None:
    ones = np.ones(3)
    np.testing.assert_array_equal(solvers.dual_cone(np.zeros((3, 3)), ones).weights, ones)
    np.testing.assert_allclose(solvers.min_norm(np.zeros((3, 3))).weights, ones / 3)
    np.testing.assert_array_equal(solvers.dual_cone(np.array([[4.0]]), np.array([0.5])).weights, [0.5])
    np.testing.assert_array_equal(solvers.min_norm(np.array([[4.0]])).weights, [1.0])
    with_zero = gram_of(np.array([[0.0, 0.0], [1.0, 0.0], [-2.0, 1.0]]))
    np.testing.assert_allclose(solvers.dual_cone(with_zero, ones).weights[0], 1.0)
    np.testing.assert_allclose(solvers.min_norm(with_zero).weights, [1.0, 0.0, 0.0])
    np.testing.assert_array_equal(solvers.dual_cone(np.ones((3, 3)), ones).weights, ones)  # equal rows
    opposed = gram_of(np.array([[1.0, 0.0], [-3.0, 0.0]]))
    np.testing.assert_allclose(solvers.dual_cone(opposed, np.ones(2)).weights @ [1.0, -3.0], 0.0, atol=1e-14)
    np.testing.assert_allclose(solvers.min_norm(opposed).weights, [0.75, 0.25])
    np.testing.assert_array_equal(solvers.dual_cone(opposed, np.zeros(2)).weights, [0.0, 0.0])


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_total_on_degenerate_rows(n: int) -> None:
    for case, rows in degenerate_rows(n).items():
        for scale in (1e-12, 1.0, 1e12):
            gram = gram_of(rows * scale)
            for found in (solvers.dual_cone(gram, np.full(n, 1.0 / n)), solvers.min_norm(gram)):
                assert np.isfinite(found.weights).all(), case
                assert found.kkt_residual <= 1e-12, case
                assert found.value >= 0.0


def test_stationary_rows_have_direction_zero() -> None:
    rng = generator(9)
    for n in (2, 3, 8):
        rows = stationary_rows(rng, n, n + 1)
        for found in (solvers.dual_cone(gram_of(rows), np.ones(n)), solvers.min_norm(gram_of(rows))):
            assert np.linalg.norm(found.weights @ rows) <= 1e-7 * np.abs(found.weights).sum()


def test_several_bounds_are_solved_as_one_by_one() -> None:
    gram = gram_of(gaussian_rows(generator(4), 4, 4))
    together = solvers.dual_cones(gram, np.eye(4))
    for bound, found in zip(np.eye(4), together, strict=True):
        np.testing.assert_array_equal(found.weights, solvers.dual_cone(gram, bound).weights)


INDEFINITE = np.array([[1.0, -0.9, -0.9], [-0.9, 1.0, -0.9], [-0.9, -0.9, 1.0]])


@pytest.mark.parametrize("problem", ["dual cone", "min-norm"])
def test_failed_certificate_names_a_file_with_the_gram(
    problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Passes every check on pairs of rows, but no three rows have these inner products."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bounds = [np.ones(3)] if problem == "dual cone" else []
    solve = solvers.dual_cone if problem == "dual cone" else solvers.min_norm
    with pytest.raises(NumericError, match=rf"KKT residual of the {problem} problem.*-0\.8.*float64") as caught:
        solve(INDEFINITE, *bounds)
    named = re.search(r"`([^`]*\.npz)`", str(caught.value))
    assert named is not None
    with np.load(named[1]) as held:
        np.testing.assert_array_equal(held["gram"], INDEFINITE)


def test_a_gram_in_float32_is_answered_where_its_rows_are_independent() -> None:
    rows = gaussian_rows(generator(2), 4, 9)
    rounded = gram_of(rows).astype(np.float32).astype(np.float64)
    exact = solvers.dual_cone(gram_of(rows), np.ones(4)).weights
    np.testing.assert_allclose(solvers.dual_cone(rounded, np.ones(4)).weights, exact, rtol=1e-4)
