"""What MLflow gets of a record: metric -> value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from difc_ray.tracking.journal import Record

MEASURED = ("step", "evaluation", "metrics")
"""Kinds of records that hold metrics."""
_OF_AN_EVALUATION = frozenset({"seq", "time", "kind", "step", "confusion"})
"""Fields of an evaluation that are no metrics."""


def points(record: Record) -> dict[str, float]:
    """The metrics of a step, an evaluation, or of another ``metrics`` record; of other kinds there are none.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the record is damaged.
    """
    if record.kind == "step":
        found = _of_step(record.data)
    elif record.kind == "evaluation":
        found = {name: value for name, value in record.data.items() if name not in _OF_AN_EVALUATION}
    else:
        found = record.data["values"] if record.kind == "metrics" else {}
    return {name: float(value) for name, value in found.items()}


def _of_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """A step's statistics by the names that the documentation lists."""
    metrics = {f"train/loss/{domain}": loss for domain, loss in step["losses"].items()}
    metrics |= {f"train/accuracy/{domain}": value for domain, value in step["accuracies"].items()}
    metrics |= {f"align/{name}": value for name, value in step["penalty"].items()}
    metrics |= {f"harmonize/{name}": value for name, value in step["values"].items()}
    cosines = step["row_cosines"]
    if cosines:
        metrics["harmonize/min_row_cosine"] = min(cosines)
        metrics["harmonize/min_margin_after"] = min(step["margins_after"])
    metrics["harmonize/conflict"] = any(cosine < 0 for cosine in cosines)
    metrics["train/skipped"] = bool(step["skipped"])
    metrics["engine/restarts"] = step.get("worker_restarts", 0)
    if step["sent_bytes"]:
        metrics["transport/sent_mb_per_worker"] = max(step["sent_bytes"]) / 1e6
    return metrics | {f"time/{part}_ms": 1e3 * seconds for part, seconds in step["seconds"].items()}
