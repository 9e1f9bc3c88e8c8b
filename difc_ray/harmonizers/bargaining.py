"""Rules from fair division: Nash-MTL and FairGrad, by one damped Newton method.

Shape suffixes: N rows, A rows that are not zero rows.

Both look for ``α > 0`` with ``(Γα)_i = p_i α_i^{-q}``: the stationary point of the strictly convex
``½ αᵀΓα - Σ p_i ψ(α_i)`` with ``ψ' = α^{-q}``. Every margin of the direction is then positive. It exists unless the
rows are Pareto stationary (0 is in their convex hull); there the direction is zero.

Base weights are bargaining powers ``p_i = n w_i / Σw``, not a scaling of the rows (which Nash's solution would
cancel). The scale is such that n equal rows give back ``Σ w_i g_i``. A row with base weight 0 takes no part; a zero
row keeps its own.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float64

from difc_ray.errors import NumericError
from difc_ray.harmonizers import solvers
from difc_ray.harmonizers.active_set import TOLERANCE
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, State, check_number
from difc_ray.harmonizers.metrics import Array
from difc_ray.harmonizers.unit_rows import UnitRows, equilibrate

STATIONARY = 1e-10
"""Unit rows with a weighted mean of this squared length, or less, count as Pareto stationary."""

_STEPS = 200


class FairPoint(NamedTuple):
    """The solution of ``(Cβ)_i = p_i β_i^{-q}``."""

    beta_A: Array
    residual: float
    """Largest ``|(Cβ)_i - p_i β_i^{-q}|``, relative to ``Σβ``."""
    steps: int


def fair_point(
    cosines_AA: Float64[np.ndarray, "A A"], powers_A: Float64[np.ndarray, " A"], exponent: float
) -> FairPoint:
    """Newton's method on ``φ(β) = ½ βᵀCβ - Σ p_i ψ(β_i)``, ``ψ' = β^{-q}``, damped so that β > 0 and φ falls.

    Starts at the best multiple of ``β_i = p_i^{1/(1+q)}``, the solution for orthogonal rows. Stops where the gradient
    is rounding.

    Args:
        cosines_AA: Gram matrix of unit rows that are not Pareto stationary.
        powers_A: p > 0.
        exponent: q > 0.
    """
    q = exponent
    beta_A = powers_A ** (1.0 / (1.0 + q))
    square = float(beta_A @ cosines_AA @ beta_A)
    beta_A = beta_A * (float(powers_A @ beta_A ** (1.0 - q)) / max(square, 1e-300)) ** (1.0 / (1.0 + q))
    steps = 0
    while steps < _STEPS:
        margins_A, pull_A = cosines_AA @ beta_A, powers_A * beta_A**-q
        slope_A = margins_A - pull_A
        noise = 8.0 * np.finfo(np.float64).eps * (np.abs(cosines_AA) @ beta_A + pull_A)
        if (np.abs(slope_A) <= noise).all():
            break
        move_A = np.linalg.solve(cosines_AA + np.diag(q * pull_A / beta_A), -slope_A)
        falls = move_A < 0.0
        length = min(1.0, 0.99 * float((-beta_A[falls] / move_A[falls]).min(initial=np.inf)))
        descent, size = float(slope_A @ move_A), float(np.abs(slope_A).max())
        while (  # near the end the value no longer resolves the step, but the gradient does
            _rise(cosines_AA, powers_A, q, beta_A, length * move_A) > 1e-4 * length * descent
            and np.abs(_slope(cosines_AA, powers_A, q, beta_A + length * move_A)).max() > (1.0 - length / 2.0) * size
            and length > 1e-16
        ):
            length /= 2.0
        beta_A, steps = beta_A + length * move_A, steps + 1
    slope_A = _slope(cosines_AA, powers_A, q, beta_A)
    return FairPoint(beta_A, float(np.abs(slope_A).max()) / float(beta_A.sum()), steps)


def _slope(cosines_AA: Array, powers_A: Array, q: float, beta_A: Array) -> Array:
    """Gradient of φ."""
    return np.asarray(cosines_AA @ beta_A - powers_A * beta_A**-q)


def _rise(cosines_AA: Array, powers_A: Array, q: float, beta_A: Array, move_A: Array) -> float:
    """``φ(β + move) - φ(β)``, without the cancellation of taking the difference of the two."""
    quadratic = float(move_A @ cosines_AA @ (beta_A + 0.5 * move_A))
    logs_A = np.log1p(move_A / beta_A)
    gains_A = logs_A if q == 1.0 else beta_A ** (1.0 - q) * np.expm1((1.0 - q) * logs_A) / (1.0 - q)
    return quadratic - float(powers_A @ gains_A)


@dataclass(frozen=True, kw_only=True)
class FairHarmonizer(Harmonizer):
    """Base of the two rules: a subclass says what its exponent q is."""

    guarantee = "proven"
    cost = "n^3"
    claims = frozenset({"scale", "permutation"})

    @property
    @abstractmethod
    def exponent(self) -> float:
        """The exponent q > 0."""

    @final
    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """Weights at the fair point, zero where the rows are Pareto stationary.

        Diagnostics beyond the common ones: ``kkt_residual``; ``iterations``; ``stationary``, the squared length of the
        shortest weighted mean of the unit rows, in [0, 1].
        """
        stats = self.checked(stats)
        used_N = stats.weights_N > 0.0
        rows = equilibrate(np.where(used_N[:, None] & used_N, stats.gram_NN, 0.0))
        weights_N, alive_N = stats.weights_N.copy(), rows.alive_N
        diagnostics = {"kkt_residual": 0.0, "iterations": 0.0, "stationary": 1.0}
        if alive_N.any():
            diagnostics["stationary"] = solvers.min_norm(rows.cosines_AA).value
            if diagnostics["stationary"] <= STATIONARY:
                weights_N[alive_N] = 0.0
            else:
                weights_N[alive_N], point = self._weights(stats.weights_N[alive_N], rows)
                diagnostics |= {"kkt_residual": point.residual, "iterations": float(point.steps)}
        return self.answer(stats, weights_N, state, diagnostics)

    def _weights(self, base_A: Array, rows: UnitRows) -> tuple[Array, FairPoint]:
        """Weights of the rows that count; lengths in units of their root mean square.

        Raises:
            NumericError: Newton's method did not reach the tolerance of the solvers.
        """
        q, n, total = self.exponent, len(base_A), float(base_A.sum())
        lengths_A = rows.lengths_N[rows.alive_N]
        lengths_A = lengths_A / lengths_A.max()
        lengths_A = lengths_A / math.sqrt(float((lengths_A**2).mean()))
        point = fair_point(rows.cosines_AA, n * base_A / total * lengths_A ** (q - 1.0), q)
        if not point.residual <= TOLERANCE:
            raise NumericError(
                f"The residual of `{self.name}` must be at most {TOLERANCE:g}. Found {point.residual:.3g} "
                f"after {point.steps} steps, for cosines {rows.cosines_AA.tolist()}. Accumulate the inner products in "
                "float64."
            )
        return total / n * n ** (1.0 / (1.0 + q)) * point.beta_A / lengths_A, point


@HARMONIZERS.register("nash")
@dataclass(frozen=True, kw_only=True)
class NashBargaining(FairHarmonizer):
    """Nash-MTL: the direction with the largest product of margins, ``Π <g_i, d>^{p_i}``, of given length.

    ``α_i (Γα)_i = p_i``; weights ``α √n L Σw / n`` with L the root mean square length of the rows. The direction's
    *line* does not depend on the rows' lengths; its length is ``L Σw``, also close to a Pareto-stationary point,
    where it does not shrink by itself.

    Source:
        Navon et al. 2022, Multi-Task Learning as a Bargaining Game (arXiv 2202.01017), Claim 3.1.

    Differs from the source:
        1. Solved by Newton's method to rounding, not by a sequence of convex programs cut off after 20.
        2. No memory, and no clipping of the direction at length 1 (which shrinks large gradients and not small ones):
           the length follows the rows'.
        3. Base weights as bargaining powers; the source has equal ones.
    """

    name = "nash"
    summary = "the direction with the largest product of margins (Nash-MTL, Newton)"
    source = "Navon et al. 2022, Nash-MTL (arXiv 2202.01017), Claim 3.1"

    @property
    def exponent(self) -> float:
        """1."""
        return 1.0


@HARMONIZERS.register("fairgrad")
@dataclass(frozen=True, kw_only=True)
class FairGrad(FairHarmonizer):
    """FairGrad: margins of largest alpha-fair utility.

    ``Γα = p α^{-1/alpha}``. ``alpha = 1`` is ``nash``; small values come near the mean, large ones to MGDA's line.

    Source:
        Ban and Ji 2024, Fair Resource Allocation in Multi-Task Learning (arXiv 2402.15638), Eq. 4.

    Differs from the source:
        Solved by Newton's method on a convex function to rounding, not by nonlinear least squares from a uniform
        start; scaled so that equal rows give their weighted mean; base weights as powers p.
    """

    alpha: float = 2.0
    """Fairness, in [0.1, 20]."""

    name = "fairgrad"
    summary = "margins of largest alpha-fair utility (FairGrad, Newton)"
    source = "Ban and Ji 2024, FairGrad (arXiv 2402.15638), Eq. 4"

    def __post_init__(self) -> None:
        check_number(self.name, "alpha", self.alpha, 0.1, 20.0)

    @property
    def exponent(self) -> float:
        """``1 / alpha``."""
        return 1.0 / self.alpha
