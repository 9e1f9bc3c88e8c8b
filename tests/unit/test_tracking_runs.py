"""Runs in an MLflow store: found again, closed, and given up where somebody else fails."""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from difc_ray.files import exclusive, write_json
from difc_ray.runs.metrics_log import MetricsLog
from difc_ray.step.coordinator import StepRecord
from difc_ray.tracking import Tracker, TrackingFolder
from difc_ray.tracking.failures import UnavailableError
from difc_ray.tracking.journal import JournalWriter
from difc_ray.tracking.replay import Replayer
from difc_ray.tracking.runs import KEY_TAG, RunStore


class _FakeClient:
    """As much of MLflow's client as creating and ending a run needs, with runs of an earlier, lost request."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.deleted: list[str] = []

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id="1", lifecycle_stage="active" if name == "here" else "deleted")

    def create_run(self, experiment_id: str, start_time: int, run_name: str, tags: dict[str, str]) -> Any:
        run_id = f"run{len(self.runs)}"
        self.runs[run_id] = {"tags": tags, "start": start_time}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def search_runs(self, experiment_ids: list[str], filter_string: str) -> list[Any]:
        key = filter_string.split("'")[1]
        return [
            SimpleNamespace(info=SimpleNamespace(run_id=run_id, start_time=run["start"]))
            for run_id, run in self.runs.items()
            if run["tags"][KEY_TAG] == key and run_id not in self.deleted
        ]

    def delete_run(self, run_id: str) -> None:
        self.deleted.append(run_id)

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.runs[run_id]["status"] = (status, end_time)


class TestRunStore:
    START: ClassVar = {"key": "k", "experiment": "here", "run_name": "r", "attempt": 0}

    def store(self, tmp_path: Path, client: _FakeClient) -> RunStore:
        folder = TrackingFolder(tmp_path)
        folder.path.mkdir(exist_ok=True)
        store = RunStore(folder, "http://h")
        store._client = client
        return store

    def test_a_run_whose_creation_was_answered_too_late_is_found_or_removed(self, tmp_path: Path) -> None:
        client = _FakeClient()
        first = self.store(tmp_path, client)
        first.open(self.START, 5)
        first._folder.run.unlink()  # the answer never came: nothing was written down
        second = self.store(tmp_path, client)
        second.open(self.START, 5)
        assert second.run_id == first.run_id == "run0"
        client.create_run("1", 5, "r", {KEY_TAG: "k"})  # the server comes to the old request after all
        client.create_run("1", 5, "r", {KEY_TAG: "another journal"})
        second.end("run0", "FINISHED", 9, None)
        assert client.deleted == ["run1"]
        assert client.runs["run0"]["status"] == ("FINISHED", 9)

    def test_a_database_is_set_up_by_one_process_at_a_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """MLflow's migrations fail ("duplicate column", "table exists") when two processes create one database."""
        order: list[str] = []
        monkeypatch.setattr("mlflow.tracking.MlflowClient", lambda *a, **k: order.append("connected"))
        store = RunStore(TrackingFolder(tmp_path), f"sqlite:///{tmp_path}/new/m.db")
        (tmp_path / "new").mkdir()
        thread = threading.Thread(target=lambda: store.client)
        with exclusive(tmp_path / "new" / "m.db.lock", 5.0):
            thread.start()
            time.sleep(0.3)
            order.append("free")
        thread.join()
        assert order == ["free", "connected"]

    def test_a_deleted_experiment_is_explained(self, tmp_path: Path) -> None:
        with pytest.raises(UnavailableError, match="mlflow experiments restore"):
            self.store(tmp_path, _FakeClient()).open({**self.START, "experiment": "gone"}, 5)


