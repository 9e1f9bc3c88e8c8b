"""Invariant risk minimisation: one classifier is optimal for every domain at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors
from difc_ray.objectives.curvature import HeadCurvature


@OBJECTIVES.register("irm")
class Irm(Objective):
    """``α Σ_e w_e J_e²`` with ``J_e`` the derivative of domain e's loss with respect to a factor on its logits, at 1.

    In closed form ``J_e = mean_n ⟨r_n, z_n⟩``, with r the residuals and z the logits. β is not used. The term of a
    domain needs nothing of the others; the mean over parts of its batch has to be known before it is squared, which is
    why J travels.

    Source: Arjovsky et al. 2019, Invariant Risk Minimization (arXiv 1907.02893), IRMv1.
    Differs from the source: the weights w_e may differ (there the mean over the domains); full batches have no need of
    the product of two half batches that makes the square unbiased, and minibatches do not get it here.
    """

    reads = ("alpha",)

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``J``, of one entry."""
        return {"J": head.scale_gradient()}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``2 α w_e J_e`` for each domain."""
        measured = [answer["J"].astype(np.float64) for answer in answers]
        pulled = [{"J": 2.0 * coefficients.alpha * w * each} for w, each in zip(weights_K, measured, strict=True)]
        squares = np.array([float(each[0]) ** 2 for each in measured])
        return pulled, {"invariance": coefficients.alpha * float(weights_K @ squares)}
