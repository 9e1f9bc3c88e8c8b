"""`difc-ray reproduce` from the command to its files, on real trials; asked again, it runs nothing twice."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import pytest

from difc_ray.cli.reproduce import run_reproduction
from difc_ray.studies.colored_mnist.running import SWEEP
from difc_ray.sweeps.folder import SweepFolder
from difc_ray.tracking import entries

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("default"),  # Ray warns
]


def reproduce(output: Path, methods: str = "erm,hgp+gh") -> int:
    settings = ["steps=12", "model_options.hidden=[8]", "trial.concurrent=1"]
    return run_reproduction("colored-mnist", "2", methods, None, output, "train", settings)


def test_a_table_its_files_and_going_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(tmp_path) == 0
    told = capsys.readouterr().out
    assert "4/4" in told
    assert "colored_mnist_5k, 2 restarts, 12 steps" in told
    assert "on the TEST domain" in told
    names = {f"colored_mnist_5k-{what}" for what in ("table.md", "runs.csv", "accuracy.png", "distances.png")}
    assert {path.name for path in tmp_path.iterdir()} == {*names, "recipe.yaml", SWEEP}
    folder = SweepFolder(tmp_path / SWEEP)
    with (tmp_path / "colored_mnist_5k-runs.csv").open() as file:
        lines = list(csv.DictReader(file))
    for record in folder.records():
        run_dir = folder.run_dir(record.point.number)
        ours = [line for line in lines if int(line["restart"]) == record.point.seed
                and line["method"] == ("erm", "hgp+gh")[record.point.setting]]  # fmt: skip
        assert [int(line["step"]) for line in ours] == list(range(1, 12))
        last = next(e for e in entries(run_dir / "metrics.jsonl", "evaluation") if e["step"] == 11)
        assert float(ours[-1]["test"]) == last["all/accuracy/e90"]
        line = f"{ours[0]['method']}  restart {record.point.seed}  test {last['all/accuracy/e90']:.1%}  "
        assert line in told  # one update before the end, as in the table
        assert sum(bool(line["hessian_distance"]) for line in ours) == 11
        assert len(list((run_dir / "checkpoints").glob("step-*"))) == 1
    before = (tmp_path / "colored_mnist_5k-runs.csv").read_bytes()
    lost = folder.record(3)
    assert lost is not None
    folder.update(3, status="interrupted")
    started = time.time()
    assert reproduce(tmp_path) == 0
    again = capsys.readouterr().out
    assert "not run again" in again
    assert (folder.path / "trials" / "00000.json").stat().st_mtime < started < (
        folder.path / "trials" / "00003.json").stat().st_mtime  # fmt: skip
    found = (tmp_path / "colored_mnist_5k-runs.csv").read_bytes()
    assert [line.rsplit(b",", 1)[0] for line in found.splitlines()] == [
        line.rsplit(b",", 1)[0] for line in before.splitlines()]  # fmt: skip
