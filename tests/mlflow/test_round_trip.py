"""What a run records arrives in MLflow: over HTTP, in SQLite, after a resume, and without secrets."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from difc_ray.config import resolve
from difc_ray.data import make_augmentation
from difc_ray.errors import CheckpointError
from difc_ray.models import Model, build_model
from difc_ray.runs.configuration import requested_config
from difc_ray.runs.train import train
from difc_ray.tracking import MlflowTracker, UploadSettings, entries, resolve_uri, sync
from difc_ray.tracking.journal import read_records
from tests.mlflow.servers import MlflowServer, Proxy, Verdict
from tests.ports import free_port
from tests.runs import small_config
from tests.waiting import eventually

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]


def client(uri: str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri, registry_uri=uri)


def points(uri: str, run_id: str, key: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client(uri).get_metric_history(run_id, key))


def write_model(directory: Path, dropout: float = 0.3) -> Model:
    shape, options = (3, 28, 28), {"dropout": dropout}
    model = build_model("lenet", shape, 10, options, seed=3)
    directory.mkdir()
    save_file(model.state_dict(), directory / "weights.safetensors")
    description = {
        "name": "lenet", "image_shape": shape, "n_outputs": 10, "options": options, "loss": "cross_entropy",
        "class_names": [str(digit) for digit in range(10)], "plugins": [],
    }  # fmt: skip
    (directory / "model.json").write_text(json.dumps(description))
    return model.eval()


def fail_each_kind_of_request_twice(proxy: Proxy) -> None:
    """Every endpoint answers the first request with 500; the second one changes the store, but its answer is lost."""
    seen: Counter[str] = Counter()

    def rule(method: str, path: str, body: bytes) -> Verdict:
        endpoint = re.sub(r"m-[0-9a-f]{32}|[0-9a-f]{32}", "ID", path.split("?")[0])
        kind = f"{method} {endpoint} {[key for key in (b'metrics', b'params', b'tags') if key in body]}"
        seen[kind] += 1
        verdicts: dict[int, Verdict] = {1: 500} if method == "GET" else {1: 500, 2: "swallow"}
        return verdicts.get(seen[kind], "forward")

    proxy.rule = rule


def test_everything_round_trips_though_each_request_fails_twice(
    mlflow_server: MlflowServer, proxy: Proxy, run_dir: Path, quick: UploadSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_each_kind_of_request_twice(proxy)
    hasty = replace(quick, backoff_first_s=0.02, backoff_max_s=0.1)
    params = {f"p{i}": i for i in range(250)} | {"optimizer": {"lr": 1e-3}, "sources": ["mnist", "fonts"], "root": None}
    tracker = MlflowTracker(run_dir, proxy.url, "round-trip", settings=hasty)
    tracker.start(run_name="spine", params=params, tags={"git.sha": "abc", "domains": "mnist,fonts"})
    expected = {f"train/loss/d{d}": [(s, 0.1 * d + 1.0 / (s + 1)) for s in range(60)] for d in range(30)}
    for step in range(60):
        values = {key: series[step][1] for key, series in expected.items()}
        tracker.metrics(step, values | {"loss@photo": float(step), "bad": float("nan") if step > 1 else float("inf")})
    tracker.tags({"engine": "inline", "git.sha": "def"})
    figure = Figure()
    figure.subplots().plot([1, 2])
    tracker.figure("curves", figure)
    (run_dir / "config.yaml").write_text("seed: 1\n")
    tracker.artifact(run_dir / "config.yaml")
    outside = run_dir.parent / "elsewhere"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "note.txt").write_text("hello")
    tracker.artifact(outside, "extra")
    model = write_model(run_dir / "best")
    tracker.model(run_dir / "best", step=40)
    summary = tracker.finish("FINISHED")

    assert (summary.pending, summary.refused, summary.message) == (0, 0, None)
    assert Counter(verdict for _, _, verdict in proxy.seen).keys() == {500, "swallow", "forward"}
    mlflow = client(mlflow_server.url)
    run = mlflow.get_run(summary.run_id)
    assert [found.info.run_id for found in mlflow.search_runs([run.info.experiment_id])] == [summary.run_id]
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "spine"
    assert run.data.params == {f"p{i}": str(i) for i in range(250)} | {
        "optimizer.lr": "0.001", "sources": "['mnist', 'fonts']", "root": "None",
    }  # fmt: skip
    for key in ("train/loss/d0", "train/loss/d29"):
        assert points(mlflow_server.url, summary.run_id, key) == expected[key]
    assert "bad" not in run.data.metrics
    assert run.data.tags["difc_ray.nonfinite_metrics"] == "bad: 60 (first at step 0)"
    (renamed,) = [key for key in run.data.metrics if key.startswith("loss_photo-")]
    assert run.data.tags[f"difc_ray.renamed.{renamed}"] == "loss@photo"
    assert run.data.tags["git.sha"] == "def"
    assert run.data.tags["domains"] == "mnist,fonts"
    written = {
        record["step"]: record["time"]
        for record in map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
        if record["kind"] == "metrics"
    }
    arrived = {m.step: m.timestamp for m in mlflow.get_metric_history(summary.run_id, "train/loss/d3")}
    assert arrived == written
    assert {file.path for file in mlflow.list_artifacts(summary.run_id)} == {"figures", "config.yaml", "extra"}
    note = mlflow.download_artifacts(summary.run_id, "extra/deep/note.txt", str(run_dir.parent))
    assert Path(note).read_text() == "hello"
    assert len(run.outputs.model_outputs) == 1
    check_model(mlflow_server.url, summary.run_id, run.info.experiment_id, model, monkeypatch)
    assert not (run_dir.parent / "mlruns").exists()
    assert f"/runs/{summary.run_id}" in summary.ui_command


def check_model(uri: str, run_id: str, experiment_id: str, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One finished model, without pickle, that predicts like the torch module for any batch size."""
    import mlflow

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    (logged,) = client(uri).search_logged_models([experiment_id])
    assert str(logged.status) == "READY"
    assert logged.source_run_id == run_id
    former = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    try:
        for address in (f"models:/{logged.model_id}", f"runs:/{run_id}/model"):
            loaded = mlflow.pyfunc.load_model(address)
            for n in (1, 5, 33):
                images = np.random.default_rng(n).random((n, 3, 28, 28), dtype=np.float32)
                with torch.no_grad():
                    expected = model(torch.from_numpy(images)).numpy()
                np.testing.assert_allclose(loaded.predict(images), expected, rtol=1e-5, atol=1e-6)
        assert loaded.metadata.signature.inputs.to_dict()[0]["tensor-spec"]["shape"] == (-1, 3, 28, 28)
        assert loaded.metadata.metadata["class_names"] == [str(digit) for digit in range(10)]
        assert loaded.input_example.shape[1:] == (3, 28, 28)
    finally:
        mlflow.set_tracking_uri(former)


