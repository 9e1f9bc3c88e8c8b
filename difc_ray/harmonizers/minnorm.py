"""MGDA: the shortest weighted mean of the rows, exactly or by the published iterations.

Shape suffixes: N rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from difc_ray.errors import ConfigError
from difc_ray.harmonizers import simplex, solvers
from difc_ray.harmonizers.base import (
    HARMONIZERS,
    GramStatistics,
    Harmonization,
    Harmonizer,
    Multipliers,
    ScaledHarmonizer,
    State,
    check_number,
)

_SOURCE = "Désidéri 2012; Sener and Koltun 2018 (arXiv 1810.04650)"


@HARMONIZERS.register("mgda")
@dataclass(frozen=True, kw_only=True)
class MinNorm(ScaledHarmonizer):
    """MGDA: the shortest point u* of the convex hull of the (scaled) rows.

    ``α = argmin αᵀΓα`` over the simplex, ``tau = n α`` (so that n equal rows give their mean back). With the exact
    solver ``<g_k, u*> >= ‖u*‖²`` for every row, with equality on the support; u* is zero iff the point is Pareto
    stationary. A zero row is such a case: all weight goes to it, and the direction is zero. Rows with base weight 0
    take no part.

    Options: at most one of ``lower_bounds`` and ``entropy``; the entropy needs ``solver="exact"``. Bounds, entropy
    and the iterative solvers give up the guarantee.

    Diagnostics: ``gap``, the Frank-Wolfe gap ``αᵀΓα - min_i (Γα)_i`` divided by the mean squared length (0 at the
    optimum; with lower bounds, of the equivalent problem; with entropy, of the problem without it); ``iterations``;
    ``kkt_residual`` with the exact solver.

    Source:
        Désidéri 2012, Multiple-gradient descent algorithm; Sener and Koltun 2018 (arXiv 1810.04650); for the
        iterations, the entropy and the bounds, Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 26, 44-55
        and 82-90.

    Differs from the source:
        1. Solved exactly. Ten Frank-Wolfe steps, which the text calls enough, leave a conflicting direction in 14 %
           (five rows) to 44 % (twenty) of Gaussian draws in as many dimensions as rows.
        2. The entropy enters as ``-τH`` (convex); printed with ``+τH``, it drives the weights into a corner.
        3. The stopping rule is the gap relative to ``αᵀΓα``, not the change of the objective; no absolute ε anywhere.
        4. Lemma 3.1 of the text reads ``min_i <g_i, u*> = ‖u*‖²`` (not half of it), and Eq. 26 converges to u* at
           ``‖u_k - u*‖² <= R²/k``, not to a solution of Eq. 25.
        5. Lower bounds need ``Σa <= 1``; they can bring conflicts back.
    """

    solver: Literal["exact", "frank_wolfe", "simplified_fw", "softmax"] = "exact"
    """Exact (active set), or an iteration: Frank-Wolfe with line search, with step 1/(k+1), or gradient descent on
    ``α = softmax(β)``."""
    lower_bounds: float | tuple[float, ...] = 0.0
    """Smallest α of every row, >= 0, sum at most 1: one number for all, or one per row (of positive base weight)."""
    entropy: float = 0.0
    """τ >= 0 of the term ``-τ H(α)``, in units of the mean squared length: 0 = none, large = the plain mean."""
    steps: int = 1000
    """Most steps of an iterative solver, >= 1."""
    tolerance: float = 1e-6
    """Frank-Wolfe stops where the gap is this part of ``αᵀΓα``."""
    rate: float = 1.0
    """Step size of ``softmax``, in units of one over the largest squared length."""

    name = "mgda"
    summary = "the shortest weighted mean of the rows (MGDA, exact)"
    guarantee = "proven"
    source = _SOURCE
    cost = "n^3"
    claims = frozenset({"scale", "permutation"})

    def __post_init__(self) -> None:
        check_number(self.name, "entropy", self.entropy, 0.0, math.inf)
        check_number(self.name, "steps", float(self.steps), 1.0, math.inf)
        check_number(self.name, "tolerance", self.tolerance, 0.0, 1.0)
        check_number(self.name, "rate", self.rate, 0.0, math.inf)
        bounds = self.lower_bounds if isinstance(self.lower_bounds, tuple) else (self.lower_bounds,)
        for bound in bounds:
            check_number(self.name, "lower_bounds", float(bound), 0.0, 1.0)
        if self.entropy > 0.0 and (max(bounds, default=0.0) > 0.0 or self.solver != "exact"):
            raise ConfigError(
                "`entropy` of `mgda` must be alone: no `lower_bounds`, and `solver = exact`. "
                f"Found `lower_bounds = {self.lower_bounds!r}` and `solver = {self.solver}`."
            )

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """``n α`` of the chosen solver, with its gap."""
        n = len(gram_NN)
        bounds_N = self._bounds(n)
        diagnostics: dict[str, float] = {}
        if self.entropy > 0.0:
            smooth = simplex.entropic(gram_NN, self.entropy)
            alpha_N, steps, diagnostics["kkt_residual"] = smooth.weights, smooth.steps, smooth.residual
        elif self.solver == "exact":
            solution = solvers.min_norm(gram_NN, bounds_N)
            alpha_N, steps, diagnostics["kkt_residual"] = solution.weights, solution.iterations, solution.kkt_residual
        else:
            alpha_N, steps = self._iterate(gram_NN, bounds_N)
        inner_NN, inner_N = gram_NN, alpha_N
        if bounds_N.any():
            inner_NN, rest = solvers.bounded_simplex(gram_NN, bounds_N)
            inner_N = (alpha_N - bounds_N) / rest if rest > 0.0 else np.full(n, 1.0 / n)
        diagnostics["gap"] = simplex.gap(inner_NN, inner_N) / simplex.mean_square(gram_NN)
        return Multipliers(n * alpha_N, diagnostics | {"iterations": float(steps)})

    def _bounds(self, n: int) -> np.ndarray:
        """The lower bounds as a vector.

        Raises:
            ConfigError: their number or their sum does not fit n rows.
        """
        bounds_N = np.broadcast_to(np.asarray(self.lower_bounds, dtype=np.float64), (n,)) if isinstance(
            self.lower_bounds, float | int
        ) else np.asarray(self.lower_bounds, dtype=np.float64)  # fmt: skip
        if bounds_N.shape != (n,):
            raise ConfigError(
                f"`lower_bounds` of `mgda` must be one number, or one per row of positive base weight ({n}). "
                f"Found {len(bounds_N)}."
            )
        if bounds_N.sum() > 1.0 + 1e-12:
            raise ConfigError(
                f"`lower_bounds` of `mgda` must have sum at most 1. Found {bounds_N.sum():g} for {n} rows. "
                f"Lower them, to {1 / n:g} each or less."
            )
        return bounds_N

    def _iterate(self, gram_NN: np.ndarray, bounds_N: np.ndarray) -> simplex.Approximation:
        """One of the iterative solvers, on the simplex or on the part of it above the bounds."""
        inner_NN, rest = solvers.bounded_simplex(gram_NN, bounds_N) if bounds_N.any() else (gram_NN, 1.0)
        if self.solver == "frank_wolfe":
            point = simplex.frank_wolfe(inner_NN, self.steps, self.tolerance)
        elif self.solver == "simplified_fw":
            point = simplex.simplified_frank_wolfe(inner_NN, self.steps)
        else:
            point = simplex.softmax_descent(inner_NN, self.steps, self.rate)
        return simplex.Approximation(bounds_N + rest * point.weights, point.steps)


_INNER_STEPS, _CHANGE, _EPSILON = 10, 1e-6, 1e-8
"""What the published algorithm recommends: inner steps, change of the objective to stop at, absolute guard."""


@HARMONIZERS.register("mgda_paper")
@dataclass(frozen=True, kw_only=True)
class PublishedMinNorm(Harmonizer):
    """The shortest weighted mean exactly as printed, to reproduce the text. Do not use it for anything else.

    Two rows: ``α_1 = (|g2|² - g1·g2) / max(|g1|² + |g2|² - 2 g1·g2, 1e-8)`` (Eq. 59, 78). More: Algorithm 8.1, ten
    Frank-Wolfe steps that end early when the objective changes by less than 1e-6. With ``entropy = τ > 0``: 200 steps
    of mirror descent on ``½‖u‖² + τH(α)`` (Eq. 83). Weights are ``α Σw``: the text knows no base weights.

    Warning:
        1. Eq. 59 is not cut to [0, 1]: ``g1 = (1, 0)``, ``g2 = (2, 0)`` gives α = (2, -1), and the direction is 0
           although both rows agree.
        2. Ten steps are too few (see ``mgda``), and 1e-6 and 1e-8 are absolute: for gradients of length 1e-5 the
           first change is already "converged", and the denominator 2e-10 is replaced by 1e-8.
        3. ``+τH`` is concave: it drives the weights into a corner, where it was meant to keep them apart.

    Source:
        Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 54, 59, 78, 83 and Algorithm 8.1.
    """

    entropy: float = 0.0
    """τ >= 0 of Eq. 83."""

    name = "mgda_paper"
    summary = "MGDA as printed: unclipped for two rows, ten Frank-Wolfe steps for more; for comparison"
    guarantee = "no"
    source = "Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 59, 78, 83, Algorithm 8.1"

    def __post_init__(self) -> None:
        check_number(self.name, "entropy", self.entropy, 0.0, math.inf)

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The printed formulas, line by line."""
        stats = self.checked(stats)
        gram_NN = stats.gram_NN
        if self.entropy > 0.0:
            alpha_N = self._mirror_descent(gram_NN)
        elif len(gram_NN) == 2:
            distance = gram_NN[0, 0] + gram_NN[1, 1] - 2.0 * gram_NN[0, 1]
            first = (gram_NN[1, 1] - gram_NN[0, 1]) / max(distance, _EPSILON)
            alpha_N = np.array([first, 1.0 - first])
        else:
            alpha_N = self._inner_loop(gram_NN)
        return self.answer(stats, alpha_N * stats.weights_N.sum(), state)

    @staticmethod
    def _inner_loop(gram_NN: np.ndarray) -> np.ndarray:
        """Algorithm 8.1, step 4."""
        alpha_N = np.full(len(gram_NN), 1.0 / len(gram_NN))
        value = 0.5 * alpha_N @ gram_NN @ alpha_N
        for _ in range(_INNER_STEPS):
            margins_N = gram_NN @ alpha_N
            nearest = int(margins_N.argmin())
            square, overlap = float(alpha_N @ margins_N), float(margins_N[nearest])
            distance = max(square + float(gram_NN[nearest, nearest]) - 2.0 * overlap, _EPSILON)
            share = max(0.0, min(1.0, (square - overlap) / distance))
            alpha_N = (1.0 - share) * alpha_N
            alpha_N[nearest] += share
            last, value = value, 0.5 * alpha_N @ gram_NN @ alpha_N
            if abs(value - last) < _CHANGE:
                break
        return alpha_N

    def _mirror_descent(self, gram_NN: np.ndarray) -> np.ndarray:
        """Multiplicative steps down Eq. 83, ``∂/∂α_i = (Γα)_i - τ (log α_i + 1)``."""
        alpha_N = np.full(len(gram_NN), 1.0 / len(gram_NN))
        rate = 0.5 / (simplex.mean_square(gram_NN) + self.entropy)
        for _ in range(200):
            slope_N = gram_NN @ alpha_N - self.entropy * (np.log(np.maximum(alpha_N, 1e-300)) + 1.0)
            alpha_N = alpha_N * np.exp(-rate * (slope_N - slope_N.min()))
            alpha_N /= alpha_N.sum()
        return alpha_N
