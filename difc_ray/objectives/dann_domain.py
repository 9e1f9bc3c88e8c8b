"""Domain-adversarial training: a discriminator on the features cannot tell which source domain they are from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from difc_ray.objectives.base import OBJECTIVES, Coefficients, Objective, ObjectiveSettings, Vectors
from difc_ray.objectives.curvature import HeadCurvature

WIDTH: Final = 256
"""Size of the discriminator's two hidden layers, DomainBed's default."""


@OBJECTIVES.register("dann_domain")
class DannDomain(Objective):
    """``α Σ_e w_e D_e`` with D_e the discriminator's cross-entropy on domain e: it descends, the featurizer ascends.

    The discriminator, a perceptron with two hidden layers, reads the inputs of the head and tells the source domain. It
    is the model's companion: its parameters are part of θ, in checkpoints and with the optimizer, and every worker has
    them. The gradient is reversed between features and discriminator, so that the alignment row of domain e is
    ``−α w_e ∂D_e`` for the featurizer, ``α w_e ∂D_e`` for the discriminator and zero for the head; its classification
    row is zero for the discriminator, but for `optimizer.l2`. A worker answers D_e, of one entry, which is a mean over
    examples. The penalty's value is that of the discriminator: large where the domains look alike. β is not used.

    There is no function whose gradient the sum of the rows is, as both sides pursue their own. For a rule, the
    discriminator's descent is part of the alignment.

    Source: Ganin et al. 2016, Domain-Adversarial Training of Neural Networks, among source domains as in DomainBed's
    DANN (Gulrajani & Lopez-Paz 2021), whose λ is α, 1 by default.
    Differs from the source: one optimizer with one learning rate and step for both, where DomainBed has two Adams
    (β₁ = 0.5) and alternates steps; α scales the discriminator's gradient too, which Adam undoes; no penalty on the
    discriminator's gradient (0 there too, by default). Weights w_e may differ.
    """

    reads = ("alpha",)

    def __init__(self, settings: ObjectiveSettings, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(settings, options)
        self._discriminator: nn.Module | None = None
        self._domain = 0

    @classmethod
    def companion(cls, features: int, domains: int) -> nn.Module:
        """The discriminator: features to one logit per domain."""
        return nn.Sequential(
            nn.Linear(features, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, domains)
        )

    def join(self, companion: nn.Module, domain: int) -> None:
        """Remembers both; whoever computes has the weights of the step in the module."""
        self._discriminator, self._domain = companion, domain

    def measure(self, head: HeadCurvature, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The discriminator's loss ``D``, of one entry."""
        assert self._discriminator is not None, "a worker joins its discriminator first"
        logits_NK = self._discriminator(_Reversed.apply(head.inputs_ND))
        truth_N = torch.full((len(logits_NK),), self._domain, device=logits_NK.device)
        return {"D": functional.cross_entropy(logits_NK, truth_N).reshape(1)}

    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """``α w_e`` for each domain."""
        losses_K = np.array([float(answer["D"][0]) for answer in answers])
        pulled = [{"D": np.array([coefficients.alpha * weight])} for weight in weights_K]
        return pulled, {"discriminator": coefficients.alpha * float(weights_K @ losses_K)}


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        """The values."""
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        """The gradient reversed."""
        return -gradients[0]
