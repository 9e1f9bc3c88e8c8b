"""Gradient alignment alone: the β-term of the Hessian alignment penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors, gradient_term
from difc_ray.objectives.curvature import Curvature


@OBJECTIVES.register("gradient")
class Gradient(Objective):
    """``β Σ_e w_e ‖g_e − ḡ‖²`` on the head's gradients; α is not used.

    Source: Hemati et al., ICCV 2023, ablation "gradient only".
    """

    scopes = ("head", "all")
    reads = ("beta",)

    def measure(self, head: Curvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The head's gradient ``g``."""
        return {"g": head.gradient()}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``2 β w_e (g_e − ḡ)`` for each domain."""
        pulled, term = gradient_term(answers, weights_K, coefficients.beta)
        return [{"g": vector} for vector in pulled], {"gradient": term}
