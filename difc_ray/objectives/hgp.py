"""Alignment of Hessian-gradient products and gradients (the "HGP" penalty)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.alignment import cotangents, deviations, spread, weighted_mean
from difc_ray.curvature import HeadCurvature
from difc_ray.objectives.base import (
    OBJECTIVES,
    Coefficients,
    Measurement,
    Objective,
    ObjectiveOptions,
    Vectors,
    gradient_term,
)


@OBJECTIVES.register("hgp")
class Hgp(Objective):
    """``α Σ_e w_e ‖h_e − H̄ ḡ‖² + β Σ_e w_e ‖g_e − ḡ‖²`` with ``h_e = H_e g_e`` on the head.

    The mean term is a product of means, ``H̄ ḡ = Σ_e w_e H_e ḡ``, not the mean of the h_e, so the deviations do not sum
    to zero and the path through it carries a gradient:

    * `detach_mean: true` (default): H̄ ḡ is a constant. Exact for that detached objective (the released DomainBed
      class); one more exchange (ḡ down, H_e ḡ up).
    * `detach_mean: false`: the gradient of the formula as printed (the released Colored MNIST scripts); two more
      exchanges. With ``r_e = 2 α w_e (h_e − H̄ḡ)`` and ``s = Σ_e r_e``, worker e pulls back
      ``⟨r_e, h_e⟩ − w_e (⟨s, H_e ḡ⟩ + ⟨H̄ s, g_e⟩)``.

    Source: Hemati et al., "Understanding Hessian Alignment for Domain Generalization", ICCV 2023, L_HGP.
    Differs from the source: products by the closed form of the head instead of the norm trick, which is undefined at a
    zero gradient; weights w_e may differ.
    """

    def __init__(self, options: ObjectiveOptions) -> None:
        super().__init__(options)
        self.exchanges = 2 if options.detach_mean else 3

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``g`` and ``h = H g``, both differentiable."""
        gradient = head.gradient()
        return {"g": gradient, "h": head.hessian_product(gradient)}

    def respond(self, measurement: Measurement, exchange: int, broadcast: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Exchange 1: ``q = H_e ḡ``; exchange 2: ``t = H_e s``."""
        name, vector = ("q", "mean_g") if exchange == 1 else ("t", "s")
        return {name: measurement.head.hessian_product(broadcast[vector])}

    def broadcast(self, exchange: int, answers: Sequence[Vectors], weights_K: np.ndarray) -> Vectors:
        """Before exchange 1 ḡ, before exchange 2 the direction of s (α enters with the cotangents)."""
        if exchange == 1:
            return {"mean_g": weighted_mean(weights_K, [answer["g"] for answer in answers])}
        return {"s": weighted_mean(weights_K, self._deviations(answers, weights_K))}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``r_e`` for h and the β-term for g; without detachment also those of q and, through g, of ḡ."""
        deviation_K = self._deviations(answers, weights_K)
        pulled_h = cotangents(coefficients.alpha, weights_K, deviation_K)
        pulled_g, term_g = gradient_term(answers, weights_K, coefficients.beta)
        pulled = [{"h": h, "g": g} for h, g in zip(pulled_h, pulled_g, strict=True)]
        if not self.options.detach_mean:
            total_S = np.sum(pulled_h, axis=0)
            product_S = 2.0 * coefficients.alpha * weighted_mean(weights_K, [answer["t"] for answer in answers])
            for weight, vectors in zip(weights_K, pulled, strict=True):
                vectors["q"] = -weight * total_S
                vectors["g"] = vectors["g"] - weight * product_S
        return pulled, {"hessian": coefficients.alpha * spread(weights_K, deviation_K), "gradient": term_g}

    @staticmethod
    def _deviations(answers: Sequence[Vectors], weights_K: np.ndarray) -> list[np.ndarray]:
        """``h_e − H̄ ḡ`` in float64."""
        return deviations([a["h"] for a in answers], weighted_mean(weights_K, [a["q"] for a in answers]))
