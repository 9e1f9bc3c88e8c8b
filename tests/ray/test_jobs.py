"""`difc-ray submit`, `difc-ray jobs` and plain `ray job submit` against a real cluster with a token."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from difc_ray.cli.execution import execute
from difc_ray.cli.tables import UNWRAPPED, console
from difc_ray.config import Config
from difc_ray.jobs import JobRequest, Jobs, api_address, follow, following
from tests.checkpoints import names
from tests.cli.shell import Answer, Cli, assert_sentences, difc_ray, something_else, started
from tests.faults import end_of, fault, faulty_config, resume, train, without_faults, written
from tests.ports import free_port
from tests.ray.heads import Head
from tests.waiting import FOREVER_S, PATIENCE_S, eventually

pytestmark = pytest.mark.ray

SECRET = "hunter2-of-the-cluster"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster whose machines know a secret."""
    cluster = Head(MLFLOW_TRACKING_TOKEN=SECRET, RAY_JOB_STOP_WAIT_TIME_S="100")
    try:
        cluster.wait()
        yield cluster
    finally:
        cluster.end()


@pytest.fixture(scope="module")
def jobs(head: Head) -> Jobs:
    return Jobs(api_address(head.url, {}))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all runs: to make it takes longer than to run."""
    return tmp_path_factory.mktemp("mlflow") / "store.db"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line in this process, in an empty folder."""
    home = tmp_path / "empty"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setattr(console, "_width", UNWRAPPED)

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = execute(list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


def small(folder: Path, *faults: dict[str, Any], **changes: Any) -> Config:
    base: dict[str, Any] = {
        "sources": ["a", "b"],
        "model_options": {"hidden": [16]},
        "steps": 20,
        "eval_every": 20,
        "checkpoint": {"every": 4, "keep": 10},
    }
    return faulty_config(folder, *faults, **{**base, **changes})


def project(folder: Path, config: Config, store: Path, engine: str) -> Path:
    """A folder as a person has one, with a configuration and something that stays at home."""
    home = folder / "home"
    home.mkdir()
    tracking = {"mode": "on", "uri": f"sqlite:///{store}"}
    written(config, home, output=str(folder / "runs"), engine=engine, tracking=tracking)
    (home / ".env").write_text(f"MLFLOW_TRACKING_TOKEN={SECRET}\n")
    return home


def said(command: Answer) -> str:
    return command.out + command.err


def raw(url: str, path: str) -> str:
    """An answer of the dashboard as any client of the token gets it."""
    headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}", "User-Agent": "curl/8"}
    with urllib.request.urlopen(urllib.request.Request(url + path, headers=headers), timeout=20) as answer:
        return str(answer.read().decode())


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


