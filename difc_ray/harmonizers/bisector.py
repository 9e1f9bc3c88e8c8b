"""Rules whose direction has the same cosine with every row: IMTL-G and ConFIG.

Shape suffixes: N rows, A rows that are not zero rows.

Where the rows are independent there is one such line in their span, ``Σ_i (C⁺1)_i ĝ_i`` with C the cosines of the
rows. The two rules differ in how far they go along it. Where they are dependent, C⁺ gives the nearest thing, and the
cosines may differ, even in sign; two rows are always well served (opposed ones give zero).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from difc_ray.harmonizers.base import HARMONIZERS, Multipliers, ScaledHarmonizer
from difc_ray.harmonizers.unit_rows import equilibrate

DEPENDENT = 1e-12
"""Eigenvalues of the cosine matrix below this part of the largest count as zero: rows within 1e-6 rad of dependence."""

_CANCELLED = 1e-9
"""A sum this much smaller than its terms is rounding."""


def equal_cosines(cosines_AA: Float64[np.ndarray, "A A"]) -> Float64[np.ndarray, " A"]:
    """``C⁺ 1``: multipliers of the unit rows whose sum has one cosine with all of them.

    >>> equal_cosines(np.array([[1.0, 0.5], [0.5, 1.0]])).round(12).tolist()
    [0.666666666667, 0.666666666667]
    """
    values_A, vectors_AA = np.linalg.eigh(cosines_AA)
    kept = values_A > DEPENDENT * max(float(values_A[-1]), 1.0)
    return np.asarray(vectors_AA[:, kept] @ (vectors_AA[:, kept].sum(axis=0) / values_A[kept]))


@HARMONIZERS.register("imtl_g")
@dataclass(frozen=True, kw_only=True)
class ImpartialGradient(ScaledHarmonizer):
    """IMTL-G: the direction with equal projections on all (scaled) rows, multipliers of mean 1.

    ``v = Γ⁺ (|g_1| … |g_n|)``, ``tau = n v / |Σ v|``; zero where v is zero or its sum is rounding. A zero row keeps
    its base weight. The direction grows without bound as ``Σ v`` goes to zero; ``config_gram`` is the same line at a
    bounded length.

    Diagnostics: ``sum_share``, ``|Σ v| / Σ|v|`` in [0, 1]: small when the weights cancel and the direction is long.

    Source:
        Liu et al. 2021, Towards Impartial Multi-task Learning (IMTL-G); for dependent rows Quinton and Rey 2024
        (arXiv 2406.16232).

    Differs from the source:
        Divided by ``|Σ v|``, not ``Σ v``: with obtuse rows of different lengths the sum can be negative for n >= 3,
        and then the published direction opposes *every* row. No absolute threshold.
    """

    name = "imtl_g"
    summary = "the direction with equal projections on all rows, weights of sum 1 (IMTL-G)"
    guarantee = "n = 2 only"
    source = "Liu et al. 2021, Towards Impartial Multi-task Learning (ICLR), IMTL-G"
    cost = "n^3"
    claims = frozenset({"scale", "permutation"})

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """The closed form, on the unit rows."""
        rows = equilibrate(gram_NN)
        tau_N = np.ones(len(gram_NN))
        if not rows.alive_N.any():
            return Multipliers(tau_N, {"sum_share": 1.0})
        lengths_A = rows.lengths_N[rows.alive_N]
        v_A = equal_cosines(rows.cosines_AA) * (lengths_A.min() / lengths_A)
        total, size = abs(float(v_A.sum())), float(np.abs(v_A).sum())
        share = total / size if size > _CANCELLED * len(v_A) else 0.0
        tau_N[rows.alive_N] = len(v_A) * v_A / total if share > _CANCELLED else 0.0
        return Multipliers(tau_N, {"sum_share": share})


@HARMONIZERS.register("config_gram")
@dataclass(frozen=True, kw_only=True)
class ConflictFreeGram(ScaledHarmonizer):
    """ConFIG: the direction with equal cosines to all (scaled) rows, as long as the rows' projections on it together.

    ``a = C⁺1 / |g|``, ``â = a / √(aᵀΓa)``, ``tau = (1ᵀΓâ) â``. Linear in positive factors on the rows. A zero row
    keeps its base weight; where ``C⁺1`` is zero (two opposed rows) the direction is zero.

    Source:
        Liu et al. 2024, ConFIG (arXiv 2408.11104), Eq. 2.

    Differs from the source:
        Computed from the Gram alone: ``U⁺ 1 = Uᵀ C⁺ 1`` for unit rows U.
    """

    name = "config_gram"
    summary = "the direction with equal cosines to all rows, as long as their projections (ConFIG)"
    guarantee = "n = 2 only"
    source = "Liu et al. 2024, ConFIG (arXiv 2408.11104), Eq. 2"
    cost = "n^3"
    claims = frozenset({"scale", "permutation", "linear"})

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """The closed form, on the unit rows: there ``Γâ`` is ``|g| · C b`` with b the unit direction's multipliers."""
        rows = equilibrate(gram_NN)
        tau_N = np.ones(len(gram_NN))
        if not rows.alive_N.any():
            return Multipliers(tau_N)
        lengths_A = rows.lengths_N[rows.alive_N]
        b_A = equal_cosines(rows.cosines_AA)
        projections_A = rows.cosines_AA @ b_A
        square = float(b_A @ projections_A)
        share = float(lengths_A @ projections_A) / square if square > _CANCELLED**2 * len(b_A) else 0.0
        tau_N[rows.alive_N] = share * b_A / lengths_A
        return Multipliers(tau_N)
