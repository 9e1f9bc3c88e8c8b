"""A run as a comparison sees it, made from what MLflow holds of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from difc_ray.tracking.names import clean_key
from difc_ray.tracking.runs import ATTEMPT_TAG

Curve = Mapping[int, float]
"""Step -> value."""

TRAILING: float = 0.1
"""Share of the steps, from the end, over which the Hessian distance is averaged."""

STATES = {"FINISHED": "finished", "KILLED": "stopped", "FAILED": "failed"}


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run; accuracies in [0, 1].

    Args:
        run_id: MLflow's id.
        name: name of the run.
        state: finished, stopped, failed, or running.
        why: why it stopped or failed; empty otherwise.
        sweep: name of its sweep; None for a run on its own.
        point: number of its setting in the sweep, as text; None outside of sweeps.
        fold: the source domain that this extra run of a sweep held out; None for the others.
        method: rule and objective, such as `ghpp + hutchinson`.
        target: name of the target; None if there is none.
        dataset: name of the dataset.
        fingerprint: sha256 of the data.
        sources: names of the domains that trained.
        seed: seed of the run.
        params: the whole configuration, dotted key -> text.
        searched: dotted key -> value of what the sweep varied.
        validation_by_source: final accuracy of the selected checkpoint on each source's ``val`` split.
        target_accuracy: the same on the whole target; None if there is none.
        curve: mean validation accuracy over the sources against the step.
        hessian: distance between the sources' Hessians, mean over the last tenth of the steps; None if not measured.
    """

    run_id: str
    name: str
    state: str
    why: str = ""
    sweep: str | None = None
    point: str | None = None
    fold: str | None = None
    method: str
    target: str | None
    dataset: str
    fingerprint: str
    sources: tuple[str, ...]
    seed: int
    params: Mapping[str, str]
    searched: Mapping[str, Any]
    validation_by_source: Mapping[str, float]
    target_accuracy: float | None
    curve: Curve
    hessian: float | None = None

    @property
    def complete(self) -> bool:
        """Whether its selected checkpoint was evaluated on every source: finished, or stopped by a scheduler.

        A scheduler stops the seeds that do badly; a comparison of the others alone would be one of lucky seeds.
        """
        reached_the_end = self.state in ("finished", "stopped") and bool(self.sources)
        return reached_the_end and set(self.validation_by_source) == set(self.sources)

    @property
    def validation(self) -> float:
        """Mean final accuracy over the sources; NaN for a run without them."""
        values = self.validation_by_source.values()
        return math.fsum(values) / len(values) if self.complete else math.nan

    @property
    def worst(self) -> tuple[str, float] | None:
        """The source with the lowest final validation accuracy (the first of equal ones), and that accuracy."""
        return min(self.validation_by_source.items(), key=lambda item: item[1]) if self.complete else None

    @property
    def best_seen(self) -> float | None:
        """Highest mean validation accuracy on the way; None before the first evaluation."""
        known = [value for value in self.curve.values() if math.isfinite(value)]
        return max(known, default=None)

    @property
    def last_step(self) -> int | None:
        """Step of the last evaluation."""
        return max(self.curve, default=None)

    def number(self, key: str) -> float | None:
        """A parameter as a finite number; None if it is none."""
        try:
            value = float(self.searched.get(key, self.params.get(key, "")))
        except (TypeError, ValueError):
            return None
        return value if math.isfinite(value) else None


def sources_of(run: Any) -> tuple[str, ...]:
    """Source domains of an MLflow run."""
    return tuple(name for name in run.data.tags.get("domains", "").split(",") if name)


def validation_key(domain: str) -> str:
    """Name of the metric that holds a source's validation accuracy."""
    return clean_key(f"val/accuracy/{domain}")


def settings_of(run: Any) -> dict[str, str]:
    """Parameters of an MLflow run as it ended: those of its beginning, and what its last continuation changed.

    MLflow lets nobody change a parameter; a run that was continued with other values has them in tags.
    """
    tags = run.data.tags
    changes = f"resume.{tags.get(ATTEMPT_TAG)}."
    return dict(run.data.params) | {
        tag.removeprefix(changes): value for tag, value in tags.items() if tag.startswith(changes)
    }


def trailing_window(run: Any) -> tuple[int, int]:
    """First and last step of the last tenth of an MLflow run."""
    try:
        steps = int(settings_of(run).get("steps", ""))
    except ValueError:
        steps = 0
    return math.floor((1 - TRAILING) * steps) + 1, max(1, steps)


def record_of(run: Any, validations: Mapping[str, Curve], hessian: Curve) -> RunRecord:
    """The record of an MLflow run.

    Args:
        run: the run, as MLflow's client gives it.
        validations: validation accuracy against the step, per source domain.
        hessian: ``align/hessian`` over the last tenth of the steps.
    """
    tags, params, metrics = run.data.tags, settings_of(run), run.data.metrics
    sources = sources_of(run)
    target = None if tags.get("target", "none") == "none" else tags["target"]
    final = {domain: metrics.get(clean_key(f"final/val/accuracy/{domain}"), math.nan) for domain in sources}
    accuracy = metrics.get(clean_key(f"final/all/accuracy/{target}"), math.nan)
    measured = [value for value in hessian.values() if math.isfinite(value)]
    return RunRecord(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        state=STATES.get(run.info.status, "running"),
        why=tags.get("sweep.stopped") or tags.get("error", ""),
        sweep=tags.get("sweep"),
        point=tags.get("sweep.point"),
        fold=tags.get("sweep.fold"),
        method=f"{tags.get('rule', 'unknown rule')} + {params.get('objective', 'unknown objective')}",
        target=target,
        dataset=tags.get("dataset", ""),
        fingerprint=tags.get("dataset.fingerprint", ""),
        sources=sources,
        seed=_integer(tags.get("seed", params.get("seed", "0"))),
        params=params,
        searched=_object(tags.get("sweep.values", "{}")),
        validation_by_source={domain: value for domain, value in final.items() if math.isfinite(value)},
        target_accuracy=accuracy if math.isfinite(accuracy) else None,
        curve=_mean_curve(validations),
        hessian=math.fsum(measured) / len(measured) if measured else None,
    )


def _mean_curve(curves: Mapping[str, Curve]) -> dict[int, float]:
    """Mean over the sources at the steps at which all were evaluated."""
    common = set.intersection(*(set(curve) for curve in curves.values())) if curves else set()
    return {step: math.fsum(curve[step] for curve in curves.values()) / len(curves) for step in sorted(common)}


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
