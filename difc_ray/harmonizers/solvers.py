"""Small exact quadratic programs on a Gram matrix, each answered with its certificate.

Shape suffixes: N rows, A rows that are not zero rows.

Two problems, both over the weights of the rows g_1 … g_N with Gram matrix ``Γ``:

* :func:`dual_cone`: ``argmin_{c >= u} cᵀΓc``, the projection of ``Σ u_i g_i`` onto the cone of directions that oppose
  no row;
* :func:`min_norm`: ``argmin ‖Σ α_i g_i‖`` over the simplex, or over ``{α >= a, Σα = 1}``.

Method: active set (Lawson and Hanson) in float64 on the *equilibrated* Gram, the Gram of the unit rows, so that
rows of any lengths are treated alike. Its diagonal is raised by :data:`SHIFTS`, first by a few units of rounding:
that makes every subproblem definite, and changes the answer by no more than rounding does; one step of iterative
refinement takes it back out where the rows are independent.

Certificate: the answer comes with its KKT residual, measured on the Gram that was given, relative to the lengths
that went into the direction. Above :data:`TOLERANCE` it is not an answer: the Gram is written to a file and
:class:`NumericError` names it. Nothing falls back to the mean.

Degenerate input: a *zero row* has no say in :func:`dual_cone`, and its weight stays at the bound; it is one that is
shorter than 1e-150, or than 1e-12 of the longest. In :func:`min_norm` a row shorter than 1e-150 *is* the shortest
point, so all weight goes to such rows in equal parts. Equal, opposed and dependent rows have a unique direction but
not unique weights; among these, the ones nearest to the bound (in units of length) are taken, up to rounding. One
row: its bound, or 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64

from difc_ray.errors import NumericError

Array = npt.NDArray[np.float64]

ZERO_LENGTH = 1e-150
"""A row shorter than this is a zero row: its squared length leaves the range of float64."""

NEGLIGIBLE_RATIO = 1e-12
"""A row shorter than this part of the longest is treated as a zero row."""

TOLERANCE = 1e-8
"""Largest KKT residual of an answer."""

SHIFTS = (4.0, 1e3, 1e5, 1e7)
"""Added to the unit diagonal, in units of ``N · 2.2e-16``; a larger one is tried only if the certificate asks."""

_EPS = float(np.finfo(np.float64).eps)
_GOOD = 1e-13
"""A residual below this ends the search for a better one."""


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


class UnitRows(NamedTuple):
    """A Gram matrix without the lengths of its rows, and without its zero rows."""

    cosines_AA: Float64[np.ndarray, "A A"]
    """Inner products of the unit rows; unit diagonal, entries in [-1, 1]."""
    lengths_N: Float64[np.ndarray, " N"]
    """Length of every row, 0 for a zero row."""
    alive_N: Bool[np.ndarray, " N"]
    """Which rows are not zero rows."""


def equilibrate(gram_NN: Float64[np.ndarray, "N N"], negligible: float = NEGLIGIBLE_RATIO) -> UnitRows:
    """The Gram matrix of the unit rows.

    Args:
        gram_NN: (N, N) symmetric, positive semidefinite.
        negligible: a row shorter than this part of the longest is a zero row.

    >>> equilibrate(np.array([[4.0, -1.0], [-1.0, 1.0]])).cosines_AA.tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    lengths_N = np.sqrt(np.maximum(np.diagonal(gram_NN), 0.0))
    alive_N = lengths_N > max(ZERO_LENGTH, negligible * float(lengths_N.max(initial=0.0)))
    if alive_N.all():
        cosines_AA = gram_NN / lengths_N[:, None] / lengths_N
    else:
        lengths_N = np.where(alive_N, lengths_N, 0.0)
        lengths_A = lengths_N[alive_N]
        cosines_AA = gram_NN[alive_N][:, alive_N] / lengths_A[:, None] / lengths_A
    np.minimum(cosines_AA, 1.0, out=cosines_AA)
    np.maximum(cosines_AA, -1.0, out=cosines_AA)
    np.fill_diagonal(cosines_AA, 1.0)
    return UnitRows(cosines_AA, lengths_N, alive_N)


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

    found = _certified(rows.cosines_AA, linear_A, residual, gram_NN, "dual cone")
    weights_N = bounds_N.copy()
    weights_N[rows.alive_N] += found.z * (largest / lengths_A)
    active_N[rows.alive_N] = found.z > 0.0
    total_A = bounds_A + found.z
    value = max(0.0, float(total_A @ (linear_A + rows.cosines_AA @ found.z))) * largest * largest
    return Solution(
        weights=weights_N, value=value, kkt_residual=found.residual, iterations=found.iterations, active=active_N
    )


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
    found = _certified(hessian_NN, -ratios_N, residual, gram_NN, "min-norm")
    weights_N = ratios_N * found.z
    weights_N /= weights_N.sum()
    unit_N = weights_N / ratios_N
    value = max(0.0, float(unit_N @ rows.cosines_AA @ unit_N)) * shortest * shortest
    return Solution(
        weights=weights_N, value=value, kkt_residual=found.residual,
        iterations=found.iterations, active=found.z > 0.0,
    )  # fmt: skip


