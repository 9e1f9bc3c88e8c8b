"""The honest baseline: fixed weights, whatever the gradients do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from difc_ray.harmonizers import metrics
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, State


@HARMONIZERS.register("mean")
@dataclass(frozen=True, kw_only=True)
class Mean(Harmonizer):
    """Returns the base weights, so that the direction is the weighted mean of the rows.

    The direction may oppose a row; the diagnostics say when it does.
    """

    name = "mean"
    summary = "the weighted mean of the rows: no harmonization, the baseline"
    guarantee = "no"
    source = "empirical risk minimization"

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The base weights, with the conflict metrics of the rows."""
        stats = self.checked(stats)
        diagnostics = metrics.conflict_metrics(stats.gram_NN, stats.weights_N, stats.weights_N)
        diagnostics["min_cosine_after"] = diagnostics["min_cosine"]
        return Harmonization(weights=stats.weights_N.copy(), state=state, diagnostics=diagnostics)
