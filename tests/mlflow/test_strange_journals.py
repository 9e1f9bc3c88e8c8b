"""A run folder from somebody else: what its journal names is not sent, and not to where its journal says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from difc_ray.errors import ConfigError
from difc_ray.tracking import TrackingFolder, resolve_uri, sync
from difc_ray.tracking.uris import own_uri, sync_command
from tests.mlflow.servers import MlflowServer

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]


def journal_of(run_dir: Path, store: str, files: list[str]) -> None:
    """The journal of a run that has ended, with artifacts of these names."""
    start = {
        "kind": "start", "store": store, "experiment": "theirs", "run_name": "r", "key": "k" * 32, "attempt": 0,
        "params": {}, "tags": {}, "parent": None, "pid": 1, "started": 0.0, "host": "elsewhere",
    }  # fmt: skip
    records = [start, *({"kind": "artifact", "path": name, "folder": "loot"} for name in files)]
    records.append({"kind": "finish", "status": "FINISHED", "error": None})
    run_dir.mkdir(parents=True)
    lines = [json.dumps({"seq": n, "time": n, **record}) + "\n" for n, record in enumerate(records, start=1)]
    (run_dir / "metrics.jsonl").write_text("".join(lines))


def test_only_what_is_inside_the_run_folder_is_sent(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    run_dir, uri = tmp_path / "runs" / "theirs", resolve_uri(None, tmp_path / "runs", {})
    outside = [str(tmp_path / "secret"), "../../secret", "link", "folder"]
    journal_of(run_dir, uri, ["good.txt", *outside])
    (run_dir / "good.txt").write_text("theirs")
    (run_dir / "link").symlink_to(tmp_path / "secret")
    (run_dir / "folder").mkdir()
    (run_dir / "folder" / "secret").symlink_to(tmp_path / "secret")
    report = sync(run_dir)
    assert (report.pending, report.refused) == (0, len(outside))
    sent = MlflowClient(uri).list_artifacts(report.run_id, "loot")
    assert [file.path for file in sent] == ["loot/good.txt"]
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file() and path.read_bytes() == b"mine"
                and run_dir not in path.parents]  # fmt: skip
    reasons = TrackingFolder(run_dir).refused.read_text()
    assert reasons.count("Only files inside the run's folder are sent.") == len(outside)


def test_a_run_is_sent_only_where_the_users_settings_say(
    mlflow_server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "runs" / "theirs"
    journal_of(run_dir, mlflow_server.url, [])
    with pytest.raises(
        ConfigError, match=f"where your own settings say.*`{mlflow_server.url}`.*--uri {mlflow_server.url}"
    ):
        sync(run_dir)
    assert not (run_dir / "tracking").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{mlflow_server.url}/")
    assert sync(run_dir).sent == 2


def test_whose_store_it_is(tmp_path: Path) -> None:
    beside = resolve_uri(None, tmp_path, {})
    elsewhere = resolve_uri(None, tmp_path / "other", {})
    assert own_uri(beside, tmp_path, {}) == beside
    assert own_uri(elsewhere, tmp_path, {}) is None
    assert own_uri(elsewhere, tmp_path, {"MLFLOW_TRACKING_URI": elsewhere}) == elsewhere
    assert own_uri("http://h:1", tmp_path, {"MLFLOW_TRACKING_URI": "http://h:2"}) is None
    assert own_uri("http://h:1", tmp_path, {"MLFLOW_TRACKING_URI": "http://ann:pw@h:1"}) == "http://ann:pw@h:1"
    assert sync_command(tmp_path / "r", beside, tmp_path, {}) == f"difc-ray sync {tmp_path / 'r'}"
    assert sync_command(tmp_path / "r", "http://h:1", tmp_path, {}).endswith("/r --uri http://h:1")
    trial = TrackingFolder(tmp_path / "out" / "sweep" / "trials" / "00001")
    assert trial.output == tmp_path / "out"
