"""A server that stops, freezes, fails or loses its answers costs no metric and no time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from difc_ray.errors import CheckpointError, ConfigError
from difc_ray.files import read_json
from difc_ray.tracking import MlflowTracker, UploadSettings, sync
from tests.mlflow.servers import MlflowServer, Proxy
from tests.mlflow.test_round_trip import client, points
from tests.waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]

EXPECTED = [(step, step / 7) for step in range(60)]


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield int(listener.getsockname()[1])


AT_ONCE_S = 0.02
"""What a call may take that waits for nobody."""


def record(tracker: MlflowTracker, steps: range) -> float:
    """Metrics of these steps; how many seconds one call took, in the median."""
    took = []
    for step in steps:
        began = time.perf_counter()
        tracker.metrics(step, {"loss": step / 7, "other": 1.0})
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def runs_named(mlflow_server: MlflowServer, experiment: str) -> list[str]:
    found = client(mlflow_server.url).get_experiment_by_name(experiment)
    return [run.info.run_id for run in client(mlflow_server.url).search_runs([found.experiment_id])]


def sent(tracker: MlflowTracker) -> int:
    cursor = tracker.folder.cursor
    return max((entry["seq"] for entry in json.loads(cursor.read_text()).values()), default=0) if cursor.exists() else 0


def test_a_server_that_stops_and_freezes_in_mid_run(
    mlflow_server: MlflowServer, run_dir: Path, quick: UploadSettings, experiment: str
) -> None:
    hasty = replace(quick, request_timeout_s=1.0)
    tracker = MlflowTracker(run_dir, mlflow_server.url, experiment, settings=hasty)
    mlflow_server.freeze()  # the request that creates the run is sent, perhaps more than once, and answered too late
    tracker.start(run_name="r", params={"a": 1}, tags={})
    record(tracker, range(20))
    eventually(tracker.folder.status.exists, "the uploader has noticed")
    mlflow_server.thaw()
    eventually(lambda: sent(tracker) == 21, "all has arrived")
    mlflow_server.freeze()
    record(tracker, range(20, 30))
    time.sleep(1.5)  # at least one request is on its way and times out
    mlflow_server.thaw()
    eventually(lambda: sent(tracker) == 31, "all has arrived")
    mlflow_server.stop()
    assert record(tracker, range(30, 50)) < AT_ONCE_S
    eventually(lambda: "waiting" in tracker.folder.status.read_text(), "the uploader has noticed")
    mlflow_server.start()
    record(tracker, range(50, 60))
    summary = tracker.finish("FINISHED")

    assert (summary.pending, summary.refused) == (0, 0)
    assert runs_named(mlflow_server, experiment) == [summary.run_id]
    assert points(mlflow_server.url, summary.run_id, "loss") == EXPECTED
    assert len(points(mlflow_server.url, summary.run_id, "other")) == 60


def test_a_server_that_never_answers(
    mlflow_server: MlflowServer,
    run_dir: Path,
    quick: UploadSettings,
    silent_port: int,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DIFC_RAY_TRACKING_REQUEST_TIMEOUT_S", "1")
    hasty = replace(quick, request_timeout_s=1.0)
    tracker = MlflowTracker(run_dir, f"http://127.0.0.1:{silent_port}", experiment, settings=hasty)
    tracker.start(run_name="r", params={}, tags={})
    assert record(tracker, range(60)) < AT_ONCE_S
    eventually(tracker.folder.status.exists, "the first request has timed out")
    assert tracker.uploader_pid is not None
    with pytest.raises(CheckpointError, match="by one process at a time"):
        sync(run_dir, mlflow_server.url)
    began = time.perf_counter()
    summary = tracker.finish("FINISHED", drain_s=0.5)
    assert time.perf_counter() - began < 0.5 * quick.drain_s
    assert summary.pending == 62
    assert "has not taken 62 records yet" in str(summary.message)

    assert f"difc-ray sync {run_dir} --uri http://127.0.0.1:{silent_port}" in str(summary.message)

    with pytest.raises(ConfigError, match=rf"only where your own settings say.*`http://127.0.0.1:{silent_port}`"):
        sync(run_dir, patience_s=0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent_port}")
    report = sync(run_dir, patience_s=0.0)
    assert (report.sent, report.pending) == (0, 62)
    assert "does not answer in time" in str(report.message)
    report = sync(run_dir, mlflow_server.url)
    assert (report.sent, report.pending, report.message) == (62, 0, None)
    assert points(mlflow_server.url, report.run_id, "loss") == EXPECTED
    assert client(mlflow_server.url).get_run(report.run_id).info.status == "FINISHED"


def test_a_refused_record_is_set_aside_alone(
    mlflow_server: MlflowServer, proxy: Proxy, run_dir: Path, quick: UploadSettings, experiment: str
) -> None:
    proxy.rule = lambda method, path, body: 503
    tracker = MlflowTracker(run_dir, proxy.url, experiment, settings=quick)
    tracker.start(run_name="r", params={"a": 1, "poison": 2, "c": 3}, tags={})
    record(tracker, range(30))
    tracker.metrics(30, {"poison": 1.0})
    record(tracker, range(30, 60))
    tracker.artifact(run_dir / "metrics.jsonl")
    gone = run_dir / "gone.txt"
    gone.write_text("x")
    tracker.artifact(gone)
    gone.unlink()
    proxy.rule = lambda method, path, body: 400 if b"poison" in body else "forward"
    summary = tracker.finish("FINISHED")

    entries = [json.loads(line) for line in (run_dir / "tracking" / "refused.jsonl").read_text().splitlines()]
    assert [entry["kind"] for entry in entries if "gone" not in entry["reason"]] == ["start", "metrics", "artifact"]
    assert all("poisoned" in entry["reason"] or "400" in entry["reason"] for entry in entries[:3])
    assert (summary.pending, summary.refused) == (0, len(entries))
    assert "refused 4 records" in str(summary.message)
    run = client(mlflow_server.url).get_run(summary.run_id)
    assert run.data.params == {"a": "1", "c": "3"}
    assert points(mlflow_server.url, summary.run_id, "loss") == EXPECTED
    assert run.info.status == "FINISHED"


DRIVER = """
import sys, threading, time
from pathlib import Path
from difc_ray.tracking import MlflowTracker, UploadSettings
tracker = MlflowTracker(Path(sys.argv[1]), sys.argv[2], sys.argv[3], settings=UploadSettings(flush_s=0.1))
start = lambda: tracker.start(run_name="r", params={}, tags={})
if sys.argv[4] == "main":
    start()
