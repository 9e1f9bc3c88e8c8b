"""A sweep and its trials through one uploader: nested, in any order of events, none held up by another."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from difc_ray.files import read_json, write_json
from difc_ray.tracking import MlflowTracker, Tracker, TrackingFolder, UploadSettings, resolve_uri, sync
from tests.mlflow.servers import MlflowServer, Proxy
from tests.mlflow.test_round_trip import client, points
from tests.ports import free_port
from tests.processes import command_of
from tests.waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]

ABANDONED = """
import sys, time
from pathlib import Path
from difc_ray.tracking import Tracker
tracker = Tracker(Path(sys.argv[1]), sys.argv[2], "sweep", parent=sys.argv[3])
tracker.start(run_name="killed", params={"lr": 3}, tags={})
tracker.metrics(0, {"loss": 3.0})
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "sweep"
    folder.mkdir(parents=True)
    return folder


def journal_of_a_trial(
    sweep: Path, uri: str, name: str, parent: str, value: float, experiment: str = "sweep"
) -> Tracker:
    """A trial that only writes its journal, and has ended."""
    tracker = Tracker(sweep / "trials" / name, uri, experiment, parent=parent)
    tracker.start(run_name=name, params={"lr": value}, tags={})
    for step in range(5):
        tracker.metrics(step, {"loss": value + step})
    summary = tracker.finish("FINISHED")
    assert (summary.message, summary.refused) == (None, 0)
    return tracker


def left_behind(sweep: Path, uri: str, name: str, parent: str) -> None:
    """A trial whose process is killed before it says how it ended."""
    command = [sys.executable, "-c", ABANDONED, str(sweep / "trials" / name), uri, parent]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        process.kill()


