"""The gauges of a run on Ray's own metrics port."""

from __future__ import annotations

import contextlib
import re
import urllib.request

import pytest
import ray

from difc_ray.engines.ray.engine import RayEngine
from difc_ray.runs.setup import prepare
from tests.runs import small_config
from tests.waiting import eventually

pytestmark = pytest.mark.ray


def gauges(port: int) -> dict[str, float]:
    """Name with labels -> value of our gauges, as Prometheus would read them; none: it does not answer just now."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return {}
    found = {}
    for name, labels, value in re.findall(r"^ray_difc_ray_(\w+)\{(.*?)\} (\S+)$", text, re.MULTILINE):
        ours = ",".join(sorted(re.findall(r'(?:run|domain|part)="[^"]*"', labels)))
        found[f"{name}{{{ours}}}"] = float(value)
    return found


def test_a_run_is_seen_on_the_metrics_port(ray_session: None) -> None:
    config = small_config(cluster={"cpus_per_worker": 0.5})
    engine = RayEngine(config, "seen", lambda: False, lambda text: None)
    engine.connect()
    try:
        engine.start(prepare(config, None).state)
        records = engine.advance(5)
        port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
        last = records[-1]
        expected = {
            'step{run="seen"}': 5,
            'loss{domain="fonts",run="seen"}': last.losses["fonts"],
            'step_ms{part="compute",run="seen"}': 1e3 * last.seconds["compute"],
            'conflicts{run="seen"}': sum(record.conflict for record in records),
            'skipped_steps{run="seen"}': 0,
            'restarts{domain="mnist",run="seen"}': 0,
        }
        found: dict[str, float] = {}

        def all_seen() -> bool:  # they are told one by one, and a look may come in between
            found.update(gauges(port))
            return {name: found.get(name) for name in expected} == pytest.approx(expected)

        with contextlib.suppress(AssertionError):
            eventually(all_seen)
    finally:
        engine.close()
    assert {name: found.get(name) for name in expected} == pytest.approx(expected)
