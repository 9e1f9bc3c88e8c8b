"""Histories of one metric for many runs, in as few requests as the store allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

MAX_POINTS: Final = 2500
"""Values per run in one answer; the store thins longer histories evenly and keeps the first and the last value."""
MAX_RUNS: Final = 100
"""Runs in one request, the server's own bound."""
_ENDPOINT: Final = "/api/2.0/mlflow/metrics/get-history-bulk-interval"

Window = tuple[int, int] | None
"""First and last step, or all."""


class Value(NamedTuple):
    """One value of a metric."""

    run_id: str
    step: int
    timestamp: int
    value: float


def histories(client: Any, run_ids: Sequence[str], key: str, window: Window = None) -> dict[str, dict[int, float]]:
    """Run id -> step -> value; of several values at one step the latest, as a resumed run logs them.

    Args:
        client: MLflow's client.
        run_ids: runs that have the metric.
        key: name of the metric.
        window: steps to read.
    """
    found: dict[str, dict[int, tuple[int, float]]] = {run_id: {} for run_id in run_ids}
    for first in range(0, len(run_ids), MAX_RUNS):
        for entry in _values(client, run_ids[first : first + MAX_RUNS], key, window):
            latest = found[entry.run_id].get(entry.step)
            if latest is None or latest[0] <= entry.timestamp:
                found[entry.run_id][entry.step] = (entry.timestamp, entry.value)
    return {run_id: {step: latest[1] for step, latest in sorted(steps.items())} for run_id, steps in found.items()}


def _values(client: Any, run_ids: Sequence[str], key: str, window: Window) -> Iterator[Value]:
    """One request for all runs: the database's or the server's; else one per run."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store: Any = getattr(
        getattr(client, "_tracking_client", None), "store", None
    )  # the public client has no such request
    if isinstance(store, SqlAlchemyStore):
        start, end = window or (None, None)
        for found in store.get_metric_history_bulk_interval(list(run_ids), key, MAX_POINTS, start, end):
            yield Value(found.run_id, found.step, found.timestamp, found.value)
        return
    if hasattr(store, "get_host_creds") and (answer := _from_server(store.get_host_creds(), run_ids, key, window)):
        yield from answer
        return
    for run_id in run_ids:
        for metric in client.get_metric_history(run_id, key):
            if window is None or window[0] <= metric.step <= window[1]:
                yield Value(run_id, metric.step, metric.timestamp, metric.value)


def _from_server(credentials: Any, run_ids: Sequence[str], key: str, window: Window) -> list[Value] | None:
    """The server's answer; None if it does not know the request."""
    from mlflow.utils.rest_utils import http_request

    query: dict[str, Any] = {"run_ids": list(run_ids), "metric_key": key, "max_results": MAX_POINTS}
    if window is not None:
        query |= {"start_step": window[0], "end_step": window[1]}
    answer = http_request(credentials, _ENDPOINT, "GET", params=query, raise_on_status=False)
    if answer.status_code != 200:
        return None
    return [
        Value(entry["run_id"], int(entry.get("step", 0)), int(entry["timestamp"]), float(entry["value"]))
        for entry in answer.json().get("metrics", ())
    ]
