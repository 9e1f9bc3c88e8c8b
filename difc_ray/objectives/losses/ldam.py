"""Cross-entropy with a margin per class: LDAM for imbalance, and DIFC, whose margins follow the target's confusion.

Shape suffixes: N samples, K classes.

With z the logits of a sample of class y, Δ_y the margin and w_y the weight of its class, and z' = z but for
z'_y = z_y − Δ_y, the loss of the sample is ``w_y · −log softmax(z')_y``. So the closed forms are those of the softmax
at z', times w_y.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from difc_ray.objectives.losses.base import LOSSES, Confusion, Loss, LossState
from difc_ray.objectives.losses.cross_entropy import CrossEntropy
from difc_ray.options import Decay, NonNegative, UnitInterval


@dataclass(frozen=True, kw_only=True)
class LdamOptions:
    """Options of `loss=ldam`."""

    max_margin: NonNegative = 0.3
    """Margin of the rarest class, >= 0. Source: DIFC, section 5.2 (LDAM: 0.5, with logits of cosines times 30)."""
    reweight_from: UnitInterval = 0.5
    """Share of the run, in [0, 1], after which classes are weighted; 1: never."""
    beta: Decay = 0.9999
    """β of the effective number of examples ``(1 − β^N) / (1 − β)``, in [0, 1); 0: equal weights, towards 1: 1/N."""
    confusion: bool = False
    """Whether margins follow the confusion on the target's images."""
    confusion_from: UnitInterval = 0.5
    """Share of the run, in [0, 1], after which they do; 1: never."""
    bump: NonNegative = 0.02
    """ε >= 0, what is added to the margin of the most confused class. Source: DIFC, Eq. 6."""


@dataclass(frozen=True, kw_only=True)
class DifcOptions(LdamOptions):
    """Options of `loss=difc`: those of `ldam`, with `confusion` on."""

    confusion: bool = True
    """Whether margins follow the confusion on the target's images."""


def ldam_margins(counts_K: Int[np.ndarray, " K"] | Sequence[int], max_margin: float) -> Float[np.ndarray, " K"]:
    """``Δ_k = γ / N_k^(1/4)``, with γ such that the rarest class that there is has ``max_margin``; 0 for absent ones.

    Args:
        counts_K: training examples of each class, at least one > 0.
        max_margin: >= 0.

    Source: Cao et al. 2019 (LDAM), Eq. 11; the largest margin as in DIFC (Sreenivas et al. 2022), Eq. 3.

    >>> ldam_margins([1259, 262, 713, 4705, 1885, 682, 2465], 0.3).round(4).tolist()
    [0.2026, 0.3, 0.2336, 0.1457, 0.1832, 0.2362, 0.1713]
    """
    counts = np.asarray(counts_K, dtype=np.float64)
    assert counts.max() > 0, counts_K
    rarest = counts[counts > 0].min()
    margins = max_margin * (rarest / np.maximum(counts, 1.0)) ** 0.25
    return np.where(counts > 0, margins, 0.0)


def class_weights(counts_K: Int[np.ndarray, " K"] | Sequence[int], beta: float) -> Float[np.ndarray, " K"]:
    """``w_k ∝ (1 − β) / (1 − β^N_k)``, scaled so that the mean over the training examples is 1; 0 for absent classes.

    Args:
        counts_K: training examples of each class, at least one > 0.
        beta: in [0, 1).

    Source: Cui et al. 2019, Eq. 4, as LDAM's deferred re-weighting uses it.
    Differs from the source: there the weights average to 1 over the classes and a batch is divided by the sum of its
    own weights; here the scale is the same in all batches, so that the loss stays a mean over samples.
    """
    counts = np.asarray(counts_K, dtype=np.float64)
    present = counts > 0
    raw = np.where(present, (1 - beta) / (1 - beta ** np.maximum(counts, 1.0)), 0.0)
    weights: np.ndarray = raw * (counts.sum() / (raw * counts).sum())
    return weights


def confusion_of(probabilities_NK: Float[Tensor, "N K"]) -> Confusion:
    """The sums of :class:`Confusion` over some samples, in float64."""
    n_classes = probabilities_NK.shape[1]
    largest = probabilities_NK.double().topk(2, dim=1)
    predicted_N = largest.indices[:, 0].cpu().numpy()
    gaps_N = (largest.values[:, 0] - largest.values[:, 1]).cpu().numpy()
    gaps_K = np.zeros(n_classes)
    np.add.at(gaps_K, predicted_N, gaps_N)  # one after the other: the same bits everywhere
    return Confusion(gaps_K=gaps_K, counts_K=np.bincount(predicted_N, minlength=n_classes).astype(np.float64))


