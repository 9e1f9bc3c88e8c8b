"""Binary cross-entropy on one logit: the head of the two-class problems (Colored MNIST)."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from difc_ray.errors import ConfigError
from difc_ray.objectives.losses.base import LOSSES, Loss


@LOSSES.register("bce")
class BinaryCrossEntropy(Loss):
    """``−log σ(z)`` for class 1 and ``−log σ(−z)`` for class 0, z the only logit.

    With s = σ(z): first derivative s − y, second derivative s(1 − s).
    """

    def n_outputs(self, n_classes: int) -> int:
        """One output; needs exactly two classes."""
        if n_classes != 2:
            raise ConfigError(
                f"Loss `bce` needs exactly two classes. Found {n_classes}. Take `loss=cross_entropy` for more."
            )
        return 1

    def value(self, logits_NC: Float[Tensor, "N 1"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Mean over the samples, in nats."""
        return functional.binary_cross_entropy_with_logits(logits_NC[:, 0], labels_N.to(logits_NC.dtype))

    def predictions(self, logits_NC: Float[Tensor, "N 1"]) -> Float[Tensor, "N 2"]:
        """Columns σ(−z) and σ(z); both are exact in the tails, where 1 − σ(z) is not."""
        return torch.sigmoid(torch.cat([-logits_NC, logits_NC], dim=1))

    def residual(self, logits_NC: Float[Tensor, "N 1"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N 1"]:
        """The difference s − y."""
        return torch.sigmoid(logits_NC) - labels_N[:, None].to(logits_NC.dtype)

    def hessian_diagonal(self, logits_NC: Float[Tensor, "N 1"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N 1"]:
        """s(1 − s)."""
        s_NC = torch.sigmoid(logits_NC)
        return s_NC * (1 - s_NC)

    def hessian_product(
        self, logits_NC: Float[Tensor, "N 1"], labels_N: Int[Tensor, " N"], vectors_NC: Float[Tensor, "*M N 1"]
    ) -> Float[Tensor, "*M N 1"]:
        """s(1 − s) u."""
        return self.hessian_diagonal(logits_NC, labels_N) * vectors_NC
