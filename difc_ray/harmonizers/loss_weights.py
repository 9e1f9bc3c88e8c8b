"""Rules that look at the losses only; gradients may conflict as they like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from difc_ray.errors import NumericError
from difc_ray.harmonizers.base import (
    HARMONIZERS,
    GramStatistics,
    Harmonization,
    Harmonizer,
    State,
    check_memory,
    check_number,
)


def losses_of(rule: str, stats: GramStatistics) -> np.ndarray:
    """The losses, checked to be >= 0.

    Raises:
        NumericError: a loss is negative.
    """
    assert stats.losses_N is not None, "checked() makes sure of it"
    if (stats.losses_N < 0.0).any():
        raise NumericError(
            f"The losses for `{rule}` must not be negative. Found {stats.losses_N.tolist()}. Take another rule for a "
            "loss without a lower bound of zero."
        )
    return stats.losses_N


@dataclass(frozen=True, kw_only=True)
class LossDriven(Harmonizer):
    """Base of the rules whose weights follow the losses, for any number of rows."""

    guarantee = "no"
    cost = "n"
    needs_losses = True


@dataclass(frozen=True, kw_only=True)
class LearnsFromLosses(LossDriven):
    """Base of those that remember a number per row, which starts at zero and moves at a `rate`."""

    memory: ClassVar[str]
    """The name of these numbers in the state."""

    rate: float

    def __post_init__(self) -> None:
        check_number(self.name, "rate", self.rate, 1e-9, 1.0)

    def init(self, n: int) -> State:
        """Zero for every row."""
        return {self.memory: np.zeros(n)}

    def remembered(self, stats: GramStatistics, state: State) -> np.ndarray:
        """The number of every row.

        Raises:
            CheckpointError: the state is of another number of rows.
        """
        return check_memory(self.name, self.memory, state[self.memory], len(stats.weights_N))


@HARMONIZERS.register("loss_proportional")
@dataclass(frozen=True, kw_only=True)
class LossProportional(LossDriven):
    """Weights proportional to the losses: ``w_i L_i Σw / Σ w_j L_j``; the base weights where all losses are zero.

    Source:
        Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 86.

    Differs from the source:
        It calls this GradNorm, which it is not: GradNorm trains weights until the gradients' *lengths* follow the
        losses' relative pace.
    """

    name = "loss_proportional"
    summary = "weights proportional to the losses"
    source = "Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 86"
    claims = frozenset({"scale"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The formula."""
        stats = self.checked(stats)
        shares_N = stats.weights_N * losses_of(self.name, stats)
        total = float(shares_N.sum())
        weights_N = shares_N * (float(stats.weights_N.sum()) / total) if total > 0.0 else stats.weights_N.copy()
        return self.answer(stats, weights_N, state)


@HARMONIZERS.register("uncertainty")
@dataclass(frozen=True, kw_only=True)
class Uncertainty(LearnsFromLosses):
    """Weights ``w_i / σ_i²`` with variances that learn from the losses.

    With ``s_i = log σ_i²``, every step follows the weights of the present s and then descends ``e^{-s} L + s``:
    ``s_i += rate · (r - 1) / max(1, r)``, ``r = L_i e^{-s_i}``. It rests at ``σ_i² = L_i``, weights ``w_i / L_i``. It
    starts at ``s = 0``, the base weights; ``|s|`` is kept below 10.

    State: ``log_variance`` (n,).

    Source:
        Kendall et al. 2018, Multi-Task Learning Using Uncertainty (arXiv 1705.07115);
        Su Jianlin 2022 (annotated), Eq. 87.

    Differs from the source:
        Twice Eq. 87, so that σ = 1 gives the base weights and not half of them; the step is cut to ``rate``, so that
        a large loss does not throw s far past its rest. Needs losses >= 0.
    """

    rate: float = 0.025
    """Largest change of s in one step, in (0, 1]."""

    name = "uncertainty"
    memory = "log_variance"
    summary = "weights 1/σ² with variances learned from the losses (homoscedastic uncertainty)"
    source = "Kendall et al. 2018 (arXiv 1705.07115)"
    claims = frozenset({"scale", "base"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """Weights of the present variances; the variances after this step's losses.

        Raises:
            CheckpointError: the state is of another number of rows.
        """
        stats = self.checked(stats)
        s_N = self.remembered(stats, state)
        ratio_N = losses_of(self.name, stats) * np.exp(-s_N)
        moved_N = s_N + self.rate * (ratio_N - 1.0) / np.maximum(1.0, ratio_N)
        after = {self.memory: np.clip(moved_N, -10.0, 10.0)}
        return self.answer(stats, stats.weights_N * np.exp(-s_N), after)


@HARMONIZERS.register("group_dro")
@dataclass(frozen=True, kw_only=True)
class GroupDro(LearnsFromLosses):
    """Weights that grow where the loss is large: ``q_i ← q_i e^{rate · L_i}``, scaled to the sum of the base weights.

    q starts at the base weights. A step has the weights that follow its own losses.

    State: ``exponent`` (n,), the sums of ``rate · L_i`` less the largest of them.

    Source:
        Sagawa et al. 2020, Distributionally Robust Neural Networks for Group Shifts (arXiv 1911.08731), Algorithm 1;
        DomainBed's GroupDRO, whose η is ``rate``.

    Differs from the source:
        q starts at the base weights (there uniform), and is kept as logarithms, which do not overflow.
    """

    rate: float = 0.01
    """η, in (0, 1]."""

    name = "group_dro"
    memory = "exponent"
    summary = "weights that grow exponentially with the losses (group DRO)"
    source = "Sagawa et al. 2020 (arXiv 1911.08731)"
    claims = frozenset({"scale"})

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The weights after this step's losses.

        Raises:
            CheckpointError: the state is of another number of rows.
        """
        stats = self.checked(stats)
        assert stats.losses_N is not None, "checked() makes sure of it"
        grown_N = self.remembered(stats, state) + self.rate * stats.losses_N
        grown_N = grown_N - grown_N.max()
        shares_N = stats.weights_N * np.exp(grown_N)
        weights_N = shares_N * (float(stats.weights_N.sum()) / float(shares_N.sum()))
        return self.answer(stats, weights_N, {self.memory: grown_N})
