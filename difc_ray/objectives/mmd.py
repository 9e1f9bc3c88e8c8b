"""Maximum mean discrepancy: the features of every domain have the same distribution."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors, pairs_of
from difc_ray.objectives.curvature import HeadCurvature

WIDTHS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""γ of the kernel ``k(x, y) = Σ_γ exp(−γ ‖x − y‖²)``."""

BLOCK: Final = 2**18
"""Pairs of examples that are in hand at a time."""


@OBJECTIVES.register("mmd")
class Mmd(Objective):
    """``α`` times the mean over pairs of domains of ``k̄(a, a) + k̄(b, b) − 2 k̄(a, b)``.

    k̄ is the mean of the kernel over all pairs of examples of two batches, at the inputs of the head. It is made of
    pairs of examples of different domains: no mean over examples says it, so a worker sends the features themselves
    (N · d numbers, which tell more of its examples than the statistics of the other objectives), and several workers
    cannot share a batch. The coordinator answers with the gradient of the penalty with respect to them. β is not used.

    Source: Li et al. 2018, Domain Generalization with Adversarial Feature Learning, as in DomainBed (Gulrajani &
    Lopez-Paz 2021), which has this kernel and no adversary.
    Differs from the source: pairs have the weights w_a w_b (there all the same).
    """

    reads = ("alpha",)
    divisible = False

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The features ``z``, example by example."""
        return {"z": head.inputs_ND.flatten()}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """The gradient of the penalty with respect to the features."""
        features = [answer["z"].astype(np.float64).reshape(self.settings.examples, -1) for answer in answers]
        scale = coefficients.alpha / pairs_of(weights_K)
        pulled, total = [np.zeros_like(each) for each in features], 0.0
        for a, b in itertools.combinations_with_replacement(range(len(features)), 2):
            others = float(sum(weights_K) - weights_K[a])  # a domain's own kernel is in its pair with every other
            factor = scale * float(weights_K[a]) * (others if a == b else -2.0 * float(weights_K[b]))
            mean, by_one, by_other = mean_kernel(features[a], features[b])
            total += factor * mean
            pulled[a] += factor * by_one
            pulled[b] += factor * by_other
        return [{"z": each.flatten()} for each in pulled], {"discrepancy": total}


def mean_kernel(
    one_MD: Float[np.ndarray, "M D"], other_ND: Float[np.ndarray, "N D"]
) -> tuple[float, Float[np.ndarray, "M D"], Float[np.ndarray, "N D"]]:
    """The kernel's mean over all pairs, and its derivatives with respect to both sets of points.

    ``∂k(x, y)/∂x = −2 Σ_γ γ exp(−γ ‖x − y‖²) (x − y)``. A few rows at a time: no M × N matrix is held.
    """
    one, other = torch.from_numpy(one_MD), torch.from_numpy(other_ND)
    squares_N, pairs = other.square().sum(1), len(one) * len(other)
    by_one, by_other, total = torch.empty_like(one), torch.zeros_like(other), 0.0
    rows = max(1, BLOCK // len(other))
    for start in range(0, len(one), rows):
        part = one[start : start + rows]
        distances = (part.square().sum(1)[:, None] + squares_N - 2.0 * part @ other.T).clamp_(min=0.0)
        pull = torch.zeros_like(distances)
        for width in WIDTHS:
            kernel = torch.exp(-width * distances)
            total += float(kernel.sum())
            pull.add_(kernel, alpha=width)
        by_one[start : start + rows] = pull @ other - pull.sum(1)[:, None] * part
        if one_MD is not other_ND:
            by_other += pull.T @ part - pull.sum(0)[:, None] * other
    if one_MD is other_ND:  # the kernel is symmetric
        by_other = by_one
    return total / pairs, (2.0 / pairs * by_one).numpy(), (2.0 / pairs * by_other).numpy()