else:
    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
for step in range(60):
    tracker.metrics(step, {"loss": step / 7})
print(tracker.uploader_pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("thread", ["main", "other"])
def test_the_uploader_dies_with_the_driver_and_sync_sends_the_rest(
    mlflow_server: MlflowServer, run_dir: Path, silent_port: int, experiment: str, thread: str
) -> None:
    command = [sys.executable, "-c", DRIVER, str(run_dir), f"http://127.0.0.1:{silent_port}", experiment, thread]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as driver:
        try:
            assert driver.stdout is not None
            uploader = psutil.Process(int(driver.stdout.readline()))
            eventually(uploader.cmdline, "the uploader has its command line")  # none in the middle of its start
            assert ("--kernel-guard" in uploader.cmdline()) == (thread == "main")
            eventually((run_dir / "tracking" / "uploader.lock").exists, "the uploader works")
            time.sleep(0.7)
            assert uploader.is_running()  # the end of the thread that started it is no reason to end
            if thread == "main":
                uploader.suspend()  # now only the kernel can end it
        finally:
            driver.kill()
    try:
        eventually(lambda: not psutil.pid_exists(uploader.pid), "the uploader ends with the driver")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            uploader.kill()

    if thread == "other":
        return
    report = sync(run_dir, mlflow_server.url)
    assert (report.sent, report.pending) == (61, 0)
    assert points(mlflow_server.url, report.run_id, "loss") == EXPECTED
    run = client(mlflow_server.url).get_run(report.run_id)
    assert run.info.status == "KILLED"
    assert "without a word" in run.data.tags["error"]
    last = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert run.info.end_time == last["time"]


def test_an_uploader_that_crashes_is_started_again(
    mlflow_server: MlflowServer,
    run_dir: Path,
    quick: UploadSettings,
    experiment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("difc_ray.tracking.driver._LOOK_S", 0.05)
    notices: list[str] = []
    tracker = MlflowTracker(run_dir, mlflow_server.url, experiment, settings=quick, notice=notices.append)
    tracker.start(run_name="r", params={}, tags={})
    record(tracker, range(30))
    eventually(lambda: sent(tracker) == 31, "the first records have arrived")
    first = tracker.uploader_pid
    os.kill(first, signal.SIGKILL)
    eventually(lambda: tracker.uploader_pid is None, "it is dead")
    tracker.folder.cursor.unlink()  # as if the power had failed as well: all is sent again
    time.sleep(0.1)
    record(tracker, range(30, 60))
    assert tracker.uploader_pid not in (None, first)
    summary = tracker.finish("FINISHED")
    assert "ended with code -9" in notices[0]
    assert summary.pending == 0
    assert points(mlflow_server.url, summary.run_id, "loss") == EXPECTED
    assert runs_named(mlflow_server, experiment) == [summary.run_id]


def test_an_uploader_outlives_signals_that_are_sent_to_all_processes(
    mlflow_server: MlflowServer, run_dir: Path, quick: UploadSettings, experiment: str
) -> None:
    """As `ray job stop` does: the driver hears the signal and ends the run, and this must still be told."""
    notices: list[str] = []
    tracker = MlflowTracker(run_dir, mlflow_server.url, experiment, settings=quick, notice=notices.append)
    tracker.start(run_name="r", params={}, tags={})
    record(tracker, range(30))
    ok = {"state": "ok"}
    eventually(lambda: sent(tracker) == 31 and read_json(tracker.folder.status) == ok, "the first records have arrived")
    first = tracker.uploader_pid
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(first, number)
    record(tracker, range(30, 60))
    assert tracker.uploader_pid == first
    summary = tracker.finish("KILLED")
    assert notices == []
    assert summary.pending == 0
    assert points(mlflow_server.url, summary.run_id, "loss") == EXPECTED
    assert client(mlflow_server.url).get_run(summary.run_id).info.status == "KILLED"
    assert not psutil.pid_exists(first)


def test_without_mlflow_training_goes_on(run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken" / "mlflow"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text(textwrap.dedent("raise SystemExit('no mlflow here')"))
    monkeypatch.syspath_prepend(str(broken.parent))
    settings = UploadSettings(flush_s=0.1, max_restarts=1)
    tracker = MlflowTracker(run_dir, "http://127.0.0.1:9", "none", settings=settings, notice=lambda text: None)
    tracker.start(run_name="r", params={}, tags={})
    record(tracker, range(5))
    began = time.perf_counter()
    summary = tracker.finish("FINISHED", drain_s=10 * PATIENCE_S)
    assert time.perf_counter() - began < PATIENCE_S
    assert summary.pending == 7
    assert "no mlflow here" in tracker.folder.log.read_text()
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == 7
