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
from difc_ray.errors import NumericError
from difc_ray.harmonizers import GramStatistics, Harmonization, make_harmonizer
from difc_ray.harmonizers.metrics import margin_cosines, pairwise_cosines
from difc_ray.harmonizers.views import make_view
from difc_ray.objectives import Coefficients
from difc_ray.objectives.losses import LOSSES
from difc_ray.step.coordinator.parameter_store import CentralStore, ParameterStore
from difc_ray.step.coordinator.protocols import Domains
from difc_ray.step.coordinator.record import StepRecord
from difc_ray.step.coordinator.rows import first_bad_statistic, merged_buffers, pareto_gap, upper
from difc_ray.step.coordinator.state import TrainState
from difc_ray.step.worker import Rows, Statistics, objective_of
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
        self.loss = LOSSES.get(config.loss)(config.loss_options)
        self.harmonizer = make_harmonizer(config.harmonize.rule, rule_options(config))
        self.view = make_view(config.harmonize.between, self.weights_K, config.sources)
        if not state.harmonizer:
            state.harmonizer = self.harmonizer.init(len(self.view.base_V))
        self.store = store or CentralStore(config, layout, self.weights_K, state)
        self.recorder = Recorder("coordinator")

    def take(self, domains: Domains) -> StepRecord:
        """One step: ask for statistics, align, ask for rows, harmonize, update."""
        step, span = self.state.step, self.recorder.span
        if self.loss.learns_at(self.state.loss, step):
            with span("look at the target"):
                self._look_at_target(domains)
        loss_vectors = self.loss.vectors(self.state.loss, step)
        with span("statistics"):
            answers = domains.statistics(self.store.model_state(loss_vectors), step)
        if bad := first_bad_statistic(answers):
            return self._skip(answers, bad)
        vectors = [dict(answer.vectors) for answer in answers]
        for number in range(1, self.objective.exchanges):
            broadcasts_K = self.objective.broadcasts(number, vectors, self.weights_K)
            with span("exchange"):
                more = domains.exchange(step, number, broadcasts_K)
            for own_vectors, answer in zip(vectors, more, strict=True):
                own_vectors.update(answer.vectors)
        with span("means and cotangents"):
            cotangents, penalty = self.objective.cotangents(vectors, self.weights_K, self.coefficients(step))
        with span("rows"):
            replies = domains.rows(step, cotangents)
        return self.update(answers, penalty, replies, domains)

    def update(
        self,
        answers: Sequence[Statistics],
        penalty: dict[str, float],
        replies: Sequence[Rows],
        domains: Domains,
    ) -> StepRecord:
        """Rows -> Gram -> weights -> direction -> the next state."""
        started, span = time.perf_counter(), self.recorder.span
        with span("Gram matrix"):
            space = self.store.row_space(replies, domains)
        if space is None or not np.isfinite(np.diag(space.gram)).all():
            return self._skip(answers, self.store.bad_row(replies) or "the Gram matrix is not finite")
        view_VN = self.rescale(self.state.step) * self.view.matrix_VN
        spaces = len(space.gram) // view_VN.shape[1]
        matrix = np.kron(np.eye(spaces), view_VN)  # the same view of the rows behind the metric
        gram_VV = matrix @ space.gram @ matrix.T
        with span("harmonize"):
            decision = self._harmonize(gram_VV, answers)
        norm = float(np.sqrt(max(decision.weights @ gram_VV @ decision.weights, 0.0)))
        if not np.isfinite(norm):
            return self._skip(answers, "the direction is not finite")
        limit = self.config.optimizer.clip_norm
        clipped = limit is not None and norm > limit
        scale = limit / norm if limit is not None and clipped else 1.0  # on the weights: the rows are read once
        with span("combine and optimizer"):
            lr = space.move(matrix.T @ (scale * decision.weights))
        per_domain = batch_norm_policy(self.config) == "per_domain"
        self.state.buffers = merged_buffers(replies, self.weights_K, per_domain=per_domain)
        self.state.harmonizer = decision.state
        seen = slice(len(self.view.base_V))
        values = {
            **decision.diagnostics,
            "direction_norm": norm,
            "lr": lr,
            "pareto_gap": pareto_gap(gram_VV[seen, seen]),
        } | ({} if limit is None else {"clipped": float(clipped)})
        values |= self.store.settle()
        self.state.step += 1
        return StepRecord(
            step=self.state.step - 1,
            losses={answer.token.domain: answer.loss for answer in answers},
            accuracies={answer.token.domain: answer.accuracy for answer in answers},
            penalty=penalty,
            values=values,
            row_cosines=tuple(upper(pairwise_cosines(gram_VV[seen, seen])).tolist()),
            margins_before=tuple(margin_cosines(gram_VV[seen, seen], self.view.base_V).tolist()),
            margins_after=tuple(margin_cosines(gram_VV, decision.weights)[seen].tolist()),
            weights=tuple(decision.weights.tolist()),
            seconds={
                "coordinator": time.perf_counter() - started,
                "loading": max(answer.loading_s for answer in answers),
            },
        )

    def _look_at_target(self, domains: Domains) -> None:
        """Lets the loss learn from the target's images; depends on the state and the step alone."""
        confusions = domains.confusion(self.store.model_state(), self.state.step)
        self.state.loss = self.loss.learn(self.state.loss, functools.reduce(operator.add, confusions))

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

    def _skip(self, answers: Sequence[Statistics], reason: str) -> StepRecord:
        """Ends the run, or leaves weights and optimizer as they are and moves on."""
        step = self.state.step
        if self.config.on_nonfinite == "abort":
            raise NumericError(
                f"Step {step}: {reason}. `on_nonfinite: abort` ends the run here; the last checkpoint holds finite "
                "weights. Lower `optimizer.lr`, or set `on_nonfinite=skip_step`."
            )
        self.state.skip(reason)
        losses = {answer.token.domain: answer.loss for answer in answers}
        return StepRecord(step=step, losses=losses, skipped=reason)
