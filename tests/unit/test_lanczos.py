"""Lanczos, density and trace against matrices whose eigenvalues are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from difc_ray.objectives.curvature import Density, lanczos, rademacher, trace


def symmetric(eigenvalues: list[float], seed: int = 0) -> Tensor:
    """A dense matrix with these eigenvalues."""
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    drawn = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, _ = torch.linalg.qr(drawn)
    return q @ torch.diag(values) @ q.T


def start(size: int, number: int = 0) -> Tensor:
    return rademacher(1, size, 100 + number, torch.float64)[0]


def moment(density: Density, degree: int) -> float:
    """``∫ x^degree``."""
    return float(density.weights_Q @ density.nodes_Q**degree)


SPREAD = [-3.0, -0.5, *np.linspace(-0.1, 0.1, 50).tolist(), 1.0, 4.0, 9.0, 20.0]
"""A bulk at zero with a few eigenvalues outside, as networks have."""


def test_all_steps_give_all_eigenvalues_and_vectors() -> None:
    matrix = symmetric(SPREAD)
    krylov = lanczos(lambda v: matrix @ v, start(len(SPREAD)), 1000)
    ritz = krylov.ritz()
    assert len(ritz.values_K) == len(SPREAD)
    np.testing.assert_allclose(ritz.values_K, sorted(SPREAD), atol=1e-10)
    assert ritz.residuals_K.max() == 0
    gram = krylov.basis_KP @ krylov.basis_KP.T
    torch.testing.assert_close(gram, torch.eye(len(SPREAD), dtype=torch.float64), atol=1e-12, rtol=0)
    for index in (0, len(SPREAD) - 1):
        vector = krylov.vector(index)
        torch.testing.assert_close(matrix @ vector, float(ritz.values_K[index]) * vector, atol=1e-9, rtol=0)


def test_each_ritz_value_has_an_eigenvalue_within_its_residual_and_the_extremes_converge() -> None:
    matrix = symmetric(SPREAD)
    ritz = lanczos(lambda v: matrix @ v, start(len(SPREAD)), 12).ritz()
    exact = torch.linalg.eigvalsh(matrix).numpy()
    for value, residual in zip(ritz.values_K, ritz.residuals_K, strict=True):
        assert np.abs(exact - value).min() <= residual + 1e-12
    assert ritz.residuals_K[-1] < 1e-6
    assert ritz.residuals_K.max() > 1e-3  # the bulk is not resolved yet: the bound says something
    np.testing.assert_allclose(ritz.values_K[-2:], [9.0, 20.0], atol=1e-7)
    assert exact[0] - 1e-12 <= ritz.values_K[0] <= ritz.values_K[-1] <= exact[-1] + 1e-12


@pytest.mark.parametrize("largest", [50.0, -50.0])
def test_the_tolerance_stops_early_at_the_value_of_largest_magnitude(largest: float) -> None:
    matrix, made = symmetric([*SPREAD, largest]), []

    def product(vector: Tensor) -> Tensor:
        made.append(1)
        return matrix @ vector

    ritz = lanczos(product, start(len(SPREAD) + 1), 40, tolerance=1e-3).ritz()
    assert len(made) < 15
    assert ritz.values_K[ritz.extreme] == pytest.approx(largest, rel=1e-5)
    assert ritz.residuals_K[ritz.extreme] <= 1e-3 * 50


def test_an_invariant_space_ends_the_iteration_and_its_values_are_exact() -> None:
    matrix = symmetric([2.0] * 20 + [5.0] * 3)
    krylov = lanczos(lambda v: matrix @ v, start(23), 10)
    assert len(krylov.alphas_K) == 2
    np.testing.assert_allclose(krylov.ritz().values_K, [2.0, 5.0], atol=1e-12)
    assert krylov.betas_K[-1] == 0
    nothing = lanczos(torch.zeros_like, start(5), 3)
    assert nothing.ritz().values_K.tolist() == [0.0]


def test_a_product_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(FloatingPointError):
        lanczos(lambda v: v * float("nan"), start(4), 3)


def test_orthogonality_lasts_in_float32_where_plain_lanczos_finds_the_largest_twice() -> None:
    matrix = symmetric([100.0, *np.linspace(0, 1, 79).tolist()]).float()
    krylov = lanczos(lambda v: matrix @ v, start(80).float(), 60)
    assert (krylov.basis_KP @ krylov.basis_KP.T - torch.eye(60)).abs().max() < 1e-5
    assert (krylov.ritz().values_K > 50).sum() == 1


def test_moments_of_the_density_are_exact_traces_over_all_unit_starts() -> None:
    matrix, size, steps = symmetric(SPREAD), len(SPREAD), 4
    eye = torch.eye(size, dtype=torch.float64)
    density = Density.of([lanczos(lambda v: matrix @ v, eye[i], steps).ritz() for i in range(size)])
    assert density.weights_Q.sum() == pytest.approx(1)
    for degree in range(2 * steps):  # Gauss: exact up to 2K - 1
        exact = float(torch.trace(torch.matrix_power(matrix, degree))) / size
        assert moment(density, degree) == pytest.approx(exact, rel=1e-9, abs=1e-10)
    beyond = float(torch.trace(torch.matrix_power(matrix, 2 * steps))) / size
    assert moment(density, 2 * steps) != pytest.approx(beyond, rel=1e-9)


def test_the_distribution_is_that_of_the_eigenvalues() -> None:
    matrix = symmetric([*np.linspace(-1, 1, 150).tolist(), *np.linspace(4, 5, 50).tolist()])
    density = Density.of([lanczos(lambda v: matrix @ v, start(200, n), 40).ritz() for n in range(20)])
    exact = torch.linalg.eigvalsh(matrix).numpy()
    for value in (-0.6, -0.1, 0.4, 2.0, 3.9, 4.6):
        tolerance = 0.02 if value == 2.0 else 0.06  # in the gap nothing is smeared
        below = float(density.weights_Q[density.nodes_Q <= value].sum())
        assert below == pytest.approx(float((exact <= value).mean()), abs=tolerance)
    grid = np.linspace(-3, 7, 4001)
    curve = density.smooth(grid, 0.05)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-6)
    assert curve[(grid > 2) & (grid < 3)].max() < 1e-6


def test_the_trace_is_exact_for_unit_vectors_and_where_the_space_is_whole() -> None:
    matrix, size = symmetric(SPREAD), len(SPREAD)
    units = torch.eye(size, dtype=torch.float64) * size**0.5
    plain = trace(lambda v: matrix @ v, units)
    assert plain.value == pytest.approx(sum(SPREAD), rel=1e-12)
    known = lanczos(lambda v: matrix @ v, start(size), 8)
    assert trace(lambda v: matrix @ v, units, known).value == pytest.approx(sum(SPREAD), rel=1e-10)
    whole = trace(lambda v: matrix @ v, [start(size, 1)], lanczos(lambda v: matrix @ v, start(size), size))
    assert (whole.value, whole.error) == (pytest.approx(sum(SPREAD), rel=1e-10), None)


def test_the_trace_is_within_its_standard_error_and_deflation_makes_that_smaller() -> None:
    matrix, size = symmetric(SPREAD), len(SPREAD)
    probes = rademacher(400, size, 7, torch.float64)
    known = lanczos(lambda v: matrix @ v, start(size), 8)
    plain, deflated = (trace(lambda v: matrix @ v, probes, each) for each in (None, known))
    for found in (plain, deflated):
        assert found.error is not None
        assert abs(found.value - sum(SPREAD)) < 4 * found.error
    off = matrix - torch.diag(matrix.diag())
    assert plain.error == pytest.approx(float((2 * off.square().sum() / 400).sqrt()), rel=0.15)  # the formula
    assert deflated.error is not None
    assert plain.error is not None
    assert deflated.error < 0.1 * plain.error
