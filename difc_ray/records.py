"""What a run writes down about its steps: flat metrics for the tracker, and `metrics.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from difc_ray.global_step import StepRecord


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

    Args:
        path: the file.
        step: the step to continue from.
        evaluated: the last step whose evaluation is already known.
    """

    def __init__(self, path: Path, step: int, evaluated: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    break  # the line in hand when the process was killed
                if entry["step"] <= (step if entry["kind"] == "step" else evaluated):
                    kept.append(entry)
        path.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
        self._entries = [entry for entry in kept if entry["kind"] == "step"]
        self._evaluations = [entry for entry in kept if entry["kind"] == "evaluation"]
        self._file = path.open("a", encoding="utf-8")

    def step(self, record: StepRecord) -> None:
        """One step taken; `step` counts the steps after it."""
        entry = {"kind": "step", **asdict(record), "step": record.step + 1}
        self._entries.append(entry)
        self._file.write(json.dumps(entry) + "\n")

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
        self._evaluations.append(entry)
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def flush(self) -> None:
        """Everything so far to the file."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    @property
    def skipped(self) -> int:
        """Number of steps skipped as non-finite."""
        return sum(1 for entry in self._entries if entry["skipped"])

    @property
    def conflict_share(self) -> float:
        """Share of steps with two rows in conflict."""
        taken = [entry for entry in self._entries if not entry["skipped"]]
        conflicts = sum(1 for entry in taken if min(entry["row_cosines"], default=0.0) < 0)
        return conflicts / max(1, len(taken))

    def confusions(self) -> tuple[list[int], list[Counts]]:
        """Steps of the evaluations, and the confusion matrix of each; empty where there are too many classes."""
        told = [entry for entry in self._evaluations if "confusion" in entry]
        return [entry["step"] for entry in told], [entry["confusion"] for entry in told]

    def conflicts(self) -> tuple[list[int], dict[str, list[float]]]:
        """Steps, and the conflict metrics over them by name; empty where a rule sees one row only."""
        taken = [entry for entry in self._entries if not entry["skipped"] and entry["row_cosines"]]
        nan = float("nan")
        series = {
            "smallest cosine between two rows": [min(entry["row_cosines"]) for entry in taken],
            "smallest cosine of the direction with a row": [min(entry["margins_after"]) for entry in taken],
            "cosine of the direction with the plain sum": [entry["values"].get("cos_mean", nan) for entry in taken],
            "similarity of the rows' lengths": [entry["values"].get("magnitude_similarity", nan) for entry in taken],
            "Pareto gap": [entry["values"].get("pareto_gap", nan) for entry in taken],
        }
        return [entry["step"] for entry in taken], series if taken else {}

    def curves(self) -> tuple[list[int], dict[str, list[float]], list[float], list[float]]:
        """Steps, losses by domain, and the smallest cosine between two rows before and after harmonization."""
        taken = [entry for entry in self._entries if not entry["skipped"]]
        domains = list(taken[0]["losses"]) if taken else []
        losses = {name: [entry["losses"][name] for entry in taken] for name in domains}
        before = [min(entry["row_cosines"]) for entry in taken if entry["row_cosines"]]
        after = [entry["values"].get("min_cosine_after", min(entry["row_cosines"])) for entry in taken
                 if entry["row_cosines"]]  # fmt: skip
        return [entry["step"] for entry in taken], losses, before, after
