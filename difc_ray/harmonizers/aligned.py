"""Aligned-MTL: the Gram matrix's principal components brought to one length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from difc_ray.harmonizers.base import HARMONIZERS, Multipliers, ScaledHarmonizer


@HARMONIZERS.register("aligned")
@dataclass(frozen=True, kw_only=True)
class Aligned(ScaledHarmonizer):
    """Aligned-MTL: replace the (scaled) rows by the nearest orthogonal ones of one length, then add.

    ``Γ = V Λ Vᵀ`` over the non-zero eigenvalues, ``tau = √λ V Λ^{-½} Vᵀ 1``, λ the smallest of them (or the mean, or
    the median). The new rows do not conflict with each other; their sum may oppose an old row. With ``min`` the step
    goes to zero as the rows become dependent, and jumps up where an eigenvalue falls below rounding (n · 2.2e-16 of
    the largest).

    Source:
        Senushkin et al. 2023, Independent Component Alignment for Multi-Task Learning, Algorithm 1.

    Differs from the source:
        Base weights scale the rows before the alignment, not after it; the same for equal ones.
    """

    scale_mode: Literal["min", "median", "mean"] = "min"
    """Which eigenvalue gives the common length: the smallest (the paper), the median, or their mean."""

    name = "aligned"
    summary = "replace the rows by the nearest orthogonal ones of one length, then add (Aligned-MTL)"
    guarantee = "no"
    source = "Senushkin et al. 2023, Independent Component Alignment (CVPR), Algorithm 1"
    cost = "n^3"
    claims = frozenset({"scale", "permutation"})

    def multipliers(self, gram_NN: np.ndarray, rng: np.random.Generator | None) -> Multipliers:
        """The closed form; ones where every row is zero."""
        largest = float(np.abs(gram_NN).max())
        if largest == 0.0:
            return Multipliers(np.ones(len(gram_NN)))
        values_N, vectors_NN = np.linalg.eigh(gram_NN / largest)
        kept = values_N > len(gram_NN) * np.finfo(np.float64).eps * values_N[-1]
        values_R, vectors_NR = values_N[kept], vectors_NN[:, kept]
        scales = {"min": values_R.min(), "median": np.median(values_R), "mean": values_R.mean()}
        return Multipliers(np.sqrt(scales[self.scale_mode]) * vectors_NR @ (vectors_NR.sum(axis=0) / np.sqrt(values_R)))
