"""What one step did, for the display and the tracker.

Shape suffix: V rows that a rule sees.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from difc_ray.harmonizers.metrics import margin_cosines, pairwise_cosines
from difc_ray.step.coordinator.rows import pareto_gap, upper
from difc_ray.step.worker import Statistics


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
        sent_bytes: what each worker has sent to other workers, with the transport `collective`.
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
    sent_bytes: tuple[int, ...] = ()

    @property
    def conflict(self) -> bool:
        """Whether any two rows that the rule saw had a negative inner product."""
        return any(cosine < 0 for cosine in self.row_cosines)


def taken_step(
    step: int, answers: Sequence[Statistics], penalty: dict[str, float], values: Mapping[str, float],
    gram_VV: np.ndarray, weights_V: np.ndarray, base_V: np.ndarray, *,
    clip_norm: float | None, curvature: Mapping[str, float], started: float,
) -> StepRecord:  # fmt: skip
    """The record of a step that was taken.

    Args:
        step: its index.
        answers: the first answers of all domains.
        penalty: the penalty's terms.
        values: diagnostics of the rule, `direction_norm` and `lr`.
        gram_VV: the rows that the rule saw, and behind a metric those that it adds.
        weights_V: what each was multiplied with.
        base_V: the weights of the rows where nothing conflicts.
        clip_norm: the longest direction that is taken as it is; None: any.
        curvature: diagnostics of what was learnt of the curvature.
        started: when the rows had come, by the performance counter.
    """
    seen_VV = gram_VV[: len(base_V), : len(base_V)]
    values = {**values, "pareto_gap": pareto_gap(seen_VV)}
    if clip_norm is not None:
        values["clipped"] = float(values["direction_norm"] > clip_norm)
    return StepRecord(
        step=step,
        losses={answer.token.domain: answer.loss for answer in answers},
        accuracies={answer.token.domain: answer.accuracy for answer in answers},
        penalty=penalty,
        values={**values, **curvature},
        row_cosines=tuple(upper(pairwise_cosines(seen_VV)).tolist()),
        margins_before=tuple(margin_cosines(seen_VV, base_V).tolist()),
        margins_after=tuple(margin_cosines(gram_VV, weights_V)[: len(base_V)].tolist()),
        weights=tuple(weights_V.tolist()),
        seconds={
            "coordinator": time.perf_counter() - started,
            "loading": max(answer.loading_s for answer in answers),
        },
    )
