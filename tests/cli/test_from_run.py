"""A run from the configuration that MLflow holds of another one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

from tests.cli.shell import Answer, Cli, assert_sentences, difc_ray


def weights(run_dir: Path) -> str:
    """sha256 of the weights in the last checkpoint."""
    last = max((run_dir / "checkpoints").glob("*/weights.safetensors"))
    return hashlib.sha256(last.read_bytes()).hexdigest()


def test_a_repeated_run_ends_in_the_same_weights(trained_once: tuple[Path, Answer], tmp_path: Path) -> None:
    output, _ = trained_once
    (identity,) = json.loads((output / "first" / "tracking" / "run.json").read_text())["stores"].values()
    store = shutil.copy(output / "mlflow.db", tmp_path / "mlflow.db")
    with contextlib.closing(sqlite3.connect(store)) as database, database:
        database.execute("UPDATE tags SET value = '7' WHERE key = 'engine.threads'")
    answer = difc_ray(
        "train", "--from-run", identity["run_id"], "tracking.uri=sqlite:///mlflow.db", "tracking.mode=off",
        "name=second", cwd=tmp_path,
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert weights(tmp_path / "runs" / "second") == weights(output / "first")
    assert "not all is as in the run that is repeated (threads per process 7 -> 1)" in answer.out + answer.err


def test_one_configuration_only(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("steps: 3\n")
    answer = cli("train", "--from-run", "0" * 32, "--config", str(file))
    assert answer.code == 2
    assert_sentences(answer, ("--from-run and `--config", "Remove one"))
    assert not (tmp_path / "runs").exists()