def test_a_run_that_is_submitted_and_followed(head: Head, jobs: Jobs, tmp_path: Path, store: Path, cli: Cli) -> None:
    home = project(tmp_path, small(tmp_path, name="followed"), store, "inline")
    variables = {"RAY_API_SERVER_ADDRESS": head.url, "GREETING": "hello", "MLFLOW_TRACKING_TOKEN": SECRET}
    answer = difc_ray(
        "submit", "--env", "GREETING", "--submission-id", "first", "--", "train", "--config", "config.yaml",
        cwd=home, variables=variables,
    )  # fmt: skip
    assert answer.code == 0, said(answer)
    for text in ("step 20/20", "accuracy", "│ b ", "status        SUCCEEDED", f"{tmp_path}/runs/followed"):
        assert text in answer.out
    assert answer.out.count("evaluating ...") == 1
    assert (tmp_path / "runs" / "followed" / "summary.json").is_file()
    assert mlflow_status(store, "followed") == "FINISHED"

    info = jobs.info("first")
    assert dict(info.runtime_env["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S": "60", "GREETING": "hello"}
    assert info.metadata["dataset"] == "faulty"
    assert info.entrypoint == "python -m difc_ray train --config config.yaml"
    listed = cli("jobs", "list", "--address", head.url)
    assert "first" in listed.out
    assert "followed" in listed.out
    again = cli("jobs", "logs", "first", "--address", head.url)
    assert again.code == 0
    assert "step 20/20" in again.out

    told = raw(head.url, "/api/jobs/") + said(answer) + said(listed) + said(again)
    assert "GREETING" in told
    logs = [folder / "logs" for folder in head.folder.glob("session_2*")]
    assert files_with("GREETING", *logs)  # what is in the job's environment is found where the secrets are looked for
    for secret in (SECRET, os.environ["RAY_AUTH_TOKEN"]):
        assert secret not in told
        assert files_with(secret, tmp_path / "runs", store.parent, head.folder) == []


def test_a_plain_job_that_is_stopped(
    head: Head, tmp_path: Path, store: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own command, with a worker that is busy for minutes.

    Ray then gives it three seconds, in which a free machine is done; this head has been told to give it more.
    """
    monkeypatch.setattr(following, "_LATE_S", PATIENCE_S)
    config = small(tmp_path, fault("wait", "a", 3, seconds=FOREVER_S), name="stopped")
    home = project(tmp_path, config, store, "ray")
    plain = subprocess.run(
        [Path(sys.executable).with_name("ray"), "job", "submit", "--address", head.url, "--submission-id", "plain",
         "--no-wait", "--working-dir", ".", "--", "python", "-m", "difc_ray", "train", "--config", "config.yaml"],
        cwd=home, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    run_dir = tmp_path / "runs" / "stopped"
    follower = started([sys.executable, "-m", "difc_ray", "jobs", "logs", "plain", "-f", "--address", head.url], home)
    try:
        eventually((tmp_path / "batch-wait-a-3-0").exists)
        line = ""
        while "starting domain workers" not in line:
            line = follower.stdout.readline()
            assert line, follower.stderr.read()
        follower.send_signal(signal.SIGINT)
        _, words = follower.communicate(timeout=PATIENCE_S)
    finally:
        follower.kill()
        follower.communicate()
    assert follower.returncode == 130
    assert "job `plain` goes on" in words
    assert "Traceback" not in words

    began = time.time()
    stopped = cli("jobs", "stop", "plain", "--address", head.url)
    assert stopped.code == 0, said(stopped)
    assert "status        STOPPED" in stopped.out
    checkpoint = run_dir / "checkpoints" / "step-00000003" / "manifest.json"
    journal = [json.loads(line) for line in (run_dir / "tracking" / "journal.jsonl").read_text().splitlines()]
    assert journal[-1]["kind"] == "finish"
    print(
        f"stop: checkpoint {checkpoint.stat().st_mtime - began:.1f} s after the command, "
        f"all is written {journal[-1]['ts'] / 1e3 - checkpoint.stat().st_mtime:.1f} s after that"
    )
    assert mlflow_status(store, "stopped") == "KILLED"

    expected = end_of(train(without_faults(small(tmp_path, name="straight", engine="inline")), tmp_path).run_dir)
    resume(run_dir, "engine=inline", "tracking.mode=off")
    resumed = end_of(run_dir)
    assert resumed == dataclasses.replace(expected, summary={**expected.summary, "name": "stopped"})
    assert max(names(run_dir / "checkpoints")[1:]) == "step-00000020"


def test_the_exit_code_is_that_of_the_job(head: Head, cli: Cli) -> None:
    """What only the cluster can know; with the package itself in tow."""
    answer = cli("submit", "--address", head.url, "--with-package", "--", "evaluate", "nowhere")
    assert answer.code == 6, said(answer)
    assert "RUN_DIR must be a run folder" in answer.out
    assert "status        FAILED (6)" in answer.out
    (name,) = [line.split()[1] for line in answer.out.splitlines() if line.startswith("job ")][:1]
    over = cli("jobs", "stop", name, "--address", head.url)
    assert over.code == 0, said(over)
    assert "FAILED; it had ended before" in over.out


class Heard(Exception):
    """A notice has come."""


def hear(sentence: str) -> None:
    raise Heard(sentence)


def test_a_job_that_waits(head: Head, jobs: Jobs, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said why, and that it cannot be taken back before it starts; its name is taken."""
    monkeypatch.setattr(following, "PENDING_S", 1.0)
    words = ("submit", "--address", head.url, "--submission-id", "waits", "--no-wait", "--entrypoint-num-cpus", "64")
    assert cli(*words, "--", "rules").code == 0
    request = JobRequest(submission_id="waits", entrypoint="", runtime_env={}, cpus=64)
    with pytest.raises(Heard) as heard:
        follow(jobs, "waits", print, hear, request)
    notice = str(heard.value)
    assert "its driver wants 64 CPUs on one node, and the whole cluster has 4" in notice
    assert f"`difc-ray jobs stop waits --address {head.url}`" in notice

    asked = cli("jobs", "stop", "waits", "--address", head.url)
    assert asked.code == 0, said(asked)
    assert "PENDING; it ends as soon as it starts" in asked.out
    again = cli(*words, "--", "rules")
    assert again.code == 2
    assert_sentences(again, ("a job's name must be new", "got `waits`", "difc-ray jobs list --address"))


def test_refusals(head: Head, cli: Cli, tmp_path: Path) -> None:
    wrong = difc_ray("jobs", "list", "--address", head.url, cwd=tmp_path, variables={"RAY_AUTH_TOKEN": "wrong"})
    assert wrong.code == 4
    assert_sentences(wrong, ("wants its token, got another one (403)", "RAY_AUTH_TOKEN_PATH"))
    without = difc_ray("jobs", "list", "--address", head.url, cwd=tmp_path, variables={"RAY_AUTH_MODE": "disabled"})
    assert without.code == 4
    assert_sentences(without, ("wants its token, got none (401)", "RAY_AUTH_MODE=token"))
    tokenless = {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "nowhere")}
    nowhere = difc_ray("jobs", "list", "--address", head.url, cwd=tmp_path, variables=tokenless)
    assert nowhere.code == 4
    assert_sentences(nowhere, ("wants its token, got none: `", "nowhere` (RAY_AUTH_TOKEN_PATH) is empty, or cannot"))
    unknown = cli("jobs", "logs", "nobody", "--address", head.url)
    assert unknown.code == 2
    assert_sentences(unknown, ("a job must be one of the cluster", "got `nobody`"))


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RAY_AUTH_TOKEN": "wrong"}, "got another one (cluster.address)"),
        ({"RAY_AUTH_MODE": "disabled"}, "got none (cluster.address)"),
        ({"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "got none (cluster.address)"),
    ],
)
def test_a_run_that_is_not_let_in(head: Head, tmp_path: Path, variables: dict[str, str], words: str) -> None:
    """At once, and without the lines that Ray's core writes, where Ray itself tries for half a minute."""
    asked = ("doctor", "--cluster", f"cluster.address={head.address}")
    answer = difc_ray(*asked, cwd=tmp_path, variables=variables)
    assert answer.code == 4
    assert_sentences(answer, (f"the cluster at {head.address} wants its token, {words}", "RAY_AUTH_TOKEN_PATH"))


def test_what_is_no_cluster(cli: Cli) -> None:
    for words in (("jobs", "list"), ("submit", "--no-wait")):
        command = ("--", "train", "output=inside-the-copy") if words[0] == "submit" else ()
        nobody = cli(*words, "--address", f"http://127.0.0.1:{free_port()}", *command)
        assert nobody.code == 4
        assert_sentences(nobody, ("must answer at http://127.0.0.1", "got none (--address)"))
        assert "inside-the-copy" not in nobody.out  # nothing is told of a job that cannot be
    with something_else() as port:
        other = cli("jobs", "list", "--address", f"127.0.0.1:{port}")
    assert other.code == 4
    assert_sentences(other, ("got the answer of something else", "8265"))