def test_a_resumed_run_continues_the_same_mlflow_run(tmp_path: Path, run_dir: Path, quick: UploadSettings) -> None:
    uri = resolve_uri(None, tmp_path, {})
    first = MlflowTracker(run_dir, uri, "resume", settings=quick)
    first.start(run_name="r", params={"lr": 0.1, "seed": 1}, tags={})
    for step in range(10):
        first.metrics(step, {"loss": float(step)})
    interrupted = first.finish("FAILED", "disk full")
    state = client(uri).get_run(interrupted.run_id)
    assert (state.info.status, state.data.tags["error"]) == ("FAILED", "disk full")

    with pytest.raises(CheckpointError, match="must be new unless the run is resumed"):
        MlflowTracker(run_dir, uri, "resume", settings=quick)
    second = MlflowTracker(run_dir, uri, "resume", resume=True, settings=quick)
    second.start(run_name="r", params={"lr": 0.2, "seed": 1, "new": "x"}, tags={})
    eventually(lambda: second.folder.sent_seq(uri) > 12, "the second start has been sent")
    assert client(uri).get_run(interrupted.run_id).info.status == "RUNNING"
    for step in range(6, 15):  # the checkpoint was at step 6
        second.metrics(step, {"loss": float(step), "late": 1.0})
    ended = second.finish("KILLED", "stopped by a signal")

    assert ended.run_id == interrupted.run_id
    run = client(uri).get_run(ended.run_id)
    assert points(uri, ended.run_id, "loss") == [(step, float(step)) for step in range(15)]
    assert points(uri, ended.run_id, "late") == [(step, 1.0) for step in range(6, 15)]
    assert run.data.params == {"lr": "0.1", "seed": "1", "new": "x"}
    assert run.data.tags["resume.1.lr"] == "0.2"
    assert "resume.1.seed" not in run.data.tags
    assert (run.info.status, run.data.tags["error"]) == ("KILLED", "stopped by a signal")
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(tmp_path)


