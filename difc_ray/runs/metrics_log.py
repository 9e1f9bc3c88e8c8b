"""What the loop writes into `metrics.jsonl` about its steps, and what figures and the summary read there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from difc_ray.step.coordinator import StepRecord
from difc_ray.tracking import Tracker, entries

Counts = Sequence[Sequence[int]]
"""A confusion matrix: rows are true classes, columns predicted ones."""

MOST_CLASSES = 50
"""Confusion matrices of more classes are not written at every evaluation, only at the end."""


class MetricsLog:
    """Steps and evaluations in the journal of a run; what a resumed run finds behind its checkpoint is taken back.

    Nothing of a step is held in memory but what it counts for; the figures are made from the file.

    Args:
        tracker: appends to the journal.
        step: the step to continue from.
        evaluated: the last step whose evaluation is already known.
    """

    def __init__(self, tracker: Tracker, step: int, evaluated: int) -> None:
        self.tracker, self.skipped = tracker, 0
        self.path = tracker.folder.journal
        self._taken = self._conflicts = 0
        behind = False
        for entry in entries(self.path, "step", "evaluation"):
            if entry["step"] > (step if entry["kind"] == "step" else evaluated):
                behind = True
            elif entry["kind"] == "step":
                self._count(entry)
        if behind:
            tracker.record("rewound", {"step": step, "evaluated": evaluated})

    def step(self, record: StepRecord, restarts: int = 0) -> None:
        """One step taken; `step` counts the steps after it.

        Args:
            record: what it did.
            restarts: workers that were replaced so far.
        """
        replaced = {"worker_restarts": restarts} if restarts else {}
        entry = {**asdict(record), "step": record.step + 1, **replaced}
        self.tracker.record("step", entry)
        self._count(entry)

    def _count(self, entry: Mapping[str, Any]) -> None:
        if entry["skipped"]:
            self.skipped += 1
            return
        self._taken += 1
        self._conflicts += min(entry["row_cosines"], default=0.0) < 0

    def evaluation(self, step: int, values: Mapping[str, float], confusion: Counts = ()) -> None:
        """One evaluation.

        Args:
            step: updates taken.
            values: metrics by name.
            confusion: counts of true against predicted classes on the sources' validation splits, all together; left
                out where there are more than :data:`MOST_CLASSES` classes.
        """
        kept = {"confusion": confusion} if 0 < len(confusion) <= MOST_CLASSES else {}
        self.tracker.record("evaluation", {"step": step, **values, **kept})

    @property
    def conflict_share(self) -> float:
        """Share of steps with two rows in conflict."""
        return self._conflicts / max(1, self._taken)

    def confusions(self) -> tuple[list[int], list[Counts]]:
        """Steps of the evaluations, and the confusion matrix of each; empty where there are too many classes."""
        steps: list[int] = []
        counts: list[Counts] = []
        for entry in entries(self.path, "evaluation"):
            if "confusion" in entry:
                steps.append(entry["step"])
                counts.append(entry["confusion"])
        return steps, counts

    def conflicts(self) -> tuple[list[int], dict[str, list[float]]]:
        """Steps, and the conflict metrics over them by name; empty where a rule sees one row only."""
        steps: list[int] = []
        series: dict[str, list[float]] = {}
        for entry in self._taken_steps():
            if not entry["row_cosines"]:
                continue
            steps.append(entry["step"])
            values, nan = entry["values"], float("nan")
            told = {
                "smallest cosine between two rows": min(entry["row_cosines"]),
                "smallest cosine of the direction with a row": min(entry["margins_after"]),
                "cosine of the direction with the plain sum": values.get("cos_mean", nan),
                "similarity of the rows' lengths": values.get("magnitude_similarity", nan),
                "Pareto gap": values.get("pareto_gap", nan),
            }
            for name, value in told.items():
                series.setdefault(name, []).append(value)
        return steps, series

    def curves(self) -> tuple[list[int], dict[str, list[float]], list[float], list[float]]:
        """Steps, losses by domain, and the smallest cosine between two rows before and after harmonization."""
        steps: list[int] = []
        losses: dict[str, list[float]] = {}
        before: list[float] = []
        after: list[float] = []
        for entry in self._taken_steps():
            steps.append(entry["step"])
            for name, loss in entry["losses"].items():
                losses.setdefault(name, []).append(loss)
            if entry["row_cosines"]:
                before.append(min(entry["row_cosines"]))
                after.append(entry["values"].get("min_cosine_after", before[-1]))
        return steps, losses, before, after

    def _taken_steps(self) -> Iterator[dict[str, Any]]:
        """Steps that were not skipped."""
        return (entry for entry in entries(self.path, "step") if not entry["skipped"])