def confusion_scores(confusion: Confusion) -> Float[np.ndarray, " K"]:
    """``conf_k = 1 / mean(p₁ − p₂)`` over the samples predicted as k; NaN for a class that is never predicted.

    Source: DIFC, Eq. 5.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(confusion.counts_K / confusion.gaps_K)


def confusion_margins(
    base_K: Float[np.ndarray, " K"], scores_K: Float[np.ndarray, " K"], bump: float
) -> Float[np.ndarray, " K"]:
    """``Δ'_C[j] = Δ_C[j] + ε / 2^(j−1)``, C the classes in the order of decreasing confusion, j from 1.

    A class without a score keeps its margin and has no place in the order; of equal scores the lower class number comes
    first.

    Args:
        base_K: the margins Δ, to which the bumps are added anew every time.
        scores_K: confusion scores, NaN for none.
        bump: ε >= 0.

    Source: DIFC (Sreenivas et al. 2022), Eq. 6.
    Differs from the source: which leaves open what becomes of a class that is never predicted.

    >>> confusion_margins(np.zeros(4), np.array([2.0, np.nan, 5.0, 1.5]), 0.02).tolist()
    [0.01, 0.0, 0.02, 0.005]
    """
    margins = base_K.copy()
    scored = np.flatnonzero(~np.isnan(scores_K))
    ranked = scored[np.argsort(-scores_K[scored], kind="stable")]
    margins[ranked] += bump / 2.0 ** np.arange(len(ranked))
    return margins


@LOSSES.register("ldam", options=LdamOptions)
class Ldam(CrossEntropy):
    """Softmax cross-entropy with label-distribution-aware margins and, later in the run, class weights.

    Source: Cao et al. 2019 (LDAM with deferred re-weighting), as in DIFC's Eq. 3.
    Differs from the source: linear head and no scale on the logits, as DIFC has it; counts over all source domains.
    """

    balances = True

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(options)
        self.needs_target = self.options.confusion
        self._margins_K: Tensor | None = None
        self._weights_K: Tensor | None = None

    def begin(self, counts_K: Int[np.ndarray, " K"], epoch_steps: int, steps: int) -> LossState:
        """Base margins, class weights, the margins in use, and the steps at which things change."""
        base_K = ldam_margins(counts_K, self.options.max_margin)
        return {
            "base": base_K,
            "margins": base_K.copy(),
            "weights": class_weights(counts_K, self.options.beta),
            "reweight_from": np.array([_first_step(self.options.reweight_from, steps)]),
            "confusion_from": np.array([_first_step(self.options.confusion_from, steps)]),
            "epoch_steps": np.array([epoch_steps], dtype=np.float64),
        }

    def learns_at(self, state: LossState, step: int) -> bool:
        """Once per epoch, from `confusion_from` on."""
        since = step - float(state["confusion_from"][0])
        return self.needs_target and since >= 0 and since % float(state["epoch_steps"][0]) == 0

    def learn(self, state: LossState, confusion: Confusion) -> LossState:
        """New margins from the base ones."""
        return state | {"margins": confusion_margins(state["base"], confusion_scores(confusion), self.options.bump)}

    def vectors(self, state: LossState, step: int) -> dict[str, np.ndarray]:
        """The margins, and the weights once they count."""
        vectors = {"margins": state["margins"].astype(np.float32)}
        if step >= float(state["reweight_from"][0]):
            vectors["weights"] = state["weights"].astype(np.float32)
        return vectors

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> Loss:
        """This loss with margins and weights."""
        loss = type(self).__new__(type(self))
        loss.__dict__.update(self.__dict__)
        loss._margins_K, loss._weights_K = vectors.get("margins"), vectors.get("weights")
        return loss

    def value(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Mean of ``w_y · −log softmax(z')_y``, in nats."""
        losses_N = functional.cross_entropy(self._shifted(logits_NC, labels_N), labels_N, reduction="none")
        return (losses_N * self._weights(logits_NC, labels_N)).mean()

    def evaluation_value(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """The plain cross-entropy."""
        return super().value(logits_NC, labels_N)

    def residual(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """``w_y (p' − y)``."""
        shifted_NC = self._shifted(logits_NC, labels_N)
        return self._weights(logits_NC, labels_N)[:, None] * super().residual(shifted_NC, labels_N)

    def hessian_diagonal(self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"]) -> Float[Tensor, "N C"]:
        """``w_y p'(1 − p')``."""
        shifted_NC = self._shifted(logits_NC, labels_N)
        return self._weights(logits_NC, labels_N)[:, None] * super().hessian_diagonal(shifted_NC, labels_N)

    def hessian_product(
        self, logits_NC: Float[Tensor, "N C"], labels_N: Int[Tensor, " N"], vectors_NC: Float[Tensor, "*M N C"]
    ) -> Float[Tensor, "*M N C"]:
        """``w_y p' ⊙ (u − ⟨p', u⟩)``."""
        shifted_NC = self._shifted(logits_NC, labels_N)
        return self._weights(logits_NC, labels_N)[:, None] * super().hessian_product(shifted_NC, labels_N, vectors_NC)

    def _shifted(self, logits_NC: Tensor, labels_N: Tensor) -> Tensor:
        """Z'."""
        if self._margins_K is None:
            return logits_NC
        one_hot_NC = functional.one_hot(labels_N, logits_NC.shape[1]).to(logits_NC.dtype)
        return logits_NC - one_hot_NC * self._margins_K.to(logits_NC)

    def _weights(self, logits_NC: Tensor, labels_N: Tensor) -> Float[Tensor, " N"]:
        """w_y of each sample."""
        if self._weights_K is None:
            return torch.ones(len(labels_N), dtype=logits_NC.dtype, device=logits_NC.device)
        return self._weights_K.to(logits_NC)[labels_N]


@LOSSES.register("difc", options=DifcOptions)
class Difc(Ldam):
    """LDAM whose margins follow the confusion on the target's images, without their labels: `confusion` is on.

    Source: Sreenivas et al. 2022 (DIFC), Eqs. 3-6 and Algorithm 1.
    Differs from the source: the margins are renewed once per epoch, always from the base ones; the images are those of
    the target's train split.
    """


def _first_step(share: float, steps: int) -> float:
    """The step at which a share of the run is over; infinity for the whole, also of a run that is made longer."""
    return math.inf if share >= 1 else float(math.ceil(share * steps))
