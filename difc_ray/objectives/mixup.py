"""Mixup between domains: every example is blended with one of another source domain, and so are their losses.

Shape suffixes: K domains; N samples, C outputs, M as in :mod:`difc_ray.objectives.losses.base`.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from difc_ray.determinism import generator
from difc_ray.objectives.base import OBJECTIVES, Pairing
from difc_ray.objectives.erm import Erm
from difc_ray.objectives.losses import Loss


@OBJECTIVES.register("mixup")
class Mixup(Erm):
    """``Σ_e w_e [λ L(f(x), y_e) + (1 − λ) L(f(x), y_p)]`` with ``x = λ x_e + (1 − λ) x_p``.

    Two batches are blended place by place. In a step the K domains stand in a random circle, and p is the next one
    after e. λ is drawn from Beta(a, a) for every domain and step, with a = `alignment.mixup`. A worker makes its
    partner's batch itself, as the partner would: it has the data of all sources, and nothing more travels. There is no
    penalty. The loss that is reported, and that rules see, is that of the mixed batch; the accuracy is that of its
    blended pictures against ``y_e`` and ``y_p``, weighted as the loss is.

    Source: Yan et al. 2020, Improve Unsupervised Domain Adaptation with Mixup Training (arXiv 2001.00677), as in
    DomainBed (Gulrajani & Lopez-Paz 2021), whose a is 0.2.
    Differs from the source: weights w_e may differ; any loss, where DomainBed has cross-entropy. As in DomainBed there
    is no consistency term, which needs a target.
    """

    mixes = True
    reads = ("mixup",)

    def details(self) -> list[str]:
        """The distribution of the shares."""
        return [f"a {self.settings.mixup:g}"]

    def pairing(self, seed: int, step: int, domains: int) -> Pairing:
        """The random circle, and the shares of its members."""
        rng = generator(seed, "mixup", step=step)
        circle_K = rng.permutation(domains)
        partners_K = np.empty(domains, dtype=np.int64)
        partners_K[circle_K] = np.roll(circle_K, -1)
        concentration = self.settings.mixup
        return Pairing(partners_K=partners_K, shares_K=rng.beta(concentration, concentration, size=domains))


class MixedLoss(Loss):
    """``λ L(z, y) + (1 − λ) L(z, y')`` of another loss, with labels y' of its own for the same samples.

    All derivatives with respect to the logits are mixed alike, so the closed forms of the head hold.

    Args:
        loss: the loss L.
        share: λ in [0, 1].
        others_N: the labels y'.
    """

    def __init__(self, loss: Loss, share: float, others_N: Int[Tensor, " N"]) -> None:
        self.loss, self.share, self.others_N = loss, share, others_N

    def n_outputs(self, n_classes: int) -> int:
        """Those of the loss."""
        return self.loss.n_outputs(n_classes)

    def predictions(self, logits_NC: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Those of the loss."""
        return self.loss.predictions(logits_NC)

    def value(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """The mean over the samples."""
        return self._mixed(self.loss.value(logits_NC, labels_N), self.loss.value(logits_NC, self.others_N))

    def residual(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """First derivative."""
        return self._mixed(self.loss.residual(logits_NC, labels_N), self.loss.residual(logits_NC, self.others_N))

    def hessian_diagonal(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Diagonal of the second derivative."""
        diagonal = self.loss.hessian_diagonal
        return self._mixed(diagonal(logits_NC, labels_N), diagonal(logits_NC, self.others_N))

    def hessian_product(
        self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"], vectors_NC: Float[Tensor, "*M N C"]
    ) -> Float[Tensor, "*M N C"]:
        """Second derivative times a vector."""
        product = self.loss.hessian_product
        return self._mixed(product(logits_NC, labels_N, vectors_NC), product(logits_NC, self.others_N, vectors_NC))

    def accuracy(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> float:
        """``λ`` times the share for which y is predicted, and ``1 − λ`` times that for y'."""
        one, other = (self.loss.accuracy(logits_NC, given_N) for given_N in (labels_N, self.others_N))
        return self.share * one + (1.0 - self.share) * other

    def _mixed(self, one: Tensor, other: Tensor) -> Tensor:
        return self.share * one + (1.0 - self.share) * other
