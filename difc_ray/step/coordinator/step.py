"""The step itself.

Shape suffixes: K domains, P parameters, N raw rows (K or 2K), V rows of the view that a rule sees.

:meth:`GlobalStep.take` is the algorithm, top to bottom. The workers (functions in this process, or actors on a cluster)
are behind the small :class:`~difc_ray.step.coordinator.protocols.Domains` interface, and where the parameters are is
behind :class:`~difc_ray.step.coordinator.parameter_store.ParameterStore`: every engine and every transport runs these
lines.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Sequence

import numpy as np

from difc_ray.config import Config, batch_norm_policy, domain_weights, rule_options
from difc_ray.determinism import generator
from difc_ray.errors import CheckpointError, NumericError
from difc_ray.harmonizers import GramStatistics, Harmonization, make_harmonizer
from difc_ray.harmonizers.views import make_view
from difc_ray.objectives import Coefficients, Vectors
from difc_ray.step.coordinator.parameter_store import CentralStore, ParameterStore, RowSpace
from difc_ray.step.coordinator.protocols import Domains
from difc_ray.step.coordinator.record import StepRecord, taken_step
from difc_ray.step.coordinator.rows import first_bad_statistic, merged_buffers
from difc_ray.step.coordinator.state import TrainState
from difc_ray.step.factory import loss_of, objective_of
from difc_ray.step.worker import Statistics
from difc_ray.tracing import Recorder
from difc_ray.vectors import ParameterLayout


class GlobalStep:
    """The coordinator's half of the algorithm; owns the training state.

    Args:
        config: the run's configuration, resolved.
        layout: the model's parameters.
        state: where to start.
        store: where θ, the optimizer and the rows live; None: in ``state``, and with whoever calls :meth:`take`.

    Attributes:
        recorder: takes the times of steps that are traced.
    """

    def __init__(
        self, config: Config, layout: ParameterLayout, state: TrainState, store: ParameterStore | None = None
    ) -> None:
        self.config = config
        self.state = state
        self.weights_K = domain_weights(config)
        self.objective = objective_of(config)
        self.loss = loss_of(config)
        self.harmonizer = make_harmonizer(config.harmonize.rule, rule_options(config))
        self.view = make_view(config.harmonize.between, self.weights_K, config.sources)
        fresh = self.harmonizer.init(len(self.view.base_V))
        state.harmonizer = state.harmonizer or fresh
        if missing := fresh.keys() - state.harmonizer.keys():
            raise CheckpointError(
                f"the memory of `{self.harmonizer.name}` must have {', '.join(sorted(fresh))}, got none called "
                f"{min(missing)} (step {state.step}). Use another checkpoint, or start a new run."
            )
        self.store = store or CentralStore(config, layout, self.weights_K, state)
        self.recorder = Recorder("coordinator")

    def take(self, domains: Domains) -> StepRecord:
        """One step: ask for statistics, align, ask for rows, harmonize, update."""
        step, span = self.state.step, self.recorder.span
        self._look_at_target(domains)
        with span("statistics"):
            answers = domains.statistics(self.store.model_state(self.loss.vectors(self.state.loss, step)), step)
        if fault := first_bad_statistic(answers):
            return self._skip(answers, fault)
        vectors_K = self._exchanged(domains, answers)
        with span("means and cotangents"):
            cotangents_K, penalty = self.objective.cotangents(vectors_K, self.weights_K, self.coefficients(step))
        with span("rows"):
            replies = domains.rows(step, cotangents_K)

        started = time.perf_counter()
        with span("Gram matrix"):
            space = self.store.row_space(replies, domains)
        if space is None or not np.isfinite(np.diag(space.gram)).all():
            return self._skip(answers, self.store.bad_row(replies) or "the Gram matrix is not finite")
        view_VN = self._view_of(space)
        gram_VV = view_VN @ space.gram @ view_VN.T
        with span("harmonize"):
            decision = self._harmonize(gram_VV, answers)
        norm = float(np.sqrt(max(decision.weights @ gram_VV @ decision.weights, 0.0)))
        if not np.isfinite(norm):
            return self._skip(answers, "the direction is not finite")
        with span("combine and optimizer"):  # clipped on the weights: the rows are read once
            lr = space.move(view_VN.T @ (self._clipping(norm) * decision.weights))

        self.state.buffers = merged_buffers(
            replies, self.weights_K, per_domain=batch_norm_policy(self.config) == "per_domain"
        )
        self.state.harmonizer = decision.state
        self.state.step += 1
        values = {**decision.diagnostics, "direction_norm": norm, "lr": lr}
        return taken_step(
            step, answers, penalty, values, gram_VV, decision.weights, self.view.base_V,
            clip_norm=self.config.optimizer.clip_norm, curvature=self.store.settle(), started=started,
        )  # fmt: skip

    def _look_at_target(self, domains: Domains) -> None:
        """Where it is due, the loss learns from the target's images; depends on the state and the step alone."""
        if self.loss.learns_at(self.state.loss, self.state.step):
            with self.recorder.span("look at the target"):
                confusions = domains.confusion(self.store.model_state(), self.state.step)
                self.state.loss = self.loss.learn(self.state.loss, functools.reduce(operator.add, confusions))

    def _exchanged(self, domains: Domains, answers: Sequence[Statistics]) -> list[Vectors]:
        """The vectors of every domain after all exchanges that the objective asks for."""
        vectors_K = [dict(answer.vectors) for answer in answers]
        for number in range(1, self.objective.exchanges):
            broadcasts_K = self.objective.broadcasts(number, vectors_K, self.weights_K)
            with self.recorder.span("exchange"):
                more = domains.exchange(self.state.step, number, broadcasts_K)
            for vectors, answer in zip(vectors_K, more, strict=True):
                vectors.update(answer.vectors)
        return list(vectors_K)

    def coefficients(self, step: int) -> Coefficients:
        """α and β at a step: annealed, and for `reduction: sum` times K (equal weights: Σ instead of the mean)."""
        alignment = self.config.alignment
        factor = self._annealed(step) * (len(self.weights_K) if alignment.reduction == "sum" else 1)
        return Coefficients(alpha=factor * alignment.alpha, beta=factor * alignment.beta)

    def rescale(self, step: int) -> float:
        """1, or with `anneal.rescale_loss` 1 / the annealing weight where that exceeds 1: the whole loss is divided."""
        weight = self._annealed(step)
        return 1.0 / weight if self.config.alignment.anneal.rescale_loss and weight > 1 else 1.0

    def _annealed(self, step: int) -> float:
        anneal = self.config.alignment.anneal
        return anneal.weight_before if step < anneal.steps else anneal.weight_after

    def _harmonize(self, gram_VV: np.ndarray, answers: Sequence[Statistics]) -> Harmonization:
        """The rule's decision, with randomness from the step's own generator."""
        rng = generator(self.config.seed, "harmonizer", step=self.state.step)
        needs_losses = self.harmonizer.needs_losses and self.config.harmonize.between == "domains"
        losses = np.array([answer.loss for answer in answers]) if needs_losses else None
        statistics = GramStatistics(gram_NN=gram_VV, weights_N=self.view.base_V, losses_N=losses)
        return self.harmonizer.update(statistics, self.state.harmonizer, rng)

    def _view_of(self, space: RowSpace) -> np.ndarray:
        """The rows that the rule sees as combinations of those there are; the same view of the rows behind a metric."""
        view_VN = self.rescale(self.state.step) * self.view.matrix_VN
        return np.kron(np.eye(len(space.gram) // view_VN.shape[1]), view_VN)

    def _clipping(self, norm: float) -> float:
        """The factor that brings a direction down to `optimizer.clip_norm`."""
        limit = self.config.optimizer.clip_norm
        return limit / norm if limit is not None and norm > limit else 1.0

    def _skip(self, answers: Sequence[Statistics], reason: str) -> StepRecord:
        """Ends the run, or leaves weights and optimizer as they are and moves on."""
        step = self.state.step
        if self.config.on_nonfinite == "abort":
            raise NumericError(
                f"Step {step}: {reason}. `on_nonfinite: abort` ends the run here; the last checkpoint holds finite "
                "weights. Lower `optimizer.lr`, or set `on_nonfinite=skip_step`."
            )
        self.state.skip(reason)
        return StepRecord(
            step=step, losses={answer.token.domain: answer.loss for answer in answers}, skipped=reason
        )  # fmt: skip
