"""The gauges of a run on Ray's own metrics port."""

from __future__ import annotations

import re
import time
import urllib.request

import pytest
import ray

from difc_ray.distributed.engine import RayEngine
from difc_ray.preparation import prepare
from tests.runs import small_config

pytestmark = pytest.mark.ray

PATIENCE_S = 45.0
"""Ray gathers the metrics of its processes every ten seconds, that of the session every two."""


def gauges(port: int) -> dict[str, float]:
    """Name with labels -> value of our gauges, as Prometheus would read them."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
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
        deadline, found = time.monotonic() + PATIENCE_S, dict[str, float]()
        while found.get('step{run="seen"}') != 5 and time.monotonic() < deadline:
            time.sleep(0.5)
            found = gauges(port)
    finally:
        engine.close()
    last = records[-1]
    assert found['step{run="seen"}'] == 5
    assert found['loss{domain="fonts",run="seen"}'] == pytest.approx(last.losses["fonts"])
    assert found['step_ms{part="compute",run="seen"}'] == pytest.approx(1e3 * last.seconds["compute"])
    assert found['conflicts{run="seen"}'] == sum(record.conflict for record in records)
    assert found['skipped_steps{run="seen"}'] == 0
    assert found['restarts{domain="mnist",run="seen"}'] == 0
