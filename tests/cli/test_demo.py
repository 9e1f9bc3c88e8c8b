"""What a newcomer runs first: the default configuration, through the real command line, on Ray."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.cli.shell import Answer, difc_ray, table_rows

SOURCES, TARGET = ("mnist", "optdigits", "fonts"), "mnistm"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The output folder of `difc-ray train`, and what it printed."""
    output = tmp_path_factory.mktemp("demo")
    answer = difc_ray("train", f"output={output}", cwd=output)
    assert answer.code == 0, answer.err
    return output, answer


def only_run(output: Path) -> Path:
    """The one run folder there is."""
    (config,) = output.glob("*/config.yaml")
    return config.parent


def summary_of(run_dir: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


@pytest.mark.ray
@pytest.mark.slow
def test_it_learns_what_it_should(demo: tuple[Path, Answer]) -> None:
    """Measured: 59.5 % on the target, 98.4 to 99.0 % on the validation sets; half a minute on two cores."""
    output, answer = demo
    summary = summary_of(only_run(output))
    accuracy = summary["accuracy"]
    assert accuracy[TARGET]["all"] >= 0.55
    assert all(accuracy[source]["val"] >= 0.95 for source in SOURCES)
    assert summary["worst_domain"]["accuracy"] == min(accuracy[source]["val"] for source in SOURCES)
    assert (summary["steps"], summary["restarts"]) == (300, dict.fromkeys(SOURCES, 0))
    assert summary["wall_s"] > 0
    ms = summary["step_ms"]
    assert ms["compute"] + ms["transport"] + ms["coordinator"] == pytest.approx(ms["step"], rel=0.02)
    assert answer.err == ""
    rows = table_rows(answer.out)
    assert rows[TARGET] == ["", "", "", f"{accuracy[TARGET]['all']:.1%}"]
    assert [rows[source][1] for source in SOURCES] == [f"{accuracy[source]['val']:.1%}" for source in SOURCES]


@pytest.mark.ray
@pytest.mark.slow
def test_mlflow_has_the_whole_run(demo: tuple[Path, Answer]) -> None:
    output, answer = demo
    run_dir = only_run(output)
    with contextlib.closing(sqlite3.connect(output / "mlflow.db")) as database:
        ((run_id, status, artifacts),) = database.execute("SELECT run_uuid, status, artifact_uri FROM runs").fetchall()
        steps = database.execute("SELECT COUNT(DISTINCT step) FROM metrics WHERE key = 'train/loss/mnist'").fetchone()
        ((final,),) = database.execute("SELECT value FROM metrics WHERE key = 'final/all/accuracy/mnistm'").fetchall()
        ((models,),) = database.execute("SELECT COUNT(*) FROM logged_models").fetchall()
    assert status == "FINISHED"
    assert f"MLflow run    {run_id} in sqlite:///{output}/mlflow.db" in answer.out
    assert steps == (300,)
    assert final == summary_of(run_dir)["accuracy"][TARGET]["all"]
    assert models == 1
    stored = {path.name for path in Path(artifacts.removeprefix("file://")).rglob("*.*")}
    assert stored >= {"loss_curves.png", "row_cosines.png", "accuracy.png", f"confusion_{TARGET}.png", "summary.json"}
    assert "note" not in answer.out.split("MLflow run")[1]
