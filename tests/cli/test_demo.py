"""`make demo`: the default configuration through the real command line, on Ray, and once more in one process."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SOURCES = ("mnist", "optdigits", "fonts")


def demo(output: Path, *changes: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any], Path]:
    """One run; its summary and its folder."""
    environment = {**os.environ, "COLUMNS": "120"}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "difc_ray", "train", f"output={output}", *changes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (run_dir,) = [path.parent for path in output.glob("*/summary.json")]
    return done, json.loads((run_dir / "summary.json").read_text()), run_dir


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_default_configuration(tmp_path: Path) -> None:
    done, summary, run_dir = demo(tmp_path / "ray")
    accuracy = summary["accuracy"]
    assert accuracy["mnistm"]["all"] >= 0.55
    assert sum(accuracy[name]["val"] for name in SOURCES) / len(SOURCES) >= 0.95
    assert min(accuracy[name]["val"] for name in SOURCES) >= 0.95
    assert summary["steps"] == 300
    assert summary["worst_domain"]["domain"] in SOURCES
    assert set(summary["step_ms"]) >= {"step", "compute", "transport", "coordinator", "evaluation", "checkpoint"}
    assert summary["engine"]["engine"] == "ray"
    assert (
        "mnistm" not in done.stdout.split("evaluating")[0].split("\n", 1)[1]
    )  # the target is not shown while training
    for fragment in ("held out", "worst source", str(run_dir), "mlflow ui --backend-store-uri"):
        assert fragment in done.stdout, fragment
    assert_recorded(tmp_path / "ray", run_dir)

    _, inline, _ = demo(tmp_path / "inline", "engine=inline", "tracking.mode=off")
    assert inline["accuracy"] == accuracy
    assert inline["selected_step"] == summary["selected_step"]


def assert_recorded(output: Path, run_dir: Path) -> None:
    """The MLflow run is finished, with the metrics of every step, the figures and the model."""
    with sqlite3.connect(output / "mlflow.db") as store:
        ((run_id, status),) = store.execute(
            "select run_uuid, status from runs where name = ?", (run_dir.name,)
        ).fetchall()
        assert status == "FINISHED"
        steps = store.execute(
            "select count(*) from metrics where run_uuid = ? and key = 'train/loss/mnist'", (run_id,)
        ).fetchone()
        assert steps == (300,)
        params = dict(store.execute("select key, value from params where run_uuid = ?", (run_id,)).fetchall())
        tags = dict(store.execute("select key, value from tags where run_uuid = ?", (run_id,)).fetchall())
    store.close()
    assert params["harmonize.rule"] == "ghpp"
    assert tags["engine.transport"] == "object_store"
    assert re.fullmatch(r"[0-9a-f]{64}", tags["dataset.fingerprint"])
    figures = {path.stem for path in (run_dir / "figures").glob("*.png")}
    assert figures >= {"loss_curves", "row_cosines", "accuracy", "confusion_mnistm"}
    artifacts = {path.name for path in (output / "mlartifacts").rglob("*")}
    assert {"MLmodel", "loss_curves.png", "config.yaml", "summary.json"} <= artifacts
