"""Softmax cross-entropy: one output per class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from difc_ray.errors import ConfigError
from difc_ray.objectives.losses.base import LOSSES, Loss


@LOSSES.register("cross_entropy")
class CrossEntropy(Loss):
    """``−log p_y`` with p = softmax(logits).

    With y the one-hot label: first derivative p − y, second derivative diag(p) − p pᵀ.
    """

    def n_outputs(self, n_classes: int) -> int:
        """One output per class; needs at least two classes."""
        if n_classes < 2:
            raise ConfigError(
                f"Loss `cross_entropy` needs at least two classes. Found {n_classes}. Take a dataset with more classes."
            )
        return n_classes

    def value(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Mean of ``−log p_y``, in nats."""
        return functional.cross_entropy(logits_NC, labels_N)

    def predictions(self, logits_NC: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """The softmax."""
        return torch.softmax(logits_NC, dim=1)

    def residual(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """The difference p − y."""
        one_hot_NC = functional.one_hot(labels_N, logits_NC.shape[1]).to(logits_NC.dtype)
        return torch.softmax(logits_NC, dim=1) - one_hot_NC

    def hessian_diagonal(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """p(1 − p)."""
        p_NC = torch.softmax(logits_NC, dim=1)
        return p_NC * (1 - p_NC)

    def hessian_product(
        self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"], vectors_NC: Float[Tensor, "*M N C"]
    ) -> Float[Tensor, "*M N C"]:
        """The vector p ⊙ (u − ⟨p, u⟩), row by row."""
        p_NC = torch.softmax(logits_NC, dim=1)
        return p_NC * (vectors_NC - (p_NC * vectors_NC).sum(dim=-1, keepdim=True))