def test_a_foreign_failure_is_given_up_after_five_attempts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TrackingFolder(tmp_path)
    folder.path.mkdir()
    write_json(folder.run, {"stores": {"http://h": {"run_id": "r", "experiment_id": "1"}}})
    logged: list[str] = []

    def upload(self: RunStore, path: Path, target: str) -> None:
        if path.name == "bad":
            raise LookupError("no credentials for the bucket")
        logged.append(path.name)

    monkeypatch.setattr(RunStore, "log_artifact", upload)
    writer = JournalWriter(folder.journal)
    for name in ("bad", "good"):
        (tmp_path / name).write_text("x")
        writer.append("artifact", {"path": name, "folder": ""})
    writer.close()
    replayer = Replayer(tmp_path, "http://h")
    for _ in range(4):
        with pytest.raises(UnavailableError, match="LookupError: no credentials"):
            replayer.pump()
    assert logged == []
    replayer.pump()
    assert logged == ["good"]
    assert folder.count_refused() == 1
    assert folder.sent_seq("http://h") == 2


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches the store, request by request, in which the run exists already."""
    folder, seen = TrackingFolder(tmp_path), []
    folder.path.mkdir()
    write_json(folder.run, {"stores": {"http://h": {"run_id": "r", "experiment_id": "1"}}})
    monkeypatch.setattr(RunStore, "open", lambda self, start, time: None)
    monkeypatch.setattr(RunStore, "params", lambda self: {})
    monkeypatch.setattr(RunStore, "log", lambda self, **content: seen.append(content))
    monkeypatch.setattr(RunStore, "end", lambda self, *ending: seen.append({"end": ending}))
    return seen


def attempt(run_dir: Path, steps: range, *, loss: float = 0.0) -> None:
    """A run that takes these steps and is evaluated at every fifth; the checkpoint before them is older than some."""
    tracker = Tracker(run_dir, "http://h", "e", resume=steps.start > 0)
    tracker.start(run_name="r", params={}, tags={})
    log = MetricsLog(tracker, steps.start, steps.start // 5 * 5)
    for step in steps:
        values = {"gap": math.nan if step % 2 else 1.0}
        log.step(StepRecord(step=step, losses={"a@b": step + loss}, values=values, seconds={"step": 0.5}))
        if step % 5 == 4:
            log.evaluation(step + 1, {"val/accuracy/a": 0.5 + loss}, [[1]])
    tracker.finish("FAILED", "lost")


def test_what_a_resumed_run_computes_again_is_sent_once(tmp_path: Path, requests: list[dict[str, Any]]) -> None:
    """Whether the uploader lives from one attempt to the next, or another one begins at the cursor."""
    attempt(tmp_path, range(10))
    replayer = Replayer(tmp_path, "http://h")
    replayer.pump()
    attempt(tmp_path, range(6, 8), loss=0.25)  # ends before it is anywhere new
    replayer.pump()
    attempt(tmp_path, range(4, 12), loss=0.25)
    Replayer(tmp_path, "http://h").pump()
    sent = [point for request in requests for point in request.get("metrics", ())]
    keys = [(key, step) for key, _, _, step in sent]
    assert len(keys) == len(set(keys))
    (renamed,) = {key for key, _ in keys if key.startswith("train/loss/")}
    losses = [(step, value) for key, value, _, step in sent if key == renamed]
    assert losses == [(step + 1, float(step)) for step in range(10)] + [(11, 10.25), (12, 11.25)]
    assert [(value, step) for key, value, _, step in sent if key == "val/accuracy/a"] == [(0.5, 5), (0.5, 10)]
    assert [step for key, _, _, step in sent if key == "harmonize/gap"] == [1, 3, 5, 7, 9, 11]
    assert {value for key, value, _, _ in sent if key == "time/step_ms"} == {500.0}
    tags = [tuple(tag) for request in requests for tag in request.get("tags", ())]
    assert tags.count((f"difc_ray.renamed.{renamed}", "train/loss/a@b")) == 2  # by each uploader
    counts = [text for name, text in tags if name == "difc_ray.nonfinite_metrics"]
    assert counts == [f"harmonize/gap: {number} (first at step 2)" for number in (5, 5, 6)]
    assert [request["end"][1] for request in requests if "end" in request] == ["FAILED"] * 3
    assert TrackingFolder(tmp_path).pending("http://h") == 0


def test_a_damaged_step_is_refused_alone_and_a_line_without_number_left_out(
    tmp_path: Path, requests: list[dict[str, Any]]
) -> None:
    attempt(tmp_path, range(1, 2))
    path = tmp_path / "metrics.jsonl"
    old, damaged = '{"kind": "step", "step": 1, "losses": {}}\n', '{"seq": 9, "time": 1, "kind": "step", "step": 5}\n'
    path.write_text(f"{old}{path.read_text()}{damaged}noise\n")
    replayer = Replayer(tmp_path, "http://h")
    replayer.pump()
    refused = [json.loads(line) for line in replayer.folder.refused.read_text().splitlines()]
    assert [(entry["seq"], entry["kind"]) for entry in refused] == [(9, "step"), (0, "damaged")]
    assert replayer.seq == 9
    assert {step for request in requests for _, _, _, step in request.get("metrics", ())} == {2}
