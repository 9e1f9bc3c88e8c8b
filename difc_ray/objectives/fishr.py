"""Fishr: the variances of the examples' gradients are the same in every domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.spread import cotangents, deviations, spread, weighted_mean


@OBJECTIVES.register("fishr")
class Fishr(Objective):
    """``α Σ_e w_e ‖v_e − v̄‖²`` with v_e the variance over domain e's examples of their own gradients at the head.

    ``v = q − g ∘ g``, entry by entry and divided by N, of the means q of the squares and g of the gradients. A worker
    sends those two and not v, so that those of a divided batch are the means over its parts; with ``c_e = 2 α w_e
    (v_e − v̄)`` it pulls back ``⟨c_e, q⟩ − 2 ⟨c_e ∘ g_e, g⟩``. β is not used.

    Source: Rame et al. 2022, Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization (ICML), the
    authors' Colored MNIST script.
    Differs from the source: the variance in closed form instead of example by example; weights w_e may differ. The
    script sums over the domains (`alignment.reduction=sum`). There is no moving average and no division by the number
    of parameters, as the authors' DomainBed class has.
    """

    reads = ("alpha",)

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``g`` and ``q``."""
        return {"g": head.gradient(), "q": head.squared_gradients()}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``c_e`` for q and ``−2 c_e ∘ g_e`` for g."""
        variances = [answer["q"].astype(np.float64) - answer["g"].astype(np.float64) ** 2 for answer in answers]
        deviation_K = deviations(variances, weighted_mean(weights_K, variances))
        pulled = cotangents(coefficients.alpha, weights_K, deviation_K)
        both = [{"q": c, "g": -2.0 * c * answer["g"]} for c, answer in zip(pulled, answers, strict=True)]
        return both, {"variance": coefficients.alpha * spread(weights_K, deviation_K)}
