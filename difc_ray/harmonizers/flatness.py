"""Rules for flat directions: no row opposed, and little curvature along the way.

Shape suffixes: K gradients, V = 2K rows ``[g_1 … g_K, M g_1 … M g_K]``.

The problem is ``min_d ‖d - ḡ‖² + λ dᵀHd`` with ``<d, g_k> >= 0``, ``ḡ = Σ w_k g_k`` and H positive semidefinite. With
``M = (I + λH)⁻¹`` all that is needed of the parameters is the Gram matrix of the rows g_k and M g_k; λ = 0 makes
M the identity and the rule ``dualproj``. There are K base weights; the answer has 2K, zero on the plain rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from difc_ray.errors import NumericError
from difc_ray.harmonizers import metrics, solvers
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, State

SYMMETRY = 1e-5
"""Largest difference between ``g_i · M g_j`` and ``g_j · M g_i``, relative to the product of the lengths."""

_SOURCE = "joint model of PCGrad and flatness: min |d - mean|² + λ dᵀHd, <d, g_k> >= 0"


@dataclass(frozen=True, kw_only=True)
class FlatHarmonizer(Harmonizer):
    """Base of the rules on ``[g_1 … g_K, M g_1 … M g_K]``."""

    needs_metric = True

    def default_weights(self, n: int) -> npt.NDArray[np.float64]:
        """K = n/2 base weights, 1/K each."""
        return np.full(n // 2, 2.0 / n) if n > 1 else np.ones(n)

    def answer_behind(
        self, stats: GramStatistics, weights_K: np.ndarray, state: State, diagnostics: Mapping[str, float]
    ) -> Harmonization:
        """Weights on the rows M g_k; the conflict metrics are between the direction and the plain rows g_k.

        ``cos_mean`` is the cosine with ``Σ w_k g_k``, the direction that neither the curvature nor a conflict has
        changed.
        """
        k, none_K = len(weights_K), np.zeros(len(weights_K))
        weights_V, base_V = np.concatenate([none_K, weights_K]), np.concatenate([stats.weights_N, none_K])
        plain_KK = stats.gram_NN[:k, :k]
        after_K = metrics.margin_cosines(stats.gram_NN, weights_V)[:k]
        seen = metrics.conflict_metrics(plain_KK, stats.weights_N, stats.weights_N) | {
            "conflicts_after": float(np.count_nonzero(after_K < 0.0)),
            "min_margin_cosine": float(after_K[metrics.nonzero_rows(plain_KK)].min(initial=1.0)),
            "cos_mean": metrics.direction_cosine(stats.gram_NN, weights_V, base_V),
        }
        return Harmonization(weights=weights_V, state=state, diagnostics=seen | dict(diagnostics))


def metric_gram(gram_VV: np.ndarray) -> npt.NDArray[np.float64]:
    """The block ``A_ij = g_i · M g_j`` of the Gram of 2K rows, made exactly symmetric.

    Raises:
        NumericError: it is not symmetric, so the second half of the rows is not a symmetric M times the first.
    """
    k = len(gram_VV) // 2
    block_KK = gram_VV[:k, k:]
    lengths_V = metrics.lengths(gram_VV)
    allowed_KK = SYMMETRY * lengths_V[:k, None] * lengths_V[None, k:]
    skew_KK = np.abs(block_KK - block_KK.T)
    if (skew_KK > np.maximum(allowed_KK, allowed_KK.T)).any():
        i, j = (int(x) for x in np.unravel_index(int(skew_KK.argmax()), skew_KK.shape))
        raise NumericError(
            f"`g_i · M g_j` must equal `g_j · M g_i` for a symmetric M. Found {block_KK[i, j]:g} and "
            f"{block_KK[j, i]:g} for i = {i}, j = {j}. Order the rows as g_1 … g_K, then M g_1 … M g_K."
        )
    return np.asarray((block_KK + block_KK.T) / 2.0)


@HARMONIZERS.register("flat_dualproj")
@dataclass(frozen=True, kw_only=True)
class FlatDualProjection(FlatHarmonizer):
    """The flattest direction near the weighted mean that opposes no row.

    ``c = argmin_{c >= w} cᵀAc`` with ``A_ij = g_i · M g_j``; ``d = Σ c_k M g_k``, so that ``<d, g_k> = (Ac)_k >= 0``,
    with equality wherever ``c_k > w_k``. Without conflict ``d = M ḡ``. K = 2: as ``dualproj``, with A for Γ.

    Proof: stationarity of ``‖d - ḡ‖² + λdᵀHd - Σ a_k <d, g_k>`` is ``d = M(ḡ + ½ Σ a_k g_k) = M Σ c_k g_k`` with
    ``c = w + a/2 >= w``; put back, the dual to maximise is ``‖ḡ‖² - cᵀAc``. d is unique, c up to the null space of A.

    Diagnostics: ``kkt_residual``, ``iterations``, ``active``; conflict metrics are between the direction and the rows
    g_k.

    Source:
        The joint model of PCGrad and flatness, ``min_d ‖d - ḡ‖² + λ dᵀHd`` with ``<d, g_k> >= 0``.

    Differs from the source:
        1. Its correction step is off by the factor ``2|g_k|²/(g_kᵀMg_k)`` and leaves at least half of every
           violation, always (``flat_pcgrad_paper``); one violated constraint needs
           ``d += |<g_k, d>| / (g_kᵀMg_k) · M g_k``.
        2. Correcting one row after the other can bring earlier conflicts back, as in PCGrad; several need the QP.
        3. H must be positive semidefinite: with an eigenvalue below ``-1/λ`` the objective has no minimum, and
           negative ones above it lengthen the step along negative curvature. So M comes from a PSD diagonal, or is
           checked.
        4. One term of the Neumann series, ``M ≈ I - λH``, is exact to first order, needs ``λ‖H‖ < 1``, and turns
           components with ``λh > 1`` around; ``(1 + λh)⁻¹`` is always in (0, 1].
        5. ``dᵀHd < ḡᵀHḡ`` is true to first order in λ only, for the Neumann form: exactly, per eigenvalue,
           ``h(1 - λh)²``.
        6. "Analytic solution" holds without constraints only; every active row needs its own product ``M g_k``.
        7. The worked example (g = (1, 2), (-1, 1), H = diag(2, 1), λ = .1) has no conflict; its exact answer is
           (0, 1.3636), one Neumann term gives the printed (0, 1.35).
    """

    name = "flat_dualproj"
    summary = "the flattest direction near the weighted mean that opposes no row (exact QP)"
    guarantee = "proven"
    source = f"{_SOURCE}, corrected"
    cost = "n^3"
    claims = frozenset({"scale", "permutation"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The minimiser of the QP on A, as weights of the rows M g_k."""
        stats = self.checked(stats)
        solution = solvers.dual_cone(metric_gram(stats.gram_NN), stats.weights_N)
        return self.answer_behind(stats, solution.weights, state, solvers.certificate([solution]))


