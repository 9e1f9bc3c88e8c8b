"""Maximum mean discrepancy: the features of every domain have the same distribution."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from difc_ray.curvature import HeadCurvature
from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, Vectors, pairs_of

WIDTHS: Final = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""γ of the kernel ``k(x, y) = Σ_γ exp(−γ ‖x − y‖²)``."""


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
        examples = self.options.examples
        features = [
            torch.from_numpy(answer["z"].astype(np.float64)).reshape(examples, -1).requires_grad_()
            for answer in answers
        ]
        total = torch.zeros((), dtype=torch.float64)
        own = [mean_kernel(each, each) for each in features]
        for a, b in itertools.combinations(range(len(features)), 2):
            gap = own[a] + own[b] - 2.0 * mean_kernel(features[a], features[b])
            total = total + float(weights_K[a] * weights_K[b]) * gap
        penalty = coefficients.alpha / pairs_of(weights_K) * total
        pulled = torch.autograd.grad(penalty, features)
        return [{"z": each.flatten().numpy()} for each in pulled], {"discrepancy": float(penalty.detach())}

    def coordinator_bytes(self, domains: int) -> int:
        """Distances, their limit and a kernel for each width, all kept for the gradient, of every pair of domains."""
        matrices = domains * (domains + 1) // 2 * (len(WIDTHS) + 2)
        return 8 * matrices * self.options.examples**2


def mean_kernel(one_MD: Float[Tensor, "M D"], other_ND: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """The kernel's mean over all pairs."""
    squares_MN = one_MD.square().sum(1)[:, None] + other_ND.square().sum(1) - 2.0 * one_MD @ other_ND.T
    distances_MN = squares_MN.clamp(min=0.0)
    return torch.stack([torch.exp(-width * distances_MN).mean() for width in WIDTHS]).sum()
