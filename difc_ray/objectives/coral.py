"""Deep CORAL: the features of every domain have the same mean and covariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors, pairs_of
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.spread import cotangents, deviations, spread, weighted_mean


@OBJECTIVES.register("coral")
class Coral(Objective):
    """``α`` times the mean over pairs of domains of ``‖μ_a − μ_b‖² / d + ‖C_a − C_b‖² / d²``.

    μ and C are mean and covariance (division by N − 1) of the d inputs of the head. A worker sends the means m of the
    features and S of their products, ``C = N / (N − 1) (S − m mᵀ)``, so that those of a divided batch are the means
    over its parts; S has d² numbers. With Γ_e the cotangent of C_e it pulls back, besides the term of the means,
    ``N / (N − 1) (⟨Γ_e, S⟩ − 2 ⟨Γ_e m_e, m⟩)``. β is not used.

    Source: Sun & Saenko 2016, Deep CORAL; with means and over all pairs as in DomainBed (Gulrajani & Lopez-Paz 2021).
    Differs from the source: pairs have the weights w_a w_b (there all the same).
    """

    reads = ("alpha",)

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``m`` and ``S``."""
        inputs_ND = head.inputs_ND
        return {"m": inputs_ND.mean(0), "S": (inputs_ND.T @ inputs_ND / len(inputs_ND)).flatten()}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """What m and S are contracted with."""
        size, n = len(answers[0]["m"]), self.settings.examples
        unbiased, factor = n / max(1, n - 1), coefficients.alpha / pairs_of(weights_K)
        means = [answer["m"].astype(np.float64) for answer in answers]
        covariances = [
            unbiased * (answer["S"].astype(np.float64) - np.outer(mean, mean).ravel())
            for answer, mean in zip(answers, means, strict=True)
        ]
        apart_m = deviations(means, weighted_mean(weights_K, means))
        apart_C = deviations(covariances, weighted_mean(weights_K, covariances))
        pulled = []
        for mean, pulled_m, pulled_C in zip(
            means, cotangents(factor / size, weights_K, apart_m), cotangents(factor / size**2, weights_K, apart_C),
            strict=True,
        ):  # fmt: skip
            through_mean = 2.0 * pulled_C.reshape(size, size) @ mean
            pulled.append({"m": pulled_m - unbiased * through_mean, "S": unbiased * pulled_C})
        terms = {"mean": factor / size * spread(weights_K, apart_m),
                 "covariance": factor / size**2 * spread(weights_K, apart_C)}  # fmt: skip
        return pulled, terms
