"""A memory around another rule: weights averaged over the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from difc_ray.errors import ConfigError
from difc_ray.harmonizers.base import (
    HARMONIZERS,
    GramStatistics,
    Harmonization,
    Harmonizer,
    State,
    check_memory,
    check_number,
    make_harmonizer,
)

_INNER = "inner."


@HARMONIZERS.register("ema")
@dataclass(frozen=True, kw_only=True)
class Smoothed(Harmonizer):
    """The exponential moving average of another rule's weights.

    ``m_t = β m_{t-1} + (1 - β) α_t``, weights ``m_t / (1 - β^t)``: a weighted mean of the α so far, so sums and signs
    that all α have are kept (a simplex stays one). It loses the other rule's guarantee at step t: the conflict
    metrics are those of the smoothed direction, and the other rule's own diagnostics come as ``inner_…``.

    State: ``weights`` (n,) the sum m, ``steps`` (1,), and the other rule's state under ``inner.``.

    Source:
        Su Jianlin 2022 (spaces.ac.cn/archives/8896, annotated), Eq. 82; Zhou et al. 2022, On the Convergence
        of Stochastic Multi-Objective Gradient Manipulation and Beyond (CR-MOGM).

    Differs from the source:
        Divided by ``1 - β^t``: without it the unstated start value biases the first steps.
    """

    inner: str = "mgda"
    """The rule whose weights are averaged: a name of a rule."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its options."""
    decay: float = 0.9
    """β in [0, 1): 0 is the other rule itself."""

    name = "ema"
    summary = "another rule's weights, averaged over the steps (loses its guarantee)"
    guarantee = "no"
    source = "Su Jianlin 2022 (annotated), Eq. 82; Zhou et al. 2022 (CR-MOGM)"
    cost = "the other rule's"

    def __post_init__(self) -> None:
        check_number(self.name, "decay", self.decay, 0.0, 1.0 - 1e-9)
        if HARMONIZERS.get(self.inner).needs_metric:
            raise ConfigError(f"`inner` of `ema` must be a rule on plain rows. Found `inner = {self.inner}`.")
        _ = self.rule  # its options are checked now, not at the first step

    @cached_property
    def rule(self) -> Harmonizer:
        """The rule inside."""
        return make_harmonizer(self.inner, self.options)

    def default_weights(self, n: int) -> npt.NDArray[np.float64]:
        """Those of the rule inside."""
        return self.rule.default_weights(n)

    def init(self, n: int) -> State:
        """Nothing averaged yet."""
        inside = {_INNER + name: value for name, value in self.rule.init(n).items()}
        return {"weights": np.zeros(n), "steps": np.zeros(1), **inside}

    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """The smoothed weights, and the conflict metrics of their direction.

        Raises:
            CheckpointError: the state is of another number of rows.
        """
        stats = self.checked(stats)
        before_N = check_memory(self.name, "weights", state["weights"], len(stats.weights_N))
        inside = {name.removeprefix(_INNER): value for name, value in state.items() if name.startswith(_INNER)}
        decision = self.rule.update(stats, inside, rng)
        sums_N = self.decay * before_N + (1.0 - self.decay) * decision.weights
        steps = state["steps"] + 1.0
        after = {"weights": sums_N, "steps": steps}
        after |= {_INNER + name: value for name, value in decision.state.items()}
        inner = {f"inner_{name}": value for name, value in decision.diagnostics.items()}
        return self.answer(stats, sums_N / (1.0 - self.decay ** float(steps[0])), after, inner)
