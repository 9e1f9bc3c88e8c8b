"""Spans, and the trace of a run in one process."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest

from difc_ray.config import check, load_config
from difc_ray.engines.inline import InlineEngine
from difc_ray.runs.configuration import requested_config
from difc_ray.runs.profile import chrome_trace
from difc_ray.runs.setup import prepare
from difc_ray.tracing import Origin, Recorder, Span, traced_steps
from difc_ray.tracking import entries
from tests.faults import Notices, end_of, resume, train
from tests.runs import small_config
from tests.traces import Trace, overlaps, read_trace

INLINE = {"engine": "inline", "steps": 8}
WORKERS = ("worker mnist", "worker optdigits", "worker fonts")
COORDINATOR = {
    "step",
    "statistics",
    "means and cotangents",
    "rows",
    "Gram matrix",
    "harmonize",
    "combine and optimizer",
}
WORKER = {
    "load parameters", "wait for batch", "forward", "head statistics", "pack", "backward of the classification",
    "backward of the alignment",
}  # fmt: skip


def recorded(folder: Path, trace: Trace) -> list[float]:
    """Seconds of the traced steps, as `metrics.jsonl` has them."""
    steps = trace.steps("coordinator")
    taken = entries(folder / "metrics.jsonl", "step")
    return [step["seconds"]["step"] for step in taken if step["step"] - 1 in steps]


def assert_same_times(spans: list[float], steps: list[float]) -> None:
    """Each span is within its step, and in the median as long but for a tenth; any of them may have been preempted."""
    excess = np.subtract(steps, spans)
    assert excess.min() > -1e-3
    assert np.median(excess) < 0.1 * np.median(steps) + 2e-3


def test_a_recorder_takes_spans_only_when_told_to() -> None:
    recorder = Recorder("worker a")
    with recorder.span("before"):
        pass
    assert recorder.take() == ()
    recorder.follow(7, 2, on=True)
    before = time.time_ns()
    with recorder.span("outer"), recorder.span("inner"):
        time.sleep(0.02)
    inner, outer = recorder.take()
    assert (inner.name, outer.name) == ("inner", "outer")
    assert outer.start_ns <= inner.start_ns < inner.end_ns <= outer.end_ns
    assert inner.end_ns - inner.start_ns >= 20e6
    assert before - 1e6 <= outer.start_ns < outer.end_ns <= time.time_ns() + 1e6  # the common clock: the time of day
    assert (outer.step, outer.attempt, outer.origin.actor) == (7, 2, "worker a")
    assert recorder.take() == ()


def test_a_span_that_an_error_ends_is_taken() -> None:
    recorder = Recorder("worker a")
    recorder.follow(0, on=True)
    with pytest.raises(RuntimeError, match="boom"), recorder.span("risky"):
        raise RuntimeError("boom")
    assert [span.name for span in recorder.take()] == ["risky"]


def test_a_span_ends_when_what_was_begun_is_done() -> None:
    """As on a GPU, where a call returns before its work is done."""
    work: list[threading.Thread] = []

    def settle() -> None:
        for thread in work:
            thread.join()

    recorder = Recorder("worker a", settle)
    recorder.follow(0, on=True)
    with recorder.span("queued"):
        work.append(threading.Thread(target=time.sleep, args=(0.05,)))
        work[0].start()
    (span,) = recorder.take()
    assert span.end_ns - span.start_ns >= 50e6


@pytest.mark.parametrize("wanted", [None, 1, 3, 5, 9, 10, 1000])
@pytest.mark.parametrize("first", [0, 4, 8])
def test_traced_steps_are_as_many_as_there_can_be(wanted: int | None, first: int) -> None:
    found = traced_steps(wanted, first, 10)
    assert len(found) == min(wanted or 0, 10 - first)
    if wanted:
        assert found.start == min(first + 3, max(first, 10 - wanted))
        assert found.stop <= 10


def test_lanes_of_a_trace() -> None:
    """Driver and coordinator come first whoever's span is first; a replacement is another thread of the same lane."""

    def span(actor: str, process: int, start: int) -> Span:
        origin = Origin(actor=actor, host="here", process=process)
        return Span(origin=origin, name="work", start_ns=start, end_ns=start + 1500, step=1, attempt=0)

    found = chrome_trace("r", [span("worker b", 1, 5000), span("worker b", 2, 9000), span("coordinator", 3, 4000)])
    assert json.loads(json.dumps(found)) == found
    work = [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in found["traceEvents"] if e["ph"] == "X"]
    assert work == [(1, 3, 0.0, 1.5), (2, 1, 1.0, 1.5), (2, 2, 5.0, 1.5)]
    assert found["otherData"]["begin_unix_ns"] == 4000


