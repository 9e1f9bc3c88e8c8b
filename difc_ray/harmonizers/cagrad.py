"""CAGrad: the best worst-case progress within a ball around the mean.

Shape suffixes: N rows, A rows that are not zero rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from difc_ray.errors import NumericError
from difc_ray.harmonizers import solvers
from difc_ray.harmonizers.active_set import TOLERANCE
from difc_ray.harmonizers.base import HARMONIZERS, Multipliers, ScaledHarmonizer, check_number
from difc_ray.harmonizers.metrics import Array
from difc_ray.harmonizers.unit_rows import equilibrate

_SMALLEST, _LARGEST = 1e-7, 1e7
"""Where the step s is looked for; beyond, the direction is the mean's or zero to 1e-7."""


@HARMONIZERS.register("cagrad")
@dataclass(frozen=True, kw_only=True)
class ConflictAverse(ScaledHarmonizer):
    """CAGrad: ``argmax_d min_i <g_i, d>`` over ``|d - ḡ| <= c |ḡ|``, ḡ the sum of the (scaled) rows.

    Dual: ``min_ω <g_ω, ḡ> + c|ḡ||g_ω|`` over the simplex, ``d = ḡ + (c|ḡ| / |g_ω|) g_ω``. Solved exactly: with
    ``s = |g_ω| / (c|ḡ|)``, ω is the shortest point of the hull of the shifted rows ``g_i + s ḡ`` and
    ``d = g_ω/s + ḡ``; s is the root of ``|g_ω(s)| = c|ḡ| s``, whose left side over s decreases.
    ``tau_i = 1 + ω_i / s``.

    ``c = 0`` is the mean. For ``c >= 1`` zero is in the ball, so (up to rounding) the direction opposes no row, and
    as c grows it turns into MGDA's; below 1 it may. Where ``ḡ = 0`` the ball is a point, and the base weights come
    back. A zero row has no say.

    Diagnostics: ``kkt_residual``, the duality gap relative to the longest row times the lengths that went into d;
    ``iterations``, min-norm problems solved.

    Source:
        Liu et al. 2021, Conflict-Averse Gradient Descent (arXiv 2110.14048), Algorithm 1.

    Differs from the source:
        The dual is solved by a root of exact min-norm points, not by a general optimiser; nothing is rescaled by
        ``1 + c²``, and no threshold on ``|g_ω|`` turns the direction to zero.
    """

    c: float = 0.5
    """Radius of the ball in units of ``|ḡ|``, in [0, 100]."""

    name = "cagrad"
    summary = "the best worst-case progress within a ball around the mean (CAGrad)"
    guarantee = "no"
    source = "Liu et al. 2021, CAGrad (arXiv 2110.14048), Algorithm 1"
    cost = "n^3"
    claims = frozenset({"scale", "permutation"})

    def __post_init__(self) -> None:
        check_number(self.name, "c", self.c, 0.0, 100.0)

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """The root in s, and from it tau; ones where the ball is a point."""
        alive_N = equilibrate(gram_NN).alive_N
        tau_N, solved, residual = np.ones(len(gram_NN)), 0, 0.0
        if alive_N.any() and self.c > 0.0:
            longest = math.sqrt(float(np.diagonal(gram_NN).max()))
            gram_AA = gram_NN[alive_N][:, alive_N] / longest / longest
            if gram_AA.sum() > 16.0 * len(gram_AA) * np.finfo(np.float64).eps * np.abs(gram_AA).sum():
                tau_N[alive_N], residual, solved = self._solve(gram_AA)
        return Multipliers(tau_N, {"kkt_residual": residual, "iterations": float(solved)})

    def _solve(self, gram_AA: Array) -> tuple[Array, float, int]:
        """Multipliers, duality gap and number of points, for rows of length up to 1 whose sum is not zero.

        Raises:
            NumericError: the gap is too large.
        """
        sums_A, square = gram_AA.sum(axis=1), float(gram_AA.sum())
        radius = self.c * math.sqrt(square)
        point, solved = _root(gram_AA, sums_A, square, radius)
        length = math.sqrt(point.square)
        stationary = point.ratio < -1e-6  # no root: the dual is least, 0, where g_ω = 0
        tau_A = 1.0 + point.omega_A * (1.0 / point.s if stationary else radius / length)
        dual = 0.0 if stationary else float(point.omega_A @ sums_A) + radius * length
        size = float(np.abs(tau_A) @ np.sqrt(np.diagonal(gram_AA)))
        residual = max(0.0, dual - float((gram_AA @ tau_A).min())) / size
        if not residual <= TOLERANCE:
            raise NumericError(
                f"The duality gap of `cagrad` must be at most {TOLERANCE:g}. Found {residual:.3g} for the Gram "
                f"matrix {gram_AA.tolist()} (divided by its largest entry). Accumulate the inner products in float64."
            )
        return tau_A, residual, solved


class _Point(NamedTuple):
    """The shortest point of the shifted rows at one s."""

    s: float
    omega_A: Array
    square: float
    """``|g_ω|²``."""
    ratio: float
    """``log(|g_ω| / (radius · s))``: 0 at the root, and falling in s."""
    ends: bool
    """Whether ``g_ω = -s ḡ``: then so it is for every smaller s, and the direction is zero."""


def _point(gram_AA: Array, sums_A: Array, square: float, radius: float, s: float) -> _Point:
    """The point at s."""
    shifted_AA = gram_AA + s * (sums_A[:, None] + sums_A[None, :]) + s * s * square
    solution = solvers.min_norm(shifted_AA)
    length = max(0.0, float(solution.weights @ gram_AA @ solution.weights))
    ratio = 0.5 * math.log(max(length, 1e-300)) - math.log(radius * s)
    return _Point(s, solution.weights, length, ratio, solution.value <= 1e-18 * s * s * square)


def _root(gram_AA: Array, sums_A: Array, square: float, radius: float) -> tuple[_Point, int]:
    """The point at the root in s, and how many points it took: a bracket, then regula falsi (Illinois) in log s."""
    low = high = _point(gram_AA, sums_A, square, radius, 1.0)
    solved = 1
    while low.ratio < 0.0 and not low.ends and low.s > _SMALLEST:
        high, low = low, _point(gram_AA, sums_A, square, radius, low.s / 10.0)
        solved += 1
    while high.ratio > 0.0 and high.s < _LARGEST:
        low, high = high, _point(gram_AA, sums_A, square, radius, high.s * 10.0)
        solved += 1
    if low.ratio <= 0.0 or high.ratio >= 0.0:
        return (low if low.ratio <= 0.0 else high), solved
    at_low, at_high, middle = low.ratio, high.ratio, low
    while high.s > low.s * (1.0 + 1e-14) and solved < 200:
        s = low.s * (high.s / low.s) ** (at_low / (at_low - at_high))
        last, middle = middle, _point(gram_AA, sums_A, square, radius, min(max(s, low.s), high.s))
        solved += 1
        if abs(middle.ratio) <= 1e-12:
            break
        same_side = (middle.ratio > 0.0) == (last.ratio > 0.0)
        if middle.ratio > 0.0:
            low, at_low, at_high = middle, middle.ratio, at_high / 2.0 if same_side else at_high
        else:
            high, at_high, at_low = middle, middle.ratio, at_low / 2.0 if same_side else at_low
    return middle, solved
