"""What a run writes down about its steps: flat metrics for the tracker, and `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from difc_ray.step.coordinator import StepRecord


def record_metrics(record: StepRecord) -> Mapping[str, float]:
    """One step as flat metric names for the tracker."""
    metrics = {f"train/loss/{domain}": loss for domain, loss in record.losses.items()}
    metrics |= {f"train/accuracy/{domain}": value for domain, value in record.accuracies.items()}
    metrics |= {f"align/{name}": value for name, value in record.penalty.items()}
    metrics |= {f"harmonize/{name}": value for name, value in record.values.items()}
    if record.row_cosines:
        metrics["harmonize/min_row_cosine"] = min(record.row_cosines)
        metrics["harmonize/min_margin_after"] = min(record.margins_after)
    metrics["harmonize/conflict"] = float(record.conflict)
    metrics["train/skipped"] = float(bool(record.skipped))
    if record.sent_bytes:
        metrics["transport/sent_mb_per_worker"] = max(record.sent_bytes) / 1e6
    return metrics | {f"time/{part}_ms": 1e3 * seconds for part, seconds in record.seconds.items()}


Counts = Sequence[Sequence[int]]
"""A confusion matrix: rows are true classes, columns predicted ones."""

MOST_CLASSES = 50
"""Confusion matrices of more classes are not written at every evaluation, only at the end."""


class MetricsLog:
    """`metrics.jsonl`: one line per step and per evaluation; a resumed run drops the lines behind its checkpoint.

    Nothing of a step is held in memory but what it counts for; the figures are made from the file.

    Args:
        path: the file.
        step: the step to continue from.
        evaluated: the last step whose evaluation is already known.
    """

    def __init__(self, path: Path, step: int, evaluated: int) -> None:
        self.path, self.skipped = path, 0
        self._taken = self._conflicts = 0
        if path.exists():
            kept = path.with_name(f"{path.name}.kept")
            with kept.open("w", encoding="utf-8") as file:
                for entry in _entries(path):
                    if entry["step"] <= (step if entry["kind"] == "step" else evaluated):
                        file.write(json.dumps(entry) + "\n")
                        self._count(entry)
            kept.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        """One step taken; `step` counts the steps after it."""
        entry = {"kind": "step", **asdict(record), "step": record.step + 1}
        self._file.write(json.dumps(entry) + "\n")
        self._count(entry)

    def _count(self, entry: Mapping[str, Any]) -> None:
        if entry["kind"] != "step":
            return
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
        entry = {"kind": "evaluation", "step": step, **values, **kept}
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Everything so far to the file."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def conflict_share(self) -> float:
        """Share of steps with two rows in conflict."""
        return self._conflicts / max(1, self._taken)

    def confusions(self) -> tuple[list[int], list[Counts]]:
        """Steps of the evaluations, and the confusion matrix of each; empty where there are too many classes."""
        steps: list[int] = []
        counts: list[Counts] = []
        for entry in self._read("evaluation"):
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
        return (entry for entry in self._read("step") if not entry["skipped"])

    def _read(self, kind: str) -> Iterator[dict[str, Any]]:
        """What has been written so far, one entry after the other."""
        self.flush()
        return (entry for entry in _entries(self.path) if entry["kind"] == kind)


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a file, up to a line that is not complete: the one in hand when its process was killed."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                return
            yield entry