@HARMONIZERS.register("flat_pcgrad_paper")
@dataclass(frozen=True, kw_only=True)
class PublishedFlatPCGrad(FlatHarmonizer):
    """The flat correction exactly as printed, to reproduce it. Do not use it for anything else.

    ``d = M ḡ``, then for k = 1 … K: if ``<g_k, d> < 0``, ``d += |<g_k, d>| / (2 |g_k|²) · M g_k``. M is what the
    second half of the rows was made with; printed is ``I - λH``.

    Warning:
        It never resolves a conflict where H is positive semidefinite: ``<g_k, d>`` keeps at least half of its
        violation. Counterexample: H = 0, ``g1 = (1, 0)``, ``g2 = (-2, 1)``: d = (-.5, .5) becomes (-.25, .5), and
        ``<g_1, d>`` is still -.25. Use ``flat_dualproj``.

    Source:
        The joint model of PCGrad and flatness, step 5 of its algorithm.
    """

    name = "flat_pcgrad_paper"
    summary = "the flat correction as printed: leaves half of every violation; for comparison"
    guarantee = "no"
    source = f"{_SOURCE}, step 5 as printed"

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """One pass over the rows, in the space of weights."""
        stats = self.checked(stats)
        metric_KK, squares_N = metric_gram(stats.gram_NN), np.diagonal(stats.gram_NN)
        weights_K = stats.weights_N.copy()
        for k in np.flatnonzero(metrics.nonzero_rows(stats.gram_NN)[: len(weights_K)]):
            margin = float(metric_KK[k] @ weights_K)
            if margin < 0.0:
                weights_K[k] += -margin / (2.0 * squares_N[k])
        return self.answer_behind(stats, weights_K, state, {})
