"""What a classification loss offers: its value, and its first two derivatives with respect to the logits.

Shape suffixes: N samples, C outputs of the head, K classes (K = C but for the one-logit loss).

The derivatives are those of the loss of one sample (no 1/N): the closed forms of the head's gradient and Hessian are
made of them. All of them are differentiable by ordinary autograd through the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from jaxtyping import Float, Int
from torch import Tensor

from difc_ray.registry import Registry


class Loss(ABC):
    """A loss on logits. Stateless."""

    @abstractmethod
    def n_outputs(self, n_classes: int) -> int:
        """Outputs that the head needs for that many classes.

        Raises:
            ConfigError: the loss is not defined for that many classes.
        """

    @abstractmethod
    def value(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """The mean loss over the samples, a scalar.

        Args:
            logits_NC: outputs of the head.
            labels_N: class numbers.
        """

    @abstractmethod
    def predictions(self, logits_NC: Float[Tensor, "N C"]) -> Float[Tensor, "N K"]:
        """Class probabilities, rows sum to 1."""

    @abstractmethod
    def residual(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """First derivative of each sample's loss with respect to its logits, p − y."""

    @abstractmethod
    def hessian_diagonal(self, logits_NC: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        """Diagonal of the second derivative of each sample's loss with respect to its logits, p(1 − p)."""

    @abstractmethod
    def hessian_product(
        self, logits_NC: Float[Tensor, "N C"], vectors_NC: Float[Tensor, "*M N C"]
    ) -> Float[Tensor, "*M N C"]:
        """Second derivative of each sample's loss with respect to its logits, times that sample's vector."""


LOSSES: Registry[type[Loss]] = Registry("loss")
"""Losses by name; ``LOSSES.get(name)()``."""
