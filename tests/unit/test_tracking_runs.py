"""Runs in an MLflow store: found again, closed, and given up where somebody else fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from difc_ray.files import exclusive, write_json
from difc_ray.tracking import (
    TrackingFolder,
)
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
