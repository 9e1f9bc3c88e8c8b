"""Empirical risk minimisation: the classification loss alone, the honest baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final

import numpy as np
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors
from difc_ray.objectives.curvature import HeadCurvature

BASELINE: Final = "erm"
"""The objective without any penalty."""


@OBJECTIVES.register(BASELINE)
class Erm(Objective):
    """``Σ_e w_e L_e(θ)``: no statistics, no penalty."""

    has_penalty = False
    reads: ClassVar[tuple[str, ...]] = ()

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Nothing to measure."""
        return {}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """Nothing to pull back."""
        return [{} for _ in answers], {}
