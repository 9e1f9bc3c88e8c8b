"""What one step did, for the display and the tracker."""

from __future__ import annotations

from dataclasses import dataclass, field


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
