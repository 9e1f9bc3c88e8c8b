"""Small exact quadratic programs on a Gram matrix, each answered with its certificate.

Shape suffixes: N rows, A rows that are not zero rows.

Two problems, both over the weights of the rows g_1 … g_N with Gram matrix ``Γ``:

* :func:`dual_cone`: ``argmin_{c >= u} cᵀΓc``, the projection of ``Σ u_i g_i`` onto the cone of directions that oppose
  no row;
* :func:`min_norm`: ``argmin ‖Σ α_i g_i‖`` over the simplex, or over ``{α >= a, Σα = 1}``.

Method: active set (Lawson and Hanson, :mod:`difc_ray.harmonizers.active_set`) in float64 on the *equilibrated* Gram,
the Gram of the unit rows, so that rows of any lengths are treated alike.

Certificate: the answer comes with its KKT residual, measured on the Gram that was given, relative to the lengths
that went into the direction. Above 1e-8 it is not an answer: the Gram is written to a file and
:class:`~difc_ray.errors.NumericError` names it. Nothing falls back to the mean.

Degenerate input: a *zero row* has no say in :func:`dual_cone`, and its weight stays at the bound; it is one that is
shorter than 1e-150, or than 1e-12 of the longest. In :func:`min_norm` a row shorter than 1e-150 *is* the shortest
point, so all weight goes to such rows in equal parts. Equal, opposed and dependent rows have a unique direction but
not unique weights; among these, the ones nearest to the bound (in units of length) are taken, up to rounding. One
row: its bound, or 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from difc_ray.harmonizers.active_set import certified_minimiser
from difc_ray.harmonizers.metrics import Array
from difc_ray.harmonizers.unit_rows import UnitRows, equilibrate


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The minimiser of a quadratic program, with its certificate."""

    weights: np.ndarray
    """(N,) float64 minimiser."""
    value: float
    """Squared length of the direction that the weights make, >= 0."""
    kkt_residual: float
    """Largest violation of the optimality conditions, relative to the lengths that went into the direction."""
    iterations: int
    """Linear systems solved."""
    active: np.ndarray
    """(N,) bool. Dual cone: rows whose constraint is tight (weight above its bound). Min-norm: rows with weight above
    their bound, the support."""


def certificate(solutions: Sequence[Solution]) -> dict[str, float]:
    """Diagnostics of one or more solves: the worst residual, systems solved, and how many constraints are tight."""
    return {
        "kkt_residual": max(solution.kkt_residual for solution in solutions),
        "iterations": float(sum(solution.iterations for solution in solutions)),
        "active": float(np.logical_or.reduce([solution.active for solution in solutions]).sum()),
    }


def dual_cone(gram_NN: Float64[np.ndarray, "N N"], bounds_N: Float64[np.ndarray, " N"]) -> Solution:
    """``argmin_{c >= u} cᵀΓc``: the nearest direction to ``Σ u_i g_i`` that opposes no row.

    Optimality: ``c >= u``, ``Γc >= 0``, and ``(Γc)_k = 0`` wherever ``c_k > u_k``.

    Args:
        gram_NN: (N, N) symmetric, positive semidefinite.
        bounds_N: (N,) lower bounds u of the weights.

    Returns:
        The weights c, never below the bounds; ``value`` is ``cᵀΓc``.

    Raises:
        NumericError: the certificate fails; the message names a file with the Gram.

    Source:
        Lopez-Paz and Ranzato 2017, Gradient Episodic Memory (arXiv 1706.08840), Eq. 11; Lawson and Hanson 1974, ch. 23.

    >>> dual_cone(np.array([[1.0, -1.0], [-1.0, 4.0]]), np.array([1.0, 0.5])).weights.tolist()
    [1.0, 0.5]
    """
    return dual_cones(gram_NN, bounds_N[None, :])[0]


def dual_cones(gram_NN: Float64[np.ndarray, "N N"], bounds_MN: Float64[np.ndarray, "M N"]) -> list[Solution]:
    """:func:`dual_cone` for several bounds on one Gram matrix.

    Raises:
        NumericError: the certificate of any of them fails.
    """
    rows = equilibrate(gram_NN)
    return [_dual_cone(gram_NN, rows, bounds_N) for bounds_N in bounds_MN]


def _dual_cone(gram_NN: Array, rows: UnitRows, bounds_N: Array) -> Solution:
    """:func:`dual_cone` with the unit rows known: there ``ĉ = length · c``, and ``ĉ = û + b`` with ``b >= 0``."""
    every = bool(rows.alive_N.all())
    lengths_A = rows.lengths_N if every else rows.lengths_N[rows.alive_N]
    scaled_A = lengths_A * (bounds_N if every else bounds_N[rows.alive_N])
    largest = float(np.abs(scaled_A).max(initial=0.0))
    active_N = np.zeros(len(bounds_N), dtype=bool)
    if largest == 0.0:
        return Solution(weights=bounds_N.copy(), value=0.0, kkt_residual=0.0, iterations=0, active=active_N)
    bounds_A = scaled_A / largest
    linear_A = rows.cosines_AA @ bounds_A

    def residual(raise_A: Array) -> float:
        margins_A = linear_A + rows.cosines_AA @ raise_A
        worst = max(-float(margins_A.min()), float(np.abs(margins_A[raise_A > 0.0]).max(initial=0.0)))
        return worst / float((np.abs(bounds_A) + raise_A).sum())

    minimiser = certified_minimiser(rows.cosines_AA, linear_A, residual, gram_NN, "dual cone")
    weights_N = bounds_N.copy()
    weights_N[rows.alive_N] += minimiser.z * (largest / lengths_A)
    active_N[rows.alive_N] = minimiser.z > 0.0
    total_A = bounds_A + minimiser.z
    value = max(0.0, float(total_A @ (linear_A + rows.cosines_AA @ minimiser.z))) * largest * largest
    return Solution(
        weights=weights_N, value=value, kkt_residual=minimiser.residual,
        iterations=minimiser.iterations, active=active_N,
    )  # fmt: skip


