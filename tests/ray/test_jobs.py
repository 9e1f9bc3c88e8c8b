"""Runs as Ray jobs: plain `ray job submit` with our runtime environment, on a real cluster that wants a token."""

from __future__ import annotations

import dataclasses
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import Config
from tests.checkpoints import names
from tests.cli.shell import assert_sentences, difc_ray
from tests.faults import end_of, fault, faulty_config, train, without_faults, written
from tests.ray.heads import Head
from tests.waiting import FOREVER_S, PATIENCE_S, eventually

pytestmark = pytest.mark.ray

SECRET = "hunter2-of-the-cluster"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster whose machines know a secret."""
    cluster = Head(MLFLOW_TRACKING_TOKEN=SECRET)
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.end()


def small(folder: Path, *faults: dict[str, Any], **changes: Any) -> Config:
    base: dict[str, Any] = {
        "sources": ["a", "b"], "model_options": {"hidden": [16]}, "steps": 20, "eval_every": 20,
        "checkpoint": {"every": 4, "keep": 10},
    }  # fmt: skip
    return faulty_config(folder, *faults, **{**base, **changes})


def ended(command: subprocess.Popen[str]) -> str:
    """What a command has said when it has ended."""
    try:
        return command.communicate(timeout=3 * PATIENCE_S)[0]
    finally:
        command.kill()
        command.communicate()


def mlflow_status(store: Path, name: str) -> str:
    """The status of a run, as the store itself has it."""
    with closing(sqlite3.connect(store)) as database:
        ((status,),) = database.execute("select status from runs where name = ?", (name,))
    return str(status)


def files_with(text: str, *folders: Path) -> list[str]:
    """Files below the folders that contain it."""
    found = []
    for folder in folders:
        for path in (Path(where) / name for where, _, names_ in os.walk(folder) for name in names_):
            try:
                if path.is_file() and text.encode() in path.read_bytes():
                    found.append(str(path))
            except OSError:  # a log that is being rotated
                continue
    return found


def test_a_run_is_submitted_stopped_and_goes_on(head: Head, tmp_path: Path) -> None:
    """It is stopped with a worker that is busy for minutes, and comes to the bits of a run that nobody stopped.

    Its folder has a secret that stays at home: it is found in no file of the cluster, of the run or of MLflow.
    """
    home, run_dir, store = tmp_path / "home", tmp_path / "runs" / "stopped", tmp_path / "mlflow" / "store.db"
    for folder in (home, store.parent):
        folder.mkdir()
    config = small(tmp_path, fault("wait", "a", 3, seconds=FOREVER_S), name="stopped")
    tracking = {"mode": "on", "uri": f"sqlite:///{store}"}
    written(config, home, output=str(tmp_path / "runs"), engine="ray", tracking=tracking)
    (home / ".env").write_text(f"MLFLOW_TRACKING_TOKEN={SECRET}\n")

    follower = head.submit("first", "train", "--config", "config.yaml", cwd=home)
    try:
        eventually((tmp_path / "batch-wait-a-3-0").exists)
        stop = head.job("stop", "first", cwd=home)
        assert "was stopped" in ended(stop)
        assert stop.returncode == 0
    finally:
        said = ended(follower)
    assert "starting domain workers" in said
    assert f"difc-ray: Stopped by SIGTERM after step 3; the checkpoint is written. Continue with `difc-ray train resume={run_dir}`." in said  # fmt: skip # noqa: E501
    assert head.ask("/api/jobs/first")["status"] == "STOPPED"
    assert max(names(run_dir / "checkpoints")[1:]) == "step-00000003"
    assert mlflow_status(store, "stopped") == "KILLED"

    again = head.submit("second", "train", f"resume={run_dir}", "engine=inline", cwd=home)
    said += ended(again)
    assert again.returncode == 0, said
    assert "step 20/20" in said
    assert mlflow_status(store, "stopped") == "FINISHED"
    expected = end_of(train(without_faults(small(tmp_path, name="straight", engine="inline")), tmp_path).run_dir)
    assert end_of(run_dir) == dataclasses.replace(expected, summary={**expected.summary, "name": "stopped"})

    told = str(head.ask("/api/jobs/")) + said
    assert "RAY_JOB_STOP_WAIT_TIME_S" in told
    assert files_with("RAY_JOB_STOP_WAIT_TIME_S", head.folder)  # a job's environment is found where we look for secrets
    for secret in (SECRET, os.environ["RAY_AUTH_TOKEN"]):
        assert secret not in told
        assert files_with(secret, tmp_path / "runs", store.parent, head.folder) == []


def test_a_mistake_in_the_settings_ends_the_job_with_our_code(head: Head, tmp_path: Path) -> None:
    """The command itself ends with 1 whatever the job's code is; Ray keeps that, and says it."""
    submit = head.submit("wrong", "train", "stepz=100", f"output={tmp_path}", cwd=tmp_path)
    said = ended(submit)
    assert submit.returncode == 1
    assert "Did you mean `steps`?" in said
    assert "exit code 2" in said
    job = head.ask("/api/jobs/wrong")
    assert (job["status"], job["driver_exit_code"]) == ("FAILED", 2)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "got another one, or none (cluster.address)"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "got this: Token authentication is enabled but no"),
    ],
)
def test_a_run_that_is_not_let_in(head: Head, tmp_path: Path, variables: dict[str, str], words: str) -> None:
    """In the time that Ray itself takes to give up, and without the lines that its core writes meanwhile."""
    asked = ("doctor", "--cluster", f"cluster.address={head.address}")
    answer = difc_ray(*asked, cwd=tmp_path, variables=variables)
    assert answer.code == 4
    assert_sentences(answer, (f"the cluster at {head.address} wants its token, {words}", "RAY_AUTH_TOKEN_PATH"))
