"""All domains, one step: statistics -> cotangents, rows -> weights -> next state. No Ray, no input or output.

Shape suffixes: K domains, P parameters, N raw rows (K, or 2K with a penalty), V rows of the view that a rule sees.

:meth:`GlobalStep.take` is the algorithm, top to bottom. Who answers (a function call in this process, or actors on a
cluster) is behind the small :class:`Domains` interface, so every engine runs the same lines.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from difc_ray import solvers
from difc_ray.alignment import weighted_mean
from difc_ray.config import Config, batch_norm_policy, metric_kind, rule_options
from difc_ray.determinism import generator
from difc_ray.errors import NumericError
from difc_ray.flatness import Flatness, combine_behind_head, gram_behind_head
from difc_ray.harmonizers import GramStatistics, Harmonization, make_harmonizer
from difc_ray.harmonizers.metrics import margin_cosines, pairwise_cosines
from difc_ray.local_step import ModelState, Products, Rows, Statistics, domain_buffer, objective_of
from difc_ray.losses import LOSSES, Confusion, LossState
from difc_ray.objectives import Coefficients, Vectors
from difc_ray.optimizer import FlatOptimizer
from difc_ray.vectors import ParameterLayout, as_tensor, combine, gram
from difc_ray.views import domain_weights, make_view

SKIPS_IN_A_ROW = 5
"""A run of this many non-finite steps ends training."""

SKIPS_IN_WINDOW, SKIP_WINDOW = 10, 1_000
"""More non-finite steps than this among the last ``SKIP_WINDOW`` end training too."""


@dataclass
class TrainState:
    """Everything that training carries from one step to the next: what a checkpoint holds.

    Args:
        step: number of steps taken, skipped ones included.
        theta_P: (P,) float32 parameters.
        buffers: the model's buffers by name; with `batch_norm: per_domain` also every source's own.
        optimizer: the optimizer's tensors by name.
        harmonizer: the rule's arrays by name.
        curvature: what is known of the curvature, by name, for the rules that ask for it.
        loss: what the loss carries, by name, where it has a memory.
        skipped: the steps skipped as non-finite within the last ``SKIP_WINDOW``.
    """

    step: int
    theta_P: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    harmonizer: dict[str, np.ndarray] = field(default_factory=dict)
    curvature: dict[str, Tensor] = field(default_factory=dict)
    loss: LossState = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    def model_state(self, loss: Mapping[str, np.ndarray] | None = None) -> ModelState:
        """The part that workers need, over the same memory, and what they are told of the loss."""
        return ModelState(
            theta_P=self.theta_P.numpy(),
            buffers={name: buffer.numpy() for name, buffer in self.buffers.items()},
            loss=dict(loss or {}),
        )


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What one step did, for the display and the tracker.

    Args:
        step: index of the step, from 0.
        losses: classification loss by domain.
        accuracies: batch accuracy by domain.
        penalty: the penalty's terms, α and β inside.
        values: diagnostics of the rule and the optimizer by name.
        row_cosines: cosines between the rows that the rule saw, pair by pair.
        margins_before: cosine of every such row with the plain weighted sum.
        margins_after: cosine of every such row with the direction taken.
        weights: what each such row was multiplied with.
        skipped: why the step was not taken, or empty.
        seconds: wall time by part: `step`, `compute`, `transport`, `coordinator`; and `loading`, the part of `compute`
            in which the slowest domain waited for its batch.
    """

    step: int
    losses: dict[str, float]
    accuracies: dict[str, float] = field(default_factory=dict)
    penalty: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    row_cosines: tuple[float, ...] = ()
    margins_before: tuple[float, ...] = ()
    margins_after: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    skipped: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def conflict(self) -> bool:
        """Whether any two rows that the rule saw had a negative inner product."""
        return any(cosine < 0 for cosine in self.row_cosines)


@runtime_checkable
class Domains(Protocol):
    """Whoever answers for the source domains; answers come in the order of the configuration."""

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains."""

    def exchange(self, step: int, number: int, broadcast: Vectors) -> list[Statistics]:
        """Answers of all domains to one broadcast."""

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """Rows of all domains, each for its own cotangents."""

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Products of every domain's head Hessian with the same vectors."""

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """How sure the model is of the target's images, of which every domain looks at a share."""


@dataclass(frozen=True, kw_only=True)
class RowSpace:
    """The rows as a rule needs them: their inner products, and how weights become a direction.

    Args:
        gram: (N, N), or (2N, 2N) of the rows and what a metric makes of them.
        combine: weights of all those rows -> direction.
    """

    gram: np.ndarray
    combine: Callable[[np.ndarray], Tensor]


