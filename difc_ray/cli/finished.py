"""``difc-ray train resume=...`` of a run that has taken all its steps: what it came to, without doing it again."""

from __future__ import annotations

import json
from typing import Any

from difc_ray.cli.console import print_facts, print_note
from difc_ray.cli.tables import checkpoint_fact, print_summary
from difc_ray.config import Config
from difc_ray.runs.setup import resume_point
from difc_ray.runs.state import ResumePoint


def told_again(config: Config) -> bool:
    """Prints the stored results of the run that is resumed, if it is complete and has them.

    Args:
        config: a resolved configuration.

    Returns:
        Whether that was all there is to do.

    Raises:
        CheckpointError: the run cannot be resumed under this configuration.
    """
    bound, point = resume_point(config)
    if point is None or point.snapshot.step < bound.steps:
        return False
    print_note(
        f"the run `{point.run_dir}` is complete at step {point.snapshot.step}; raise `steps` to train on, or see "
        "`difc-ray evaluate`"
    )
    summary = stored_summary(bound, point)
    if summary is None:
        return False
    print_summary(summary, bound)
    print_facts({"run": str(point.run_dir), "checkpoint": checkpoint_fact(summary)})
    return True


def stored_summary(config: Config, point: ResumePoint) -> dict[str, Any] | None:
    """The summary in the run's folder, if it is of the newest checkpoint, the same selection and all that is asked."""
    try:
        summary = json.loads((point.run_dir / "summary.json").read_text("utf-8"))
        wanted = (point.snapshot.step, config.selection)
        fits = (summary["steps"], summary["selection"]) == wanted and "stopped" not in summary
        return summary if fits and {"accuracy", "checkpoint", "selected_step"} <= summary.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