def test_a_run_that_was_recorded_nowhere_is_sent_when_a_store_is_named(tmp_path: Path) -> None:
    """It was resumed from a checkpoint before its end: MLflow has every step once, and so have figures and summary."""
    changes: dict[str, Any] = {
        "engine": "inline", "sources": ["mnist", "fonts"], "eval_every": 2, "checkpoint": {"every": 3, "keep": 9},
    }  # fmt: skip
    train(small_config(output=str(tmp_path), name="straight", steps=8, **changes))
    run_dir = train(small_config(output=str(tmp_path), name="off", steps=5, **changes)).run_dir
    shutil.rmtree(run_dir / "checkpoints" / "step-00000005")
    resumed = train(resolve(requested_config(None, [f"resume={run_dir}", "steps=8"])))
    journal = run_dir / "metrics.jsonl"
    (rewound,) = (record.data for record in read_records(journal) if record.kind == "rewound")
    assert rewound["step"] < 5
    taken = [{**step, "seconds": None} for step in entries(journal, "step")]
    straight = tmp_path / "straight" / "metrics.jsonl"
    assert taken == [{**step, "seconds": None} for step in entries(straight, "step")]
    evaluated = {entry["step"]: entry for entry in entries(journal, "evaluation")}
    assert evaluated.items() == {entry["step"]: entry for entry in entries(straight, "evaluation")}.items()
    assert not (run_dir / "tracking").exists()

    shutil.rmtree(run_dir / "export")  # both models are refused; to save them takes a minute, and is tested elsewhere
    uri = resolve_uri(None, tmp_path, {})
    report = sync(run_dir, uri)
    assert (report.pending, report.refused, report.message) == (0, 2, None)
    run = client(uri).get_run(report.run_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "off")
    assert (run.data.params["steps"], run.data.tags["resume.1.steps"]) == ("5", "8")
    losses = {step["step"]: step["losses"]["mnist"] for step in taken}
    assert points(uri, report.run_id, "train/loss/mnist") == sorted(losses.items())
    assert [step for step, _ in points(uri, report.run_id, "val/accuracy/fonts")] == [2, 4, 5, 6, 8]
    final = resumed.summary["accuracy"]["fonts"]["test"]
    assert points(uri, report.run_id, "final/test/accuracy/fonts")[-1] == (8, pytest.approx(final))
    assert {"config.yaml", "summary.json", "figures"} <= {f.path for f in client(uri).list_artifacts(report.run_id)}
    again = sync(run_dir, uri)
    assert (again.sent, again.pending) == (0, 0)


def test_two_runs_share_a_database_that_does_not_exist_yet(tmp_path: Path, quick: UploadSettings) -> None:
    uri = f"sqlite:///{tmp_path}/new/folder/mlflow.db"
    trackers = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        trackers.append(MlflowTracker(tmp_path / name, uri, "shared", settings=quick))
    for tracker in trackers:
        tracker.start(run_name="r", params={}, tags={})
    for step in range(300):
        for tracker in trackers:
            tracker.metrics(step, {"loss": float(step), "acc": 1.0})
    summaries = [tracker.finish("FINISHED") for tracker in trackers]
    assert len({summary.run_id for summary in summaries}) == 2
    for summary in summaries:
        assert summary.pending == 0
        assert points(uri, summary.run_id, "loss") == [(step, float(step)) for step in range(300)]


def test_credentials_are_written_nowhere(mlflow_server: MlflowServer, run_dir: Path, quick: UploadSettings) -> None:
    secret = "SECRET123"
    dead = f"http://ann:{secret}@127.0.0.1:{free_port()}"
    notices: list[str] = []
    tracker = MlflowTracker(run_dir, dead, "secrets", settings=quick, notice=notices.append)
    params = {"tracking": {"uri": dead}, "api_key": secret, "hub.token": secret, "n_tokens": 5}
    tracker.start(run_name="s", params=params, tags={"uri": dead, "wandb_password": secret})
    tracker.tags({"again": f"see {dead}/x?token={secret}"})
    assert tracker.uploader_pid is not None
    assert secret not in " ".join(psutil.Process(tracker.uploader_pid).cmdline())
    eventually((run_dir / "tracking" / "status.json").exists, "the uploader has failed once")
    tracker.metrics(0, {"loss": 1.0})
    summary = tracker.finish("FAILED", f"could not reach {dead}", drain_s=0.5)
    assert summary.pending == 4
    assert summary.run_id is None
    assert "difc-ray sync" in str(summary.message)
    assert notices
    shown = f"{summary} {notices}"

    report = sync(run_dir, mlflow_server.url.replace("http://", f"http://ann:{secret}@"))
    assert (report.pending, report.refused) == (0, 0)
    run = client(mlflow_server.url).get_run(report.run_id)
    assert run.data.params["tracking.uri"].startswith("http://***@127.0.0.1:")
    assert run.data.params["api_key"] == "***"
    assert run.data.params["n_tokens"] == "5"
    assert run.info.status == "FAILED"
    assert secret not in f"{shown} {report} {run.to_dictionary()}"
    leaks = subprocess.run(["grep", "-rl", secret, str(run_dir)], capture_output=True, text=True, check=False)
    assert leaks.stdout == ""
    assert list(run_dir.rglob("*.log"))  # the log that could have leaked exists


def test_the_augmentation_of_a_run_is_among_its_artifacts(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    """As Albumentations itself writes it, so that `augment=PATH` takes it."""
    config = small_config(
        engine="inline", sources=["mnist", "fonts"], steps=2, augment="light", name="augmented",
        output=str(tmp_path / "runs"), tracking={"mode": "on", "uri": mlflow_server.url},
    )  # fmt: skip
    result = train(config)
    assert result.tracking is not None
    found = client(mlflow_server.url).download_artifacts(result.tracking.run_id, "augmentation.yaml", str(tmp_path))
    held, meant = make_augmentation(found, (3, 28, 28)), make_augmentation("light", (3, 28, 28))
    assert held is not None
    assert meant is not None
    assert held.text() == meant.text()
    assert held.text() != make_augmentation("domainbed", (3, 28, 28)).text()