class _Found(NamedTuple):
    """A minimiser over ``z >= 0``, its residual, and how many systems it took."""

    z: Array
    residual: float
    iterations: int


def _certified(
    hessian_NN: Array, linear_N: Array, residual: Callable[[Array], float], gram_NN: Array, problem: str
) -> _Found:
    """``argmin_{z >= 0} ½ zᵀHz + qᵀz``, with the smallest diagonal shift whose certificate holds."""
    n = len(linear_N)
    best = _Found(np.zeros(n), residual(np.zeros(n)), 0)
    if best.residual <= _EPS:
        return best
    iterations = 0
    for shift in SHIFTS:
        shifted_NN = hessian_NN + (shift * n * _EPS) * np.eye(n)
        try:
            z_N, solved = _active_set(shifted_NN, linear_N)
        except np.linalg.LinAlgError:
            continue
        iterations += solved
        for candidate_N in (z_N, _refined(hessian_NN, shifted_NN, linear_N, z_N)):
            worst = residual(candidate_N)
            if worst < best.residual:
                best = _Found(candidate_N, worst, iterations)
            if best.residual <= 8.0 * _EPS:
                return best
        if best.residual <= max(_GOOD, shift * n * _EPS):
            return best
    if not best.residual <= TOLERANCE:
        raise _failed(gram_NN, problem, best.residual)
    return best


def _active_set(hessian_NN: Array, linear_N: Array) -> tuple[Array, int]:
    """Lawson and Hanson's method for ``argmin_{z >= 0} ½ zᵀHz + qᵀz``, H definite; z and the number of systems solved.

    All rows with a negative slope at 0 are let in at once at the start; then one enters at a time. Every accepted z is
    the minimiser over its own support and lower than the one before, so the method ends. A row that is thrown out by
    rounding as soon as it is let in is barred until another one has changed z.
    """
    n = len(linear_N)
    z_N, free_N, barred_N = np.zeros(n), linear_N < 0.0, np.zeros(n, dtype=bool)
    solved, entering = 0, -1
    for _ in range(3 * n + 10):
        z_N, steps = _walk(hessian_NN, linear_N, z_N, free_N)
        solved += steps
        if entering >= 0:
            barred_N[:] = False if free_N[entering] else barred_N
            barred_N[entering] = not free_N[entering]
        slope_N = hessian_NN @ z_N + linear_N
        slope_N[free_N | barred_N] = np.inf
        entering = int(slope_N.argmin())
        if not slope_N[entering] < -4.0 * _EPS * (float(z_N.sum()) + float(np.abs(linear_N).max())):
            break
        free_N[entering] = True
    return z_N, solved


def _walk(hessian_NN: Array, linear_N: Array, z_N: Array, free_N: npt.NDArray[np.bool_]) -> tuple[Array, int]:
    """From ``z >= 0`` towards the minimiser over the free rows, freezing (in place) those that would turn negative."""
    solved = 0
    while True:
        index = np.flatnonzero(free_N)
        reached_N = np.zeros_like(z_N)
        if index.size == 0:
            return reached_N, solved
        target = np.linalg.solve(hessian_NN[index[:, None], index], -linear_N[index])
        solved += 1
        if target.min() > 0.0:
            reached_N[index] = target
            return reached_N, solved
        current = z_N[index]
        blocking = target <= 0.0
        fall = current - target
        share = np.full(index.size, np.inf)
        share[blocking] = np.divide(current, fall, out=np.zeros_like(fall), where=fall > 0.0)[blocking]
        step = share.min()
        leaving = share <= step
        reached_N[index] = np.where(leaving, 0.0, current - step * fall)
        z_N = reached_N
        free_N[index[leaving]] = False


def _refined(hessian_NN: Array, shifted_NN: Array, linear_N: Array, z_N: Array) -> Array:
    """One step of iterative refinement on the support, which takes the diagonal shift back out."""
    index = np.flatnonzero(z_N > 0.0)
    if index.size == 0:
        return z_N
    error = -linear_N[index] - hessian_NN[index[:, None], index] @ z_N[index]
    better = z_N[index] + np.linalg.solve(shifted_NN[index[:, None], index], error)
    if not (better > 0.0).all():
        return z_N
    refined_N = np.zeros_like(z_N)
    refined_N[index] = better
    return refined_N


def _failed(gram_NN: Array, problem: str, residual: float) -> NumericError:
    """The error of a certificate that does not hold; writes the Gram to a file of the temporary folder."""
    with tempfile.NamedTemporaryFile(prefix="difc-ray-gram-", suffix=".npz", delete=False) as file:
        np.savez(file, gram=gram_NN)
    smallest, *_, largest = np.linalg.eigvalsh(gram_NN) if len(gram_NN) > 1 else (gram_NN[0, 0], gram_NN[0, 0])
    return NumericError(
        f"The KKT residual of the {problem} problem must be at most {TOLERANCE:g}. Found {residual:.3g}, for a Gram "
        f"matrix with eigenvalues from {smallest:.3g} to {largest:.3g}, written to `{file.name}`. A Gram matrix has "
        "none below zero: accumulate the inner products in float64."
    )
