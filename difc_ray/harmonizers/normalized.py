"""Rules that give every row the same length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from difc_ray.harmonizers import metrics
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, State
from difc_ray.harmonizers.unit_rows import equilibrate


@HARMONIZERS.register("normalized")
@dataclass(frozen=True, kw_only=True)
class Normalized(Harmonizer):
    """The weighted mean of the unit rows, at the rows' mean length.

    ``direction = L Σ w_i g_i/|g_i|`` with ``L = Σ w_i|g_i| / Σ w_i``, or ``L = 1``. Base weights weigh the unit rows
    (as a scaling of the rows they would cancel). Two rows with equal base weights: ``<g_1, direction>`` is
    ``L w |g_1| (1 + cos) >= 0``, so it opposes neither. A zero row keeps its base weight.

    Source:
        Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 60.

    Differs from the source:
        1. ``length = mean``: printed, the step has the same length however small the gradients are (``length = one``).
        2. No absolute ε in the denominator (Eq. 77): for gradients of length 1e-10 it shrinks the step a hundredfold.
        3. Not the min-norm point up to a factor (Theorem 6.1), except for two rows of equal length: ``g1 = (1, 0)``,
           ``g2 = (0, 2)`` has min-norm point (.8, .4), and here (1, 1). Theorem 6.2 holds, but only because its
           premise, all pairs agree, is all there is to show; its bound is ``|g_i|``, not 1. With equal lengths the
           mean is the min-norm point only if all rows have one inner product with it (section 11.3).
    """

    length: Literal["mean", "one"] = "mean"
    """Length that every row gets: the mean of the rows' lengths, or 1 as printed."""

    name = "normalized"
    summary = "the mean of the unit rows, at their mean length"
    guarantee = "n = 2 only"
    source = "Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 60"
    cost = "n"
    claims = frozenset({"scale", "permutation", "linear"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """``w_i L / |g_i|``."""
        stats = self.checked(stats)
        rows, weights_N = equilibrate(stats.gram_NN), stats.weights_N.copy()
        alive_N, total = rows.alive_N, float(stats.weights_N[rows.alive_N].sum())
        if total > 0.0:
            mean = float(weights_N[alive_N] @ rows.lengths_N[alive_N]) / total if self.length == "mean" else 1.0
            weights_N[alive_N] *= mean / rows.lengths_N[alive_N]
        return self.answer(stats, weights_N, state)


@HARMONIZERS.register("normalized_paper")
@dataclass(frozen=True, kw_only=True)
class PublishedNormalized(Harmonizer):
    """The sum of the unit rows exactly as printed: ``Σ w_i g_i / (|g_i| + 1e-8)``. Do not use it for anything else.

    Warning:
        The step is as long for small gradients as for large ones, until at lengths near the absolute 1e-8 it shrinks:
        at 1e-10, a hundredfold.

    Source:
        Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 77.
    """

    name = "normalized_paper"
    summary = "the sum of the unit rows as printed, with an absolute ε; for comparison"
    guarantee = "no"
    source = "Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 77"
    cost = "n"

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """``w_i / (|g_i| + 1e-8)``."""
        stats = self.checked(stats)
        return self.answer(stats, stats.weights_N / (metrics.lengths(stats.gram_NN) + 1e-8), state)
