"""What a classification loss offers: its value, and its first two derivatives with respect to the logits.

Shape suffixes: N samples, C outputs of the head, K classes (K = C but for the one-logit loss).

The derivatives are those of the loss of one sample (no 1/N): the closed forms of the head's gradient and Hessian are
made of them. All of them are differentiable by ordinary autograd through the logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from difc_ray.options import NoOptions, options_of
from difc_ray.registry import Registry

LossState = dict[str, np.ndarray]
"""What a loss carries from step to step, by name: small float64 arrays, part of the training state."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """How sure a model is of a set of images without labels; sums, so that parts of the set add up.

    Args:
        gaps_K: Σ (p₁ − p₂) over the samples predicted as class k, with p₁ and p₂ the two largest probabilities.
        counts_K: number of those samples.
    """

    gaps_K: np.ndarray
    counts_K: np.ndarray

    def __add__(self, other: Confusion) -> Confusion:
        return Confusion(gaps_K=self.gaps_K + other.gaps_K, counts_K=self.counts_K + other.counts_K)


class Loss(ABC):
    """A loss on logits; a pure function of what it was made with.

    A loss that changes in the course of a run keeps its memory in a :data:`LossState`, which the coordinator owns:
    :meth:`begin` makes it, :meth:`learn` renews it, :meth:`vectors` says what workers are told at a step, and
    :meth:`with_vectors` is the loss that they compute with.

    Args:
        options: the loss's own options from the configuration (`loss_options`).

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """

    option_type: ClassVar[type[Any]] = NoOptions
    """The dataclass of its options, as ``LOSSES.register(name, options=...)`` sets it."""

    balances: ClassVar[bool] = False
    """Whether it makes up for rare classes."""

    needs_target: bool = False
    """Whether :meth:`learn` is to be told of the target's images, without their labels."""

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.options = options_of(type(self), options, LOSSES, "loss_options")

    def begin(self, counts_K: Int[np.ndarray, " K"], epoch_steps: int, steps: int) -> LossState:
        """The memory at step 0; empty for a loss without one.

        Args:
            counts_K: training examples of each class in all sources together.
            epoch_steps: steps in which the largest source is seen once, >= 1.
            steps: length of the run.
        """
        return {}

    def learns_at(self, state: LossState, step: int) -> bool:
        """Whether :meth:`learn` is to be called before a step."""
        return False

    def learn(self, state: LossState, confusion: Confusion) -> LossState:
        """The memory after a look at the target's images."""
        return state

    def vectors(self, state: LossState, step: int) -> dict[str, np.ndarray]:
        """What workers are told at a step: float32 vectors by name."""
        return {}

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> Loss:
        """This loss with what the coordinator said."""
        return self

    def evaluation_value(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """The loss that evaluations report; without margins and weights, so that it can be compared between runs."""
        return self.value(logits_NC, labels_N)

    def accuracy(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> float:
        """Share of the samples whose class is the most probable one."""
        return float((self.predictions(logits_NC).argmax(1) == labels_N).float().mean())

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
    def hessian_diagonal(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """Diagonal of the second derivative of each sample's loss with respect to its logits, p(1 − p)."""

    @abstractmethod
    def hessian_product(
        self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"], vectors_NC: Float[Tensor, "*M N C"]
    ) -> Float[Tensor, "*M N C"]:
        """Second derivative of each sample's loss with respect to its logits, times that sample's vector."""


LOSSES: Registry[type[Loss]] = Registry("loss")
"""Losses by name; ``LOSSES.get(name)(options)``."""
