"""What is measured after a run's end arrives in its own run on a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from difc_ray.tracking import MlflowTracker, UploadSettings, add_afterwards
from tests.mlflow.servers import MlflowServer
from tests.mlflow.test_round_trip import client, points

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]


def test_findings_are_added_to_the_run_and_its_end_stays(
    mlflow_server: MlflowServer, run_dir: Path, quick: UploadSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.url)
    tracker = MlflowTracker(run_dir, mlflow_server.url, "afterwards", settings=quick)
    tracker.start(run_name="measured", params={"seed": 1}, tags={})
    tracker.metrics(3, {"train/loss/mnist": 0.5})
    run_id = tracker.finish("KILLED", "stopped").run_id
    assert run_id is not None
    before = client(mlflow_server.url).get_run(run_id)
    inside, outside = run_dir / "spectrum" / "spectrum.json", tmp_path / "elsewhere" / "density.png"
    for file in (inside, outside):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("first")

    found = {0: {"spectrum/top/mnist": 2.0, "spectrum/top/a@b": 1.0}, 3: {"spectrum/top/mnist": 4.0}}
    report = add_afterwards(run_dir, found, [inside, outside], "spectrum")
    assert report is not None
    assert (report.run_id, report.pending, report.refused) == (run_id, 0, 0)
    assert points(mlflow_server.url, run_id, "spectrum/top/mnist") == [(0, 2.0), (3, 4.0)]
    after = client(mlflow_server.url).get_run(run_id)
    assert len([key for key in after.data.metrics if key.startswith("spectrum/top/a_b-")]) == 1
    assert (after.info.status, after.info.end_time) == ("KILLED", before.info.end_time)
    assert after.data.tags["error"] == "stopped"
    listed = {file.path for file in client(mlflow_server.url).list_artifacts(run_id, "spectrum")}
    assert listed == {"spectrum/spectrum.json", "spectrum/density.png"}

    assert end_again(run_dir) == ("KILLED", "stopped")
    assert (run_dir / "artifacts" / "spectrum" / "density.png").read_text() == "first"  # its own place may go

    inside.write_text("second")
    found[3]["spectrum/top/mnist"] = 5.0  # measured in another way
    assert add_afterwards(run_dir, found, [inside], "spectrum") is not None
    assert points(mlflow_server.url, run_id, "spectrum/top/mnist") == [(0, 2.0), (3, 4.0), (3, 5.0)]
    assert client(mlflow_server.url).get_run(run_id).data.metrics["spectrum/top/mnist"] == 5.0
    copy = client(mlflow_server.url).download_artifacts(run_id, "spectrum/spectrum.json", str(tmp_path))
    assert Path(copy).read_text() == "second"

    journal = run_dir / "metrics.jsonl"
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))  # cut off before the end is told
    assert add_afterwards(run_dir, {}, [], "spectrum") is not None
    assert end_again(run_dir) == ("KILLED", "stopped")


def end_again(run_dir: Path) -> tuple[str, str | None]:
    """Status and error of the last record, which must be the first end once more, with a number of its own."""
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    numbers = [record["seq"] for record in records]
    assert numbers == sorted(set(numbers))
    first, last = next(record for record in records if record["kind"] == "finish"), records[-1]
    assert last == {**first, "seq": last["seq"]}
    return last["status"], last["error"]


def test_a_run_that_was_never_recorded_has_nothing_to_add_to(run_dir: Path) -> None:
    assert add_afterwards(run_dir, {0: {"spectrum/top/mnist": 1.0}}, [], "spectrum") is None
    assert not (run_dir / "tracking").exists()
    (run_dir / "tracking").mkdir()
    (run_dir / "metrics.jsonl").write_text('{"seq": 1, "time": 1, "kind": "tags", "tags": {}}\n')
    assert add_afterwards(run_dir, {0: {"spectrum/top/mnist": 1.0}}, [], "spectrum") is None
