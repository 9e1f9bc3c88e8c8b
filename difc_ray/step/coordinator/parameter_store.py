"""Where θ, the optimizer and the rows of a step live: with the coordinator, or with every domain.

Shape suffixes: K domains, P parameters, S entries of the head, N raw rows (K or 2K).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from difc_ray.config import Config, metric_kind
from difc_ray.objectives.spread import weighted_mean
from difc_ray.step.coordinator.protocols import Domains, ReplicatedDomains, Update
from difc_ray.step.coordinator.rows import raw_rows
from difc_ray.step.coordinator.state import TrainState
from difc_ray.step.curvature_metric import Flatness, combine_behind_head, gram_behind_head
from difc_ray.step.optimizer import FlatOptimizer, learning_rate, resets_at
from difc_ray.step.worker import ModelState, Rows, bad_rows
from difc_ray.vectors import ParameterLayout, combine, gram


@dataclass(frozen=True, kw_only=True)
class RowSpace:
    """The rows as a rule needs them: their inner products, and how weights become an update.

    Args:
        gram: (N, N), or (2N, 2N) of the rows and what a metric makes of them.
        move: weights of all those rows -> the update is taken; returns the learning rate.
    """

    gram: np.ndarray
    move: Callable[[np.ndarray], float]


@runtime_checkable
class ParameterStore(Protocol):
    """Where the parameters θ, the optimizer and the rows of a step are kept."""

    def model_state(self, loss_vectors: Mapping[str, np.ndarray] | None = None) -> ModelState:
        """What workers are told at the start of a step: the model, and the vectors of the loss."""

    def row_space(self, replies: Sequence[Rows], domains: Domains) -> RowSpace | None:
        """The rows of the step in hand; None where they are not finite."""

    def bad_row(self, replies: Sequence[Rows]) -> str:
        """Names domain, row and parameter of the first non-finite entry."""

    def settle(self) -> dict[str, float]:
        """After the update: keeps what was learnt of the curvature, and returns diagnostics by name."""


class CentralStore:
    """θ, the optimizer and the rows in the process that takes the step: engine `inline`, transport `object_store`.

    Args:
        config: the run's configuration.
        layout: the model's parameters.
        weights_K: the domains' weights.
        state: the training state, changed in place.
    """

    def __init__(self, config: Config, layout: ParameterLayout, weights_K: np.ndarray, state: TrainState) -> None:
        self.config, self.layout, self.weights_K, self.state = config, layout, weights_K, state
        self.flatness = Flatness(config, layout, weights_K, state.curvature) if metric_kind(config) else None
        self.optimizer = FlatOptimizer(config.optimizer, config.steps, state.theta_P, state.optimizer, layout)

    def model_state(self, loss_vectors: Mapping[str, np.ndarray] | None = None) -> ModelState:
        """Parameters and buffers over the memory of the training state."""
        return self.state.model_state(loss_vectors)

    def row_space(self, replies: Sequence[Rows], domains: Domains) -> RowSpace | None:
        """The rows, and behind a metric those that it adds."""
        rows = raw_rows(replies)
        if self.flatness is None:
            return RowSpace(gram=gram(rows), move=lambda weights: self._move(combine(weights, rows)))
        if self.config.harmonize.curvature.kind == "diagonal":
            metric_P = self.flatness.metric(replies)
            return RowSpace(
                gram=gram(rows, metric_P), move=lambda weights: self._move(combine(weights, rows, metric_P))
            )
        gram_NN = gram(rows)
        if not np.isfinite(np.diag(gram_NN)).all():
            return None
        step, head = self.state.step, self.flatness.head
        heads_NS = np.stack([row[head].double().numpy() for row in rows])

        def products(vectors_VS: np.ndarray) -> np.ndarray:
            """The mean Hessian of the head times vectors: one exchange."""
            return weighted_mean(self.weights_K, [p.vectors_VS for p in domains.products(step, vectors_VS)])

        moved_NS = self.flatness.neumann(step, replies, heads_NS, products)
        return RowSpace(
            gram=gram_behind_head(gram_NN, heads_NS, moved_NS),
            move=lambda weights: self._move(combine_behind_head(weights, rows, moved_NS, head)),
        )

    def bad_row(self, replies: Sequence[Rows]) -> str:
        """Looks at the rows themselves."""
        return next((found for reply in replies if (found := bad_rows(reply, self.layout))), "")

    def settle(self) -> dict[str, float]:
        """The curvature of this step becomes part of the state."""
        if self.flatness is None:
            return {}
        self.flatness.commit()
        return self.flatness.diagnostics()

    def _move(self, direction_P: Tensor) -> float:
        if resets_at(self.config, self.state.step):
            self.optimizer.reset()
        lr = self.optimizer.step(direction_P, self.state.step)
        self.state.optimizer = self.optimizer.tensors()
        return lr


class ReplicatedStore:
    """θ, the optimizer and the rows in every worker (transport `collective`): here are only inner products and weights.

    Args:
        config: the run's configuration.
        state: the training state; its parameters and the optimizer's tensors are elsewhere.
        domains: the workers that hold them.
    """

    def __init__(self, config: Config, state: TrainState, domains: ReplicatedDomains) -> None:
        assert not metric_kind(config), "a metric needs the rows in one place"
        self.config, self.state, self.domains = config, state, domains

    def model_state(self, loss_vectors: Mapping[str, np.ndarray] | None = None) -> ModelState:
        """Buffers only: the workers have the parameters."""
        buffers = {name: buffer.numpy() for name, buffer in self.state.buffers.items()}
        return ModelState(theta_P=None, buffers=buffers, loss=dict(loss_vectors or {}))

    def row_space(self, replies: Sequence[Rows], domains: Domains) -> RowSpace | None:
        """The Gram matrix that the workers have made of their rows."""
        return RowSpace(gram=self.domains.gram(), move=self._move)

    def bad_row(self, replies: Sequence[Rows]) -> str:
        """Asks the workers, which hold the rows."""
        return next((found for found in self.domains.bad_rows() if found), "")

    def settle(self) -> dict[str, float]:
        """Nothing is learnt of the curvature."""
        return {}

    def _move(self, weights_N: np.ndarray) -> float:
        step = self.state.step
        self.domains.move(Update(step=step, weights_N=weights_N, reset=resets_at(self.config, step)))
        return learning_rate(self.config.optimizer, self.config.steps, step)
