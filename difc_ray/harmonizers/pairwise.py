"""Rules that treat the rows pair by pair: project, one after the other or all at once, or rotate the conflicts away.

Shape suffixes: N rows, A rows that are not zero rows. All act on the scaled rows; a zero row keeps its base weight.
For two rows, ``pcgrad`` and ``gh_symmetric`` are ``gh``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from difc_ray.errors import ConfigError
from difc_ray.harmonizers.base import HARMONIZERS, Multipliers, ScaledHarmonizer, check_number
from difc_ray.harmonizers.unit_rows import UnitRows, equilibrate

_INDEPENDENT = 1e-12
"""Singular values below this part of the largest are rounding: the rows do not span that dimension."""


@HARMONIZERS.register("pcgrad")
@dataclass(frozen=True, kw_only=True)
class PCGrad(ScaledHarmonizer):
    """PCGrad: each row is projected off the rows it conflicts with, one after the other in random order; then the sum.

    For every i, from ``v = e_i``, and for all ``j != i`` in an order drawn for i: if ``(Γv)_j < 0`` then
    ``v_j -= (Γv)_j / Γ_jj``. ``tau = Σ_i v``. The orders come from the step's generator, so every engine draws the
    same.

    Source:
        Yu et al. 2020, Gradient Surgery for Multi-Task Learning (arXiv 2001.06782), Algorithm 1.

    Differs from the source:
        Computed on the Gram (each projection only changes a weight). The claim that the result conflicts with no row
        holds for two rows only: a later projection can bring an earlier conflict back, and the sum adds conflicts of
        its own.
    """

    name = "pcgrad"
    summary = "project each row off the rows it conflicts with, in random order, then add (PCGrad)"
    guarantee = "n = 2 only"
    source = "Yu et al. 2020, Gradient Surgery (arXiv 2001.06782), Algorithm 1"
    cost = "n^3"
    claims = frozenset({"scale", "linear", "base"})

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """Algorithm 1 in the space of weights.

        Raises:
            ConfigError: more than two rows and no generator to draw the orders from.
        """
        n = len(gram_NN)
        if n > 2 and rng is None:
            raise ConfigError(
                f"`pcgrad` draws an order of the rows, and must be given `rng`. Found none for {n} rows. "
                "Pass `rng=np.random.default_rng(seed)`, or take `gh_symmetric`, which needs no order."
            )
        rows = equilibrate(gram_NN)
        cosines_AA, lengths_A = rows.cosines_AA, rows.lengths_N[rows.alive_N]
        total_A = np.zeros(len(lengths_A))
        for i in range(len(lengths_A)):
            order = np.arange(len(lengths_A)) if rng is None else rng.permutation(len(lengths_A))
            unit_A = np.zeros(len(lengths_A))
            unit_A[i] = lengths_A[i]
            for j in order[order != i]:
                overlap = float(cosines_AA[j] @ unit_A)
                if overlap < 0.0:
                    unit_A[j] -= overlap
            total_A += unit_A
        tau_N = np.ones(n)
        tau_N[rows.alive_N] = total_A / lengths_A
        return Multipliers(tau_N)


@HARMONIZERS.register("gh_symmetric")
@dataclass(frozen=True, kw_only=True)
class SymmetricHarmonization(ScaledHarmonizer):
    """GH for any number of rows: from each row, at once, its projections on all rows it conflicts with; then the sum.

    ``tau_j = 1 - Σ_{i != j, Γ_ij < 0} Γ_ij / Γ_jj``. Needs no order and no randomness; non-conflicting for two rows.

    Source:
        Huang et al. 2024, Gradient Harmonization (arXiv 2408.00288), Eq. 28, for two rows.

    Differs from the source:
        The extension to more rows is ours: PCGrad with every projection computed from the original rows.
    """

    name = "gh_symmetric"
    summary = "GH for any number of rows: subtract all conflicting projections at once; no order"
    guarantee = "n = 2 only"
    source = "Huang et al. 2024 (arXiv 2408.00288), Eq. 28, extended"
    claims = frozenset({"scale", "permutation", "linear", "base"})

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """The closed form."""
        rows = equilibrate(gram_NN)
        return Multipliers(_symmetric(rows))


def _symmetric(rows: UnitRows) -> Float64[np.ndarray, " N"]:
    """Multipliers of ``gh_symmetric``, from the unit rows."""
    lengths_A = rows.lengths_N[rows.alive_N]
    tau_N = np.ones(len(rows.alive_N))
    tau_N[rows.alive_N] -= lengths_A @ np.minimum(rows.cosines_AA, 0.0) / lengths_A
    return tau_N


@HARMONIZERS.register("ghpp_k")
@dataclass(frozen=True, kw_only=True)
class ManyRowRotation(ScaledHarmonizer):
    """GH++ for any number of rows: the smallest rotation of the rows after which no two conflict; then the sum.

    R: cosines of the rows. T: the same with negative ones set to 0 (clipped to positive semidefinite if need be).
    ``W = T^½ (T^½ R T^½)^{-½} T^½`` makes unit rows ``Σ_j W_ij ĝ_j`` with cosines T, and of all such rows they are the
    nearest to the old ones. With lengths l put back, ``tau_j = Σ_i l_i W_ij / l_j``. For two conflicting rows this is
    ``ghpp_rotation`` with λ = 1/2. The new rows do not conflict with each other, but their sum may oppose an old row.

    Diagnostics: ``s_min_active`` (1 where the fallback acted).

    Source:
        Huang et al. 2024, Gradient Harmonization (arXiv 2408.00288), section 3.5, for two rows; nearest rows with given
        inner products: Löwdin 1950.

    Differs from the source:
        The extension to more rows is ours. Nearly opposed rows, whose plane of rotation is rounding, fall back to
        ``gh_symmetric``.
    """

    s_min: float = 0.05
    """In [0, 1]: falls back where W stretches more than it does for two rows at this sine of their angle."""

    name = "ghpp_k"
    summary = "the smallest rotation after which no two rows conflict, then add; the sum may conflict"
    guarantee = "no"
    source = "Huang et al. 2024 (arXiv 2408.00288), section 3.5, extended"
    cost = "n^3"
    claims = frozenset({"scale", "permutation", "linear", "base"})

    def __post_init__(self) -> None:
        check_number(self.name, "s_min", self.s_min, 0.0, 1.0)

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """Column sums of W, with the lengths of the rows put back."""
        rows = equilibrate(gram_NN)
        if not (rows.cosines_AA < 0.0).any():
            return Multipliers(np.ones(len(gram_NN)), {"s_min_active": 0.0})
        mixing_AA = nearest_mixing(rows.cosines_AA)
        cosine = np.sqrt(max(0.0, 1.0 - self.s_min**2))
        if mixing_AA is None or np.linalg.norm(mixing_AA, 2) ** 2 * (1.0 - cosine) > 1.0:
            return Multipliers(_symmetric(rows), {"s_min_active": 1.0})
        lengths_A = rows.lengths_N[rows.alive_N]
        tau_N = np.ones(len(gram_NN))
        tau_N[rows.alive_N] = lengths_A @ mixing_AA / lengths_A
        return Multipliers(tau_N, {"s_min_active": 0.0})


def nearest_mixing(cosines_AA: Float64[np.ndarray, "A A"]) -> Float64[np.ndarray, "A A"] | None:
    """The matrix W of ``ghpp_k``, or None where the rows do not span as many dimensions as their targets do.

    ``T^½ (T^½ R T^½)^{-½} T^½`` by the singular values of ``R^½ T^½``: no product of squares is rooted again.
    """
    target_values, target_vectors = np.linalg.eigh(np.maximum(cosines_AA, 0.0))
    row_values, row_vectors = np.linalg.eigh(cosines_AA)
    target_root = (target_vectors * np.sqrt(np.maximum(target_values, 0.0))) @ target_vectors.T
    row_root = (row_vectors * np.sqrt(np.maximum(row_values, 0.0))) @ row_vectors.T
    _, values, right = np.linalg.svd(row_root @ target_root)
    rank = int((values > _INDEPENDENT * values[0]).sum())
    if rank < int((target_values > _INDEPENDENT * target_values[-1]).sum()):
        return None
    kept = right[:rank] @ target_root
    return np.asarray((kept.T / values[:rank]) @ kept)
