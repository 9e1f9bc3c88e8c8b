"""Rules that project onto the cone of directions that oppose no row (the dual cone of the rows).

Shape suffixes: N rows.

Base weights here are the lower bounds u of the quadratic program, not a scaling of the rows. For positive ones the two
are the same; a row with base weight 0 still has its say: the direction must not oppose it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from difc_ray.harmonizers import solvers
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, State


@HARMONIZERS.register("dualproj")
@dataclass(frozen=True, kw_only=True)
class DualProjection(Harmonizer):
    """The nearest direction to the weighted mean that opposes no row.

    ``c = argmin_{c >= w} cᵀΓc``, ``direction = Σ c_i g_i``; then ``direction · g_k = (Γc)_k >= 0`` for every row, with
    equality wherever ``c_k > w_k``. For two rows: ``s = Γw``; if ``min s >= 0`` then ``c = w``, else with
    ``k = argmin s`` only ``c_k = w_k - s_k/Γ_kk`` changes. The direction is zero iff positive weights with
    ``Σ v_i g_i = 0`` exist (Pareto stationary), given positive base weights.

    Diagnostics: ``kkt_residual``, ``iterations``, ``active`` (constraints that are tight).

    Source:
        Lopez-Paz and Ranzato 2017 (GEM, arXiv 1706.08840), Eq. 11; the general base weights are those of
        Quinton and Rey 2024 (arXiv 2406.16232).

    Differs from the source:
        Rows of any lengths are held to the constraint alike (equilibrated Gram); nothing is added to the Gram and
        no small gradient is replaced by the mean, as solvers with absolute or trace-relative safeguards do.
    """

    name = "dualproj"
    summary = "the direction nearest to the weighted mean that opposes no row (exact QP)"
    guarantee = "proven"
    source = "Lopez-Paz and Ranzato 2017, GEM (arXiv 1706.08840), Eq. 11"
    cost = "n^3"
    claims = frozenset({"scale", "permutation", "base"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The QP's minimiser, with its certificate."""
        stats = self.checked(stats)
        solution = solvers.dual_cone(stats.gram_NN, stats.weights_N)
        return self.answer(stats, solution.weights, state, solvers.certificate([solution]))


@HARMONIZERS.register("upgrad")
@dataclass(frozen=True, kw_only=True)
class UnconflictingProjection(Harmonizer):
    """UPGrad: every weighted row projected onto the dual cone by itself, then the sum.

    ``c = Σ_i argmin_{v >= w_i e_i} vᵀΓv``. Each term opposes no row, so neither does the sum; and the direction is
    linear in factors on the rows, so a row's influence grows with its length.

    Diagnostics: ``kkt_residual`` (the worst of the n), ``iterations``, ``active`` (tight in any of them).

    Source:
        Quinton and Rey 2024, Jacobian Descent for Multi-Objective Optimization (arXiv 2406.16232), Eq. 3 and
        Proposition 1.

    Differs from the source:
        Solved exactly on the equilibrated Gram; see ``dualproj``.
    """

    name = "upgrad"
    summary = "project every row so that it opposes none, then add (UPGrad, exact QPs)"
    guarantee = "proven"
    source = "Quinton and Rey 2024, Jacobian Descent (arXiv 2406.16232), Eq. 3"
    cost = "n^4"
    claims = frozenset({"scale", "permutation", "linear", "base"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The sum of the minimisers of n QPs."""
        stats = self.checked(stats)
        solutions = solvers.dual_cones(stats.gram_NN, np.diag(stats.weights_N))
        weights_N = np.sum([solution.weights for solution in solutions], axis=0)
        return self.answer(stats, weights_N, state, solvers.certificate(solutions))
