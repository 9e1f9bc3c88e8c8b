"""Risk extrapolation: the losses of the domains are equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.spread import cotangents, deviations, spread, weighted_mean


@OBJECTIVES.register("vrex")
class Vrex(Objective):
    """``α Σ_e w_e (R_e − R̄)²``, the variance of the domains' losses R_e around their weighted mean; β is not used.

    Source: Krueger et al. 2021, Out-of-Distribution Generalization via Risk Extrapolation (arXiv 2003.00688), V-REx.
    Differs from the source: the weights w_e may differ. The authors' Colored MNIST script has ``(R_0 − R_1)²``, which
    for two equal weights is four times the variance: write `alignment.alpha=4`.
    """

    reads = ("alpha",)

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The loss ``R``, of one entry."""
        return {"R": head.risk.reshape(1)}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``2 α w_e (R_e − R̄)`` for each domain."""
        risks = [answer["R"] for answer in answers]
        deviation_K = deviations(risks, weighted_mean(weights_K, risks))
        pulled = cotangents(coefficients.alpha, weights_K, deviation_K)
        return [{"R": each} for each in pulled], {"risk": coefficients.alpha * spread(weights_K, deviation_K)}
