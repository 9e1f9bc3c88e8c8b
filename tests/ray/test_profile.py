"""Traces of runs on a real Ray: every actor is there, on one clock, and the bits are those of a run without."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from difc_ray.engines.ray.engine import RayEngine
from difc_ray.runs.profile import Profile
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import StepRecord
from difc_ray.tracing import Span
from tests.fault_plugin import marks
from tests.faults import fault, faulty_config, train, without_faults
from tests.runs import digest, run_inline, small_config
from tests.traces import overlaps, read_trace
from tests.unit.test_tracing import COORDINATOR, WORKER, WORKERS, assert_same_times, recorded

pytestmark = pytest.mark.ray

HALF = {"cpus_per_worker": 0.5}
PARTS = tuple(f"{worker} #{part}" for worker in WORKERS for part in (1, 2))
EXCHANGED = {"scatter rows", "Gram matrix of the shard", "combine the shard", "gather direction", "optimizer"}


def within(inner: dict[str, Any], outer: dict[str, Any], slack_us: float) -> bool:
    return outer["ts"] - slack_us <= inner["ts"] and inner["ts"] + inner["dur"] <= outer["ts"] + outer["dur"] + slack_us


@pytest.mark.parametrize(
    ("cluster", "workers", "more"),
    [
        ({"transport": "collective"}, WORKERS, EXCHANGED),
        ({"replicas": 2, "cpus_per_worker": 0.25}, PARTS, set()),
    ],
    ids=["collective", "replicas"],
)
def test_every_actor_is_traced(
    ray_session: None, tmp_path: Path, cluster: dict[str, Any], workers: tuple[str, ...], more: set[str]
) -> None:
    config = small_config(cluster={**HALF, **cluster}, steps=7, profile=4, eval_every=5)
    result = train(config, tmp_path)
    trace = read_trace(result.run_dir / "profile.json")
    assert set(trace.events) == {"driver", "coordinator", *workers}
    for events in trace.events.values():
        assert overlaps(events) == []
        assert len({event["tid"] for event in events}) == 1
    processes = [events[0]["tid"] for events in trace.events.values()]
    assert len(set(processes)) == len(processes)
    assert trace.names("coordinator") == {*COORDINATOR, "broadcast", "ask", "wait", "evaluation"}
    assert {"wait for steps", "evaluation"} <= trace.names("driver")
    waits = [e for e in trace.events["coordinator"] if e["name"] in ("statistics", "rows", "combine and optimizer")]
    for worker in workers:
        assert trace.names(worker) - {"evaluation"} == WORKER | more
        assert trace.steps(worker) == [3, 4, 5, 6]
        for event in trace.events[worker]:
            if event["name"] not in ("optimizer", "evaluation"):  # not waited for; not of a step
                assert any(within(event, wait, slack_us=1000) for wait in waits), event
    assert len(trace.spans(workers[0], "forward")) == 4
    assert len(trace.spans(workers[0], "optimizer")) == (4 if more else 0)  # that of the last step, too
    spans = [event["dur"] / 1e6 for event in trace.spans("coordinator", "step")]
    assert_same_times(spans, recorded(result.run_dir, trace))


@pytest.mark.parametrize("transport", ["object_store", "collective"])
def test_a_trace_changes_no_bit_and_shows_a_replacement(ray_session: None, tmp_path: Path, transport: str) -> None:
    config = faulty_config(tmp_path, fault("kill", "b", 4), steps=6, profile=3, cluster={"transport": transport})
    engine = RayEngine(config, "traced", lambda: False, lambda text: None)
    engine.connect()
    records: list[StepRecord] = []
    spans: list[Span] = []
    try:
        engine.start(prepare(config, None).state)
        while len(records) < 6:
            records += engine.advance(2)
            spans += engine.spans
            engine.spans = []
        state = engine.snapshot()
    finally:
        engine.close()
    assert marks(tmp_path) == ["batch-kill-b-4-0"]
    expected, _ = run_inline(without_faults(config.model_copy(update={"profile": None})), 6)
    assert digest(state) == digest(expected)
    profile = Profile(config, 0, tmp_path)
    profile.add(spans, 6)
    assert "profile of the steps 3 to 5" in profile.write()
    trace = read_trace(tmp_path / "profile.json")
    assert len({event["tid"] for event in trace.events["worker b"]}) == 2
    assert len({event["tid"] for event in trace.events["worker a"]}) == 1
    assert all(overlaps(events) == [] for events in trace.events.values())


def test_no_span_travels_unless_it_is_asked_for(ray_session: None) -> None:
    config = small_config(cluster=HALF, steps=6, profile=1)
    engine = RayEngine(config, "traced", lambda: False, lambda text: None)
    engine.connect()
    try:
        engine.start(prepare(config, None).state)
        told = []
        for _ in range(6):
            engine.advance(1)
            told.append(sorted({span.step for span in engine.spans}))
            engine.spans = []
    finally:
        engine.close()
    assert list(itertools.chain(*told)) == [3]
    assert told[3] == [3]
