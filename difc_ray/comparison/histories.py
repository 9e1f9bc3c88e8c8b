"""Histories of one metric for many runs, by the public client: a request per run, several at a time."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

AT_A_TIME: Final = 8
"""Requests under way at once: most of the time of one passes on the way to a server and back."""

Window = tuple[int, int] | None
"""First and last step, or all."""


def histories(client: Any, run_ids: Sequence[str], key: str, window: Window = None) -> dict[str, dict[int, float]]:
    """Run id -> step -> value; of several values at one step the latest, as a resumed run logs them.

    Args:
        client: MLflow's client.
        run_ids: runs that have the metric.
        key: name of the metric.
        window: steps to read.
    """
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        answers = list(pool.map(lambda run_id: client.get_metric_history(run_id, key), run_ids))
    first, last = window or (None, None)
    curves: dict[str, dict[int, float]] = {}
    for run_id, metrics in zip(run_ids, answers, strict=True):
        latest = {metric.step: metric.value for metric in sorted(metrics, key=lambda metric: metric.timestamp)}
        curves[run_id] = {
            step: latest[step]
            for step in sorted(latest)
            if (first is None or step >= first) and (last is None or step <= last)
        }
    return curves