def test_the_inline_engine_is_traced(tmp_path: Path) -> None:
    notices = Notices()
    plain = train(small_config(**INLINE, name="plain", checkpoint={"every": 2}), tmp_path).run_dir
    folder = train(small_config(**INLINE, profile=4, name="traced", checkpoint={"every": 2}), tmp_path, notices).run_dir
    assert not (plain / "profile.json").exists()
    trace = read_trace(folder / "profile.json")
    assert set(trace.events) == {"driver", "coordinator", *WORKERS}
    for events in trace.events.values():
        assert overlaps(events) == []
    assert trace.names("coordinator") >= COORDINATOR
    assert trace.steps("coordinator") == [3, 4, 5, 6]
    for name in WORKERS:
        assert trace.names(name) == WORKER
        assert trace.steps(name) == [3, 4, 5, 6]
    assert {"wait for steps", "checkpoint"} <= trace.names("driver")
    spans = [event["dur"] / 1e6 for event in trace.spans("coordinator", "step")]
    assert_same_times(spans, recorded(folder, trace))
    parts = [event for event in trace.events["coordinator"] if event["name"] in COORDINATOR - {"step"}]
    assert 0.2 * sum(spans) < sum(event["dur"] for event in parts) / 1e6 <= sum(spans)
    assert f"profile of the steps 3 to 6: `{folder / 'profile.json'}`" in notices.lines[-1]
    assert "ui.perfetto.dev" in notices.lines[-1]
    assert end_of(plain).weights == end_of(folder).weights
    assert end_of(plain).state == end_of(folder).state
    assert end_of(plain).records == end_of(folder).records


def test_no_worker_takes_spans_of_other_steps() -> None:
    config = small_config(**INLINE, profile=2)
    engine = InlineEngine(config, "r", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    engine.advance(8)
    engine.close()
    assert {span.step for span in engine.spans} == {3, 4}


def test_a_trace_to_the_last_step_of_a_short_run(tmp_path: Path) -> None:
    folder = train(small_config(engine="inline", steps=5, profile=5), tmp_path).run_dir
    assert read_trace(folder / "profile.json").steps("coordinator") == [0, 1, 2, 3, 4]


def test_a_resumed_run_is_traced_when_it_is_asked_for_again(tmp_path: Path) -> None:
    folder = train(small_config(**INLINE, profile=2), tmp_path).run_dir
    (folder / "profile.json").unlink()
    resume(folder, "steps=12")
    assert not (folder / "profile.json").exists()
    resume(folder, "steps=14", "profile=9")
    assert read_trace(folder / "profile.json").steps("coordinator") == [12, 13]


def test_a_trace_that_cannot_be_written_costs_the_trace_only(tmp_path: Path) -> None:
    notices = Notices()
    blocked = tmp_path / "runs" / "test"

    class Blocking(Notices):
        def phase(self, text: str) -> None:
            if blocked.is_dir():
                (blocked / "profile.json").mkdir(exist_ok=True)

    notices = Blocking()
    result = train(small_config(**INLINE, profile=2), tmp_path, notices)
    assert result.summary["steps"] == 8
    assert [line for line in notices.lines if "could not be written" in line and "goes on" in line]
    assert not list(result.run_dir.glob("*.partial"))


@pytest.mark.process
@pytest.mark.filterwarnings("ignore:.*noload.*")  # SQLAlchemy, of MLflow's own queries
def test_mlflow_has_the_trace(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = small_config(**INLINE, profile=2, tracking={"mode": "on", "uri": uri})
    result = train(config, tmp_path)
    assert result.tracking is not None
    names = [item.path for item in mlflow.MlflowClient(uri).list_artifacts(result.tracking.run_id)]
    assert "profile.json" in names


def test_steps_that_cannot_be_traced() -> None:
    for wrong in ("0", "-1", "1001", "2.5", "many"):
        with pytest.raises(Exception, match=r"`profile` must be an integer in \[1, 1000\] or null, got"):
            load_config(None, [f"profile={wrong}"])
    with pytest.raises(Exception, match="`profile` must not exceed `steps`, got `profile=9` and `steps=8`"):
        requested_config(None, ["profile=9", "steps=8"])
    assert check(load_config(None, ["profile=8", "steps=8"])) == []