def min_norm(gram_NN: Float64[np.ndarray, "N N"], lower_bounds_N: Float64[np.ndarray, " N"] | None = None) -> Solution:
    """``argmin αᵀΓα`` over ``{α >= a, Σα = 1}``: the shortest weighted mean of the rows.

    Without bounds, by ``y = argmin_{y >= 0} ‖Σ y_i g_i‖² + (1ᵀy - 1)²`` and ``α = y / 1ᵀy``: along ``y = tα`` the
    minimum over t is ``v / (1 + v)`` with ``v = αᵀΓα``, increasing in v. With bounds, ``α = a + r s`` where
    ``r = 1 - Σa`` and s is in the simplex: the same problem for the rows ``r g_i + Σ_j a_j g_j``.

    Optimality: ``(Γα)_k >= αᵀΓα``, with equality on the support (without bounds).

    Args:
        gram_NN: (N, N) symmetric, positive semidefinite.
        lower_bounds_N: (N,) ``a >= 0`` with ``Σa <= 1``, or None for zeros.

    Returns:
        The weights α; ``value`` is ``αᵀΓα``.

    Raises:
        NumericError: the certificate fails; the message names a file with the Gram.

    Source:
        Désidéri 2012, Multiple-gradient descent algorithm (MGDA).

    >>> min_norm(np.diag([1.0, 4.0])).weights.round(12).tolist()
    [0.8, 0.2]
    """
    if lower_bounds_N is None or not lower_bounds_N.any():
        return _min_norm(gram_NN)
    shifted_NN, rest = bounded_simplex(gram_NN, lower_bounds_N)
    inner = _min_norm(shifted_NN)
    weights_N = lower_bounds_N + rest * inner.weights
    return Solution(
        weights=weights_N, value=inner.value, kkt_residual=inner.kkt_residual,
        iterations=inner.iterations, active=inner.active & (rest > 0.0),
    )  # fmt: skip


def bounded_simplex(gram_NN: Array, lower_bounds_N: Array) -> tuple[Array, float]:
    """Gram of the rows ``r g_i + Σ_j a_j g_j``, and ``r = 1 - Σa``: the bounded simplex as a whole one."""
    rest = max(0.0, 1.0 - float(lower_bounds_N.sum()))
    transform_NN = rest * np.eye(len(gram_NN)) + lower_bounds_N[None, :]
    shifted_NN = transform_NN @ gram_NN @ transform_NN.T
    return (shifted_NN + shifted_NN.T) / 2.0, rest


def _min_norm(gram_NN: Array) -> Solution:
    """:func:`min_norm` on the whole simplex. Lengths are in units of the shortest row: then ``v <= 1``."""
    rows = equilibrate(gram_NN, negligible=0.0)
    if not rows.alive_N.all():
        zero_N = ~rows.alive_N
        weights_N = zero_N / zero_N.sum()
        value = max(0.0, float(weights_N @ gram_NN @ weights_N))
        return Solution(weights=weights_N, value=value, kkt_residual=0.0, iterations=0, active=zero_N)
    shortest = float(rows.lengths_N.min())
    ratios_N = shortest / rows.lengths_N

    def residual(z_N: Array) -> float:
        """How far a point is from satisfying the conditions of the optimum."""
        total = float(ratios_N @ z_N)
        if total <= 0.0:
            return 1.0
        z_N = z_N / total
        margins_N = rows.cosines_AA @ z_N
        square, size = float(z_N @ margins_N), float(z_N.sum())
        excess_N = margins_N - square * ratios_N
        worst = max(-float(excess_N.min()), float(np.abs(excess_N[z_N > 0.0]).max(initial=0.0)))
        return max(worst / size, -square / size / size)  # a squared length below zero is no Gram's

    hessian_NN = rows.cosines_AA + ratios_N[:, None] * ratios_N
    minimiser = certified_minimiser(hessian_NN, -ratios_N, residual, gram_NN, "min-norm")
    weights_N = ratios_N * minimiser.z
    weights_N /= weights_N.sum()
    unit_N = weights_N / ratios_N
    value = max(0.0, float(unit_N @ rows.cosines_AA @ unit_N)) * shortest * shortest
    return Solution(
        weights=weights_N, value=value, kkt_residual=minimiser.residual,
        iterations=minimiser.iterations, active=minimiser.z > 0.0,
    )  # fmt: skip