def runs_by_name(uri: str, experiment: str = "sweep") -> dict[str, Any]:
    store = client(uri)
    found = store.search_runs([store.get_experiment_by_name(experiment).experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def test_one_uploader_sends_a_sweep_and_its_trials(tmp_path: Path, sweep: Path, quick: UploadSettings) -> None:
    uri = resolve_uri(None, tmp_path, {})
    parent = MlflowTracker(sweep, uri, "sweep", settings=quick)
    journal_of_a_trial(sweep, uri, "before", parent.key, 1.0)
    damaged = sweep / "trials" / "damaged"
    damaged.mkdir(parents=True)
    (damaged / "metrics.jsonl").write_text('{"seq":1,"time":1,"kind":"start","key":"k"}\nnoise\n{"seq":2,"time"')
    parent.start(run_name="sweep", params={"samples": 3}, tags={"kind": "sweep"})
    parent.metrics(0, {"best": 1.0})
    eventually(lambda: sent(sweep, "before", uri) == 7, "the first trial has arrived")
    lock = TrackingFolder(sweep / "trials" / "locked").lock()
    lock.acquire()  # as `difc-ray sync` on this trial does
    journal_of_a_trial(sweep, uri, "locked", parent.key, 4.0)
    journal_of_a_trial(sweep, uri, "during", parent.key, 2.0)
    left_behind(sweep, uri, "killed", parent.key)
    eventually(lambda: sent(sweep, "killed", uri) == 2 and sent(sweep, "during", uri) == 7, "the others have too")
    children = psutil.Process().children()
    assert len([child for child in children if "difc_ray.tracking.uploader" in command_of(child)]) == 1
    assert sent(sweep, "locked", uri) == 0
    lock.release()
    summary = parent.finish("FINISHED")

    assert (summary.pending, summary.refused) == (0, 2)  # a line that is noise, and a beginning without its fields
    assert "below" in str(summary.message)
    runs = runs_by_name(uri)
    assert set(runs) == {"sweep", "before", "during", "locked", "killed"}
    nested = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    assert nested == {"sweep": None, **dict.fromkeys(("before", "during", "locked", "killed"), summary.run_id)}
    assert {name: run.info.status for name, run in runs.items()} == {
        "sweep": "FINISHED", "before": "FINISHED", "during": "FINISHED", "locked": "FINISHED", "killed": "KILLED",
    }  # fmt: skip
    assert "without a word" in runs["killed"].data.tags["error"]
    assert points(uri, runs["during"].info.run_id, "loss") == [(step, 2.0 + step) for step in range(5)]
    assert runs["during"].data.params == {"lr": "2.0"}
    assert not [name for name in ("before", "during", "locked", "killed") if lock_held(sweep / "trials" / name)]


def sent(sweep: Path, trial: str, uri: str) -> int:
    return TrackingFolder(sweep / "trials" / trial).sent_seq(uri)


def lock_held(run_dir: Path) -> bool:
    return TrackingFolder(run_dir).lock().path.exists()


def test_a_sweep_whose_store_was_away_is_sent_by_sync(
    mlflow_server: MlflowServer, sweep: Path, quick: UploadSettings
) -> None:
    """The server is not there until the sweep has ended; a trial alone cannot be sent before its sweep."""
    away = f"http://127.0.0.1:{free_port()}"
    parent = MlflowTracker(sweep, away, "sweep", settings=quick)
    parent.start(run_name="sweep", params={}, tags={"kind": "sweep"})
    for n, name in enumerate(("a", "b")):
        journal_of_a_trial(sweep, away, name, parent.key, float(n))
    summary = parent.finish("FINISHED", drain_s=0.2)
    assert summary.pending == 2 + 7 + 7
    assert f"difc-ray sync {sweep}" in str(summary.message)

    began = time.monotonic()
    alone = sync(sweep / "trials" / "a", mlflow_server.url, patience_s=10 * PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S  # it does not wait for what cannot come
    assert (alone.sent, alone.pending, alone.run_id) == (0, 7, None)
    assert f"Send the whole sweep with `difc-ray sync {sweep}`" in str(alone.message)

    report = sync(sweep, mlflow_server.url)
    assert (report.sent, report.pending, report.refused, report.message, report.trials) == (16, 0, 0, None, 2)
    runs = runs_by_name(mlflow_server.url)
    assert {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()} == {
        "sweep": None, "a": report.run_id, "b": report.run_id,
    }  # fmt: skip
    assert points(mlflow_server.url, runs["b"].info.run_id, "loss") == [(step, 1.0 + step) for step in range(5)]
    assert runs["sweep"].info.run_id == report.run_id


def test_a_store_that_comes_back_gets_the_trials_in_order(
    mlflow_server: MlflowServer, proxy: Proxy, sweep: Path, quick: UploadSettings
) -> None:
    """No trial is nested in nothing, and none is lost: neither the run of the sweep nor, later, a trial can be made."""
    proxy.rule = lambda method, path, body: 503
    parent = MlflowTracker(sweep, proxy.url, "back", settings=quick)
    parent.start(run_name="sweep", params={}, tags={"kind": "sweep"})
    journal_of_a_trial(sweep, proxy.url, "a", parent.key, 1.0, "back")
    eventually(lambda: "waiting" in read_json(parent.folder.status).values(), "the sweep waits")
    assert {path.split("?")[0].rsplit("/", 1)[-1] for _, path, _ in proxy.seen} == {"get-by-name"}
    proxy.rule = lambda method, path, body: 503 if b"parentRunId" in body else "forward"
    eventually(lambda: parent.folder.sent_seq(proxy.url) == 1, "the sweep has arrived")
    eventually(lambda: "waiting" in read_json(parent.folder.status).values(), "the trial waits, and the sweep says so")
    assert parent.folder.identity(proxy.url)["run_id"]
    journal_of_a_trial(sweep, proxy.url, "b", parent.key, 2.0, "back")
    proxy.rule = lambda method, path, body: "forward"
    summary = parent.finish("FINISHED")

    assert (summary.pending, summary.refused, summary.message) == (0, 0, None)
    assert read_json(parent.folder.status) == {"state": "ok"}
    created = [path for method, path, verdict in proxy.seen if path.endswith("runs/create") and verdict == "forward"]
    assert len(created) >= 3  # a request that is answered late is repeated
    runs = runs_by_name(mlflow_server.url, "back")
    assert {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()} == {
        "sweep": None, "a": summary.run_id, "b": summary.run_id,
    }  # fmt: skip
    assert points(mlflow_server.url, runs["a"].info.run_id, "loss") == [(step, 1.0 + step) for step in range(5)]


def saved_model(path: Path, of_record: int) -> None:
    """As much of a model in MLflow's format as the registry looks at; saving a real one is tested elsewhere."""
    from mlflow.models import Model

    path.mkdir()
    Model(flavors={"python_function": {"loader_module": "mlflow.pytorch"}}).save(str(path / "MLmodel"))
    write_json(path / "difc_ray.json", {"journal_record": of_record})


def test_a_model_is_registered_once_on_a_server_and_in_sqlite(
    mlflow_server: MlflowServer, tmp_path: Path, run_dir: Path, quick: UploadSettings
) -> None:
    """However often its record is sent: the second time because the cursor was lost."""
    tracker = MlflowTracker(run_dir, mlflow_server.url, "registry", settings=quick)
    tracker.start(run_name="r", params={}, tags={})
    (run_dir / "best").mkdir()
    saved_model(run_dir / "model", of_record=2)
    tracker.model(run_dir / "best", step=4, register="digits-best")
    assert tracker.finish("FINISHED").pending == 0
    tracker.folder.cursor.unlink()
    assert sync(run_dir, mlflow_server.url).sent == 3
    sqlite = resolve_uri(None, tmp_path, {})
    assert sync(run_dir, sqlite).sent == 3

    for uri in (mlflow_server.url, sqlite):
        identity = tracker.folder.identity(uri)
        (version,) = client(uri).search_model_versions("name = 'digits-best'")
        (model,) = client(uri).search_logged_models([identity["experiment_id"]])
        assert version.run_id == identity["run_id"]
        assert client(uri).get_model_version_download_uri("digits-best", version.version) == model.artifact_location
        files = {file.path for file in client(uri).list_logged_model_artifacts(model.model_id)}
        assert "MLmodel" in files
    assert tracker.folder.count_refused() == 0