class GlobalStep:
    """The coordinator's half of the algorithm; owns the training state.

    Args:
        config: the run's configuration, resolved.
        layout: the model's parameters.
        state: where to start.
    """

    def __init__(self, config: Config, layout: ParameterLayout, state: TrainState) -> None:
        self.config = config
        self.layout = layout
        self.state = state
        self.weights_K = domain_weights(config)
        self.objective = objective_of(config)
        self.loss = LOSSES.get(config.loss)(config.loss_options)
        self.harmonizer = make_harmonizer(config.harmonize.rule, rule_options(config))
        self.view = make_view(
            config.harmonize.between, self.weights_K, config.sources, penalised=self.objective.has_penalty
        )
        if not state.harmonizer:
            state.harmonizer = self.harmonizer.init(len(self.view.base_V))
        self.flatness = Flatness(config, layout, self.weights_K, state.curvature) if metric_kind(config) else None
        self.optimizer = FlatOptimizer(config.optimizer, config.steps, state.theta_P, state.optimizer, layout)

    def take(self, domains: Domains) -> StepRecord:
        """One step: ask for statistics, align, ask for rows, harmonize, update."""
        step = self.state.step
        if self.loss.learns_at(self.state.loss, step):
            self._look_at_target(domains)
        told = self.loss.vectors(self.state.loss, step)
        answers = domains.statistics(self.state.model_state(told), step)
        if bad := self._first_bad_statistic(answers):
            return self._skip(answers, bad)
        vectors = [dict(answer.vectors) for answer in answers]
        for number in range(1, self.objective.exchanges):
            broadcast = self.objective.broadcast(number, vectors, self.weights_K)
            for known, answer in zip(vectors, domains.exchange(step, number, broadcast), strict=True):
                known.update(answer.vectors)
        cotangents, penalty = self.objective.cotangents(vectors, self.weights_K, self.coefficients(step))
        return self.update(answers, penalty, domains.rows(step, cotangents), domains)

    def update(
        self,
        answers: Sequence[Statistics],
        penalty: dict[str, float],
        replies: Sequence[Rows],
        domains: Domains,
    ) -> StepRecord:
        """Rows -> Gram -> weights -> direction -> the next state."""
        started = time.perf_counter()
        rows = raw_rows(replies)
        space = self._row_space(rows, replies, domains)
        if space is None or not np.isfinite(np.diag(space.gram)).all():
            return self._skip(answers, self._first_bad_row(replies))
        view_VN = self.rescale(self.state.step) * self.view.matrix_VN
        matrix = np.kron(np.eye(len(space.gram) // len(rows)), view_VN)  # the same view of the rows behind the metric
        gram_VV = matrix @ space.gram @ matrix.T
        decision = self._harmonize(gram_VV, answers)
        norm = float(np.sqrt(max(decision.weights @ gram_VV @ decision.weights, 0.0)))
        if not np.isfinite(norm):
            return self._skip(answers, "the direction is not finite")
        limit = self.config.optimizer.clip_norm
        clipped = limit is not None and norm > limit
        scale = limit / norm if limit is not None and clipped else 1.0  # on the weights: the rows are read once
        direction_P = space.combine(matrix.T @ (scale * decision.weights))
        lr = self._step_optimizer(direction_P)
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
        if self.flatness is not None:
            self.flatness.commit()
            values |= self.flatness.diagnostics()
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
        found = domains.confusion(self.state.model_state(), self.state.step)
        self.state.loss = self.loss.learn(self.state.loss, functools.reduce(operator.add, found))

    def _row_space(self, rows: list[Tensor], replies: Sequence[Rows], domains: Domains) -> RowSpace | None:
        """The rows, and behind a metric those that it adds; None where the rows are not finite."""
        if self.flatness is None:
            return RowSpace(gram=gram(rows), combine=lambda weights: combine(weights, rows))
        if self.config.harmonize.curvature.kind == "diagonal":
            metric_P = self.flatness.metric(replies)
            return RowSpace(gram=gram(rows, metric_P), combine=lambda weights: combine(weights, rows, metric_P))
        gram_NN = gram(rows)
        if not np.isfinite(np.diag(gram_NN)).all():
            return None
        step, head = self.state.step, self.flatness.head
        heads_NS = np.stack([row[head].double().numpy() for row in rows])

        def products(vectors_VS: np.ndarray) -> np.ndarray:
            return weighted_mean(self.weights_K, [p.vectors_VS for p in domains.products(step, vectors_VS)])

        moved_NS = self.flatness.neumann(step, replies, heads_NS, products)
        return RowSpace(
            gram=gram_behind_head(gram_NN, heads_NS, moved_NS),
            combine=lambda weights: combine_behind_head(weights, rows, moved_NS, head),
        )

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
        asked = self.harmonizer.needs_losses and self.config.harmonize.between == "domains"
        losses = np.array([answer.loss for answer in answers]) if asked else None
        statistics = GramStatistics(gram_NN=gram_VV, weights_N=self.view.base_V, losses_N=losses)
        return self.harmonizer.update(statistics, self.state.harmonizer, rng)

    def _step_optimizer(self, direction_P: Tensor) -> float:
        anneal = self.config.alignment.anneal
        if anneal.reset_optimizer and anneal.steps > 0 and self.state.step == anneal.steps:
            self.optimizer.reset()
        lr = self.optimizer.step(direction_P, self.state.step)
        self.state.optimizer = self.optimizer.tensors()
        return lr

    def _skip(self, answers: Sequence[Statistics], reason: str) -> StepRecord:
        """Leaves weights and optimizer as they are and moves on: batches and schedule go by the step's index."""
        step = self.state.step
        if self.config.on_nonfinite == "abort":
            raise NumericError(
                f"Step {step}: {reason}. `on_nonfinite: abort` ends the run here; the last checkpoint holds finite "
                "weights. Lower `optimizer.lr`, or set `on_nonfinite=skip_step`."
            )
        self.state.skipped = [s for s in self.state.skipped if s > step - SKIP_WINDOW] + [step]
        self.state.step += 1
        in_a_row = set(range(step - SKIPS_IN_A_ROW + 1, step + 1))
        if in_a_row <= set(self.state.skipped) or len(self.state.skipped) > SKIPS_IN_WINDOW:
            raise NumericError(
                f"Step {step}: {reason}. {len(self.state.skipped)} of the last {SKIP_WINDOW} steps were not finite, "
                f"and {SKIPS_IN_A_ROW} in a row or more than {SKIPS_IN_WINDOW} end the run. Lower `optimizer.lr` or "
                "`alignment.alpha` / `alignment.beta`, and look at the data of that domain."
            )
        losses = {answer.token.domain: answer.loss for answer in answers}
        return StepRecord(step=step, losses=losses, skipped=reason)

    def _first_bad_statistic(self, answers: Sequence[Statistics]) -> str:
        """Names the first domain whose loss or statistics are not finite (empty: all are)."""
        for answer in answers:
            where = f"domain `{answer.token.domain}`"
            if not np.isfinite(answer.loss):
                return f"{where}: the loss is {answer.loss}"
            for name, vector in answer.vectors.items():
                if not np.isfinite(vector).all():
                    return f"{where}: the head statistic `{name}` has {_count_bad(vector)} non-finite value(s)"
        return ""

    def _first_bad_row(self, replies: Sequence[Rows]) -> str:
        """Names domain, row and first parameter of the first non-finite entry."""
        for reply in replies:
            for kind, row_P in zip(("classification", "alignment"), reply.rows_RP, strict=False):
                bad = ~np.isfinite(row_P)
                if bad.any():
                    parameter = self.layout.owner(int(bad.argmax()))
                    return (
                        f"domain `{reply.token.domain}`: the {kind} gradient has {_count_bad(row_P)} non-finite "
                        f"value(s), first in `{parameter}`"
                    )
            if reply.curvature_P is not None and (bad := ~np.isfinite(reply.curvature_P)).any():
                where = self.layout.owner(int(bad.argmax()))
                return f"domain `{reply.token.domain}`: the curvature is not finite, first in `{where}`"
        return "the Gram matrix is not finite"


def pareto_gap(gram_VV: np.ndarray) -> float:
    """``‖u*‖² / mean ‖g‖²`` with u* the shortest weighted mean of the rows: 0 where no direction helps all of them.

    NaN where all rows are zero, or where the solver has no certified answer: a metric does not end a run.
    """
    mean = float(np.diag(gram_VV).mean())
    if mean <= 0:
        return float("nan")
    try:
        return solvers.min_norm(gram_VV).value / mean
    except NumericError:
        return float("nan")


def raw_rows(replies: Sequence[Rows]) -> list[Tensor]:
    """The N raw rows in order: g_1 … g_K, then a_1 … a_K."""
    stacked = [as_tensor(reply.rows_RP) for reply in replies]
    return [rows_RP[kind] for kind in range(stacked[0].shape[0]) for rows_RP in stacked]


def merged_buffers(replies: Sequence[Rows], weights_K: np.ndarray, *, per_domain: bool = False) -> dict[str, Tensor]:
    """Buffers of the next state: the weighted mean of floating ones, the first domain's counters.

    Args:
        replies: rows of all domains, with their buffers.
        weights_K: the domains' weights.
        per_domain: whether each domain's own are kept besides, under :func:`~difc_ray.local_step.domain_buffer`.
    """
    merged = {}
    for name, first in replies[0].buffers.items():
        if np.issubdtype(first.dtype, np.floating):
            total = sum(w * reply.buffers[name].astype(np.float64) for w, reply in zip(weights_K, replies, strict=True))
            merged[name] = torch.from_numpy(np.asarray(total, dtype=first.dtype))
        else:
            merged[name] = torch.from_numpy(first.copy())
    for reply in replies if per_domain else ():
        for name, own in reply.buffers.items():
            merged[domain_buffer(reply.token.domain, name)] = torch.from_numpy(own.copy())
    return merged


def upper(matrix_VV: np.ndarray) -> np.ndarray:
    """The entries above the diagonal, row by row."""
    return matrix_VV[np.triu_indices(len(matrix_VV), 1)]


def _count_bad(array: np.ndarray) -> int:
    return int((~np.isfinite(array)).sum())
