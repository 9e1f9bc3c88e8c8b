"""What is looked at before a job is submitted: addresses, secrets, files that travel, the command itself."""

from __future__ import annotations

import asyncio
import signal
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer
from ray._private.runtime_env.packaging import create_package

from difc_ray.cli import submitting
from difc_ray.cli.jobs import detachable
from difc_ray.cli.submitting import Wish, prepared
from difc_ray.config import ConfigProblems
from difc_ray.errors import ClusterError, ConfigError, Interrupted
from difc_ray.jobs import JobInfo, JobRequest, api_address, client, exit_code, following, shipping, why_pending
from difc_ray.jobs.following import follow
from difc_ray.jobs.runtime_env import passed_variables, read_runtime_env

RUN = ("train", "dataset=digits", "steps=6", "output=/shared/runs")


def wish(folder: Path, *command: str, **changes: Any) -> Wish:
    asked = {
        "command": command, "variables": (), "working_dir": folder, "runtime_env": None, "submission_id": None,
        "python": "python", "with_package": False, "window_s": 60, "cpus": 0, "gpus": 0,
    }  # fmt: skip
    return Wish(**{**asked, **changes})


def written(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


@pytest.fixture(autouse=True)
def _no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("given", "environ", "url", "origin"),
    [
        (None, {}, "http://127.0.0.1:8265", "default"),
        ("https://head/ray/", {"RAY_API_SERVER_ADDRESS": "http://other:1"}, "https://head/ray", "--address"),
        (None, {"RAY_API_SERVER_ADDRESS": "a:9", "RAY_ADDRESS": "http://b"}, "http://a:9", "RAY_API_SERVER_ADDRESS"),
        (None, {"RAY_ADDRESS": "http://head:8265"}, "http://head:8265", "RAY_ADDRESS"),
        ("auto", {}, "http://127.0.0.1:8265", "--address"),
    ],
)  # fmt: skip
def test_addresses(given: str | None, environ: dict[str, str], url: str, origin: str) -> None:
    found = api_address(given, environ)
    assert (found.url, found.origin) == (url, origin)


@pytest.mark.parametrize(
    ("given", "environ"),
    [
        ("ray://head:10001", {}),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}),
        ("http://head:port", {}),
        ("http://", {}),
        ("ftp://head", {}),
        ("http://he ad", {}),
    ],
)
def test_addresses_of_something_else(given: str | None, environ: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"dashboard.*, got .* \(.*\)\. Write `http://HOST:8265`"):
        api_address(given, environ)


def test_an_address_is_shown_without_its_password() -> None:
    address = api_address("http://me:hunter2@head:8265", {})
    assert "hunter2" not in address.shown + address.option


def test_variables_by_name() -> None:
    environ = {"A": "1", "URI": "http://me:hunter2@host", "TOKENIZERS_PARALLELISM": "true", "HF_TOKEN": "hunter2"}
    assert passed_variables(["A", "TOKENIZERS_PARALLELISM"], environ) == {"A": "1", "TOKENIZERS_PARALLELISM": "true"}
    with pytest.raises(ConfigProblems) as error:
        passed_variables(["HF_TOKEN", "aws_secret", "URI", "NOPE", "A=hunter2", "2"], environ)
    token, secret, uri, nope, value, name = error.value.problems
    for text in (token, secret, uri):
        assert "must not hold a secret" in text
        assert "Set it on the cluster" in text
    assert "is set here, got `NOPE`" in nope
    assert "got `A=…`" in value
    assert "got `2`" in name
    assert "hunter2" not in str(error.value)


def test_runtime_environments(tmp_path: Path) -> None:
    good = written(tmp_path / "good.yaml", 'pip: [einops]\nenv_vars: {A: "1"}\nconfig: {setup_timeout_seconds: 60}\n')
    assert read_runtime_env(good)["pip"] == ["einops"]
    bad = written(
        tmp_path / "bad.yaml",
        "workingdir: .\nconfig: {timeout: 3}\nenv_vars: {N: 3, API_KEY: hunter2}\npip: ['http://me:hunter2@index/x']\n",
    )
    with pytest.raises(ConfigProblems) as error:
        read_runtime_env(bad)
    text = str(error.value)
    assert len(error.value.problems) == 5
    for words in ("got `workingdir`", "Did you mean `working_dir`?", "got `timeout`", "`env_vars.N` must be text",
                  "got `API_KEY`", "http://***@index", "bad.yaml, line 3"):  # fmt: skip
        assert words in text
    assert "hunter2" not in text
    with pytest.raises(ConfigProblems, match=r"no such file.*--runtime-env"):
        read_runtime_env(tmp_path / "none.yaml")
    with pytest.raises(ConfigProblems) as kinds:
        read_runtime_env(written(tmp_path / "kinds.yaml", "working_dir: [a]\nexcludes: data\npy_modules: [1]\n"))
    assert [text.split(",")[0] for text in kinds.value.problems] == [
        "`working_dir` must be text", "`excludes` must be a list of texts", "`py_modules` must be a list of texts",
    ]  # fmt: skip
    with pytest.raises(ConfigProblems, match="`env_vars` must be a mapping"):
        read_runtime_env(written(tmp_path / "list.yaml", "env_vars: [A]\n"))


def test_what_travels_is_what_ray_packs(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("run.yaml", "local.yaml", "a/x.py", "a/b/big.bin", ".env", "keys/host.pem", ".git/config", "runs/1/w"):
        written(home / name, name)
    written(home / ".gitignore", "local.yaml\nruns/\n")
    written(home / "a" / ".rayignore", "*.bin\n")
    (home / "broken").symlink_to("nowhere")
    shipment = shipping.shipment_of(home, shipping.PRIVATE)
    assert set(shipment.sizes) == {"run.yaml", "a/x.py", ".gitignore", "a/.rayignore"}
    (home / "broken").unlink()
    create_package(
        str(home), tmp_path / "p.zip", include_gitignore=True, excludes=[".git", ".venv", "venv", *shipping.PRIVATE]
    )
    packed = {name for name in zipfile.ZipFile(tmp_path / "p.zip").namelist() if not name.endswith("/")}
    assert packed == set(shipment.sizes)
    assert [shipment.leaves_out(name) for name in ("run.yaml", "a", "runs/1", "local.yaml", "../home2", "none")] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_a_folder_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "LIMIT_BYTES", 2**20)
    written(tmp_path / "data" / "x", "x" * 2**20)
    with pytest.raises(ConfigError, match=r"smaller than 1 MiB.*got 1 MiB in .*`data` 1 MiB.*`\.rayignore`"):
        shipping.shipment_of(tmp_path)
    written(tmp_path / ".rayignore", "data\n")
    assert set(shipping.shipment_of(tmp_path).sizes) == {".rayignore"}
    with pytest.raises(ConfigError, match="must be a folder, got no such folder"):
        shipping.shipment_of(tmp_path / "none")


def test_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GREETING", "hello")
    written(tmp_path / "run file.yaml", "steps: 7\nharmonize: {rule: gh}\n")
    request, shipment, notes = prepared(
        wish(tmp_path, "train", "-c", "run file.yaml", "output=/x", "name=mine", variables=["GREETING"], python="p -u",
             with_package=True)
    )  # fmt: skip
    assert request.entrypoint == "p -u -m difc_ray train -c 'run file.yaml' output=/x name=mine"
    assert request.submission_id.startswith("difc-mine-")
    assert request.metadata == {"command": "train", "name": "mine", "dataset": "digits", "rule": "gh"}
    assert request.runtime_env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60", "GREETING": "hello"}
    assert request.runtime_env["working_dir"] == str(tmp_path)
    assert Path(request.runtime_env["py_modules"][0], "jobs", "client.py").is_file()
    assert shipment is not None
    assert notes == []
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), "a job needs a command"),
        (("trian",), "Did you mean `train`?"),
        (("python", "-m", "difc_ray"), "got `python`"),
        (("train", "stps=3"), "Did you mean `steps`?"),
        (("train", "--confg", "x"), "Did you mean `--config`?"),
        (("train", "-c", "none.yaml"), "no such file"),
        (("train", "steps=0", "resume=/cluster/run"), ""),
        (("train", "harmonize.rule=pcgard"), "pcgrad"),
        (("train", "tracking.uri=http://me:hunter2@host"), "must not hold a secret"),
        (("train", "model_options.api_key=hunter2"), "must not hold a secret"),
        (("tune", "nowhere"), "a search space must be"),
    ],
)
def test_mistakes_cost_no_queueing(tmp_path: Path, command: tuple[str, ...], words: str) -> None:
    if not words:
        assert prepared(wish(tmp_path, *command))[2] == [
            "the configuration is that of a run which the cluster has: it is checked there."
        ]
        return
    with pytest.raises(ConfigError) as error:
        prepared(wish(tmp_path, *command))
    assert words in str(error.value)
    assert "hunter2" not in str(error.value)


def test_unknown_options_are_usage_errors(tmp_path: Path) -> None:
    from difc_ray.cli.usage import UsageError

    with pytest.raises(UsageError):
        prepared(wish(tmp_path, "rules", "--chekc"))


def test_data_may_be_on_the_cluster_only(tmp_path: Path) -> None:
    pictures = ("dataset=image_folder", "root=/cluster/pictures", "sources=a,b", "target=c")
    request, _, notes = prepared(wish(tmp_path, "train", *pictures, "output=/x"))
    assert request.metadata["dataset"] == "image_folder"
    assert notes == []
    with pytest.raises(ConfigError, match="steps"):
        prepared(wish(tmp_path, "train", *pictures, "steps=-1"))


def test_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / ".gitignore", "weights/\n")
    written(tmp_path / "weights" / "lenet.txt", "x")
    _, _, notes = prepared(wish(tmp_path, "evaluate", "weights/lenet.txt"))
    assert any("`weights/lenet.txt` is here and does not travel" in note for note in notes)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    _, _, notes = prepared(wish(tmp_path, "train", "steps=6"))
    assert any("`output` is `runs`" in note for note in notes)
    assert any("`--env MLFLOW_TRACKING_URI`" in note for note in notes)
    passed = prepared(wish(tmp_path, *RUN, variables=["MLFLOW_TRACKING_URI"]))
    assert passed[2] == []
    written(tmp_path / "run.yaml", "tracking: {uri: 'http://me:hunter2@server'}\noutput: /x\n")
    _, _, notes = prepared(wish(tmp_path, "train", "--config", "run.yaml"))
    assert "travels in a file" in notes[0]
    written(tmp_path / ".rayignore", "run.yaml\n")
    with pytest.raises(ConfigError, match=r"must travel with the working folder, got `run.yaml`, which is left out"):
        prepared(wish(tmp_path, "train", "--config", "run.yaml"))


def test_working_folders(tmp_path: Path) -> None:
    remote = written(tmp_path / "remote.yaml", "working_dir: https://host/code.zip\n")
    request, shipment, _ = prepared(wish(tmp_path, *RUN, working_dir=None, runtime_env=remote))
    assert shipment is None
    assert request.runtime_env["working_dir"] == "https://host/code.zip"
    with pytest.raises(ConfigError, match="one working folder"):
        prepared(wish(tmp_path, *RUN, runtime_env=remote))
    with pytest.raises(ConfigError, match="the name of a job"):
        prepared(wish(tmp_path, *RUN, submission_id="a b"))
    for python in ("", "python '"):
        with pytest.raises(ConfigError, match="`--python` must be a command"):
            prepared(wish(tmp_path, *RUN, python=python))


@pytest.mark.parametrize(
    ("status", "told", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 143, 143),
        ("FAILED", -9, 137),
        ("FAILED", None, 1),
        ("STOPPED", None, 143),
    ],
)
def test_exit_codes(status: str, told: int | None, expected: int) -> None:
    assert exit_code(JobInfo(submission_id="x", status=status, exit_code=told)) == expected


class Cluster(client.Jobs):
    """A cluster that says what it is told to say; its connection breaks in the middle of the log."""

    address = api_address("http://head:1", {})

    def __init__(self, *statuses: str, log: str = "", resources: Any = None) -> None:
        self.statuses, self.text, self.there, self.tails = list(statuses), log, resources or {}, 0

    def info(self, name: str) -> JobInfo:
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        if status == "unreachable":
            raise ClusterError("out of reach.")
        return JobInfo(submission_id=name, status=status, message="Job has not started yet.")

    def log(self, name: str) -> str:
        return self.text

    def resources(self) -> dict[str, tuple[float, float]]:
        return self.there

    async def tail(self, name: str) -> AsyncIterator[str]:
        self.tails += 1
        yield self.text[:4]
        await asyncio.sleep(0)
        yield self.text[4 : 4 + 4 * self.tails]
        raise RuntimeError("the connection broke")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_POLL_S", 0.01)


@pytest.mark.usefixtures("_quick")
def test_every_line_is_shown_once() -> None:
    shown: list[str] = []
    cluster: Any = Cluster(
        "PENDING", "RUNNING", "RUNNING", "unreachable", "RUNNING", "SUCCEEDED", log="0123456789abcdefghijkl"
    )
    info = follow(cluster, "x", shown.append, print)
    assert "".join(shown) == cluster.text
    assert info.status == "SUCCEEDED"
    assert cluster.tails > 2


@pytest.mark.usefixtures("_quick")
def test_a_cluster_that_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LOST_S", 0.05)
    cluster: Any = Cluster("RUNNING", "unreachable", log="x")
    with pytest.raises(
        ClusterError, match=r"`x` may still run: `difc-ray jobs logs x --follow --address http://head:1`"
    ):
        follow(cluster, "x", print, print)


def test_why_a_job_waits() -> None:
    asked = JobRequest(submission_id="x", entrypoint="", runtime_env={}, cpus=3)
    info = JobInfo(submission_id="x", status="PENDING", message="Not yet.")
    small: Any = Cluster("PENDING", resources={"CPU": (0.0, 2.0)})
    busy: Any = Cluster("PENDING", resources={"CPU": (2.0, 4.0)})
    mute: Any = Cluster("PENDING")
    assert "the whole cluster has 2" in why_pending(small, info, asked)
    assert "2 of 4 are in use" in why_pending(busy, info, asked)
    assert why_pending(mute, info, asked) == "Ray says: Not yet"
    installing = JobInfo(submission_id="x", status="PENDING", runtime_env={"pip": ["torch"]})
    assert "installs packages (pip)" in why_pending(mute, installing, None)


def test_no_agent_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that has just started refuses for a while; one without an agent refuses for good."""
    refusals = [RuntimeError("Request failed with status code 500: No available agent to submit job")] * 2

    def submit_job(**_: Any) -> None:
        if refusals:
            raise refusals.pop()

    jobs = client.Jobs.__new__(client.Jobs)
    jobs.address = api_address(None, {})
    jobs._client = SimpleNamespace(submit_job=submit_job)
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    notices: list[str] = []
    asked = JobRequest(submission_id="x", entrypoint="", runtime_env={})
    jobs.submit(asked, notices.append)
    assert len(notices) == 1
    monkeypatch.setattr(client, "AGENT_S", -1.0)
    refusals += [RuntimeError("No available agent to submit job")] * 2
    with pytest.raises(ClusterError, match="52365"):
        jobs.submit(asked, notices.append)


def test_ctrl_c_detaches() -> None:
    def followed() -> JobInfo:
        raise KeyboardInterrupt

    cluster: Any = Cluster("RUNNING")
    with pytest.raises(
        Interrupted, match=r"job `x` goes on.*`difc-ray jobs stop x --address http://head:1` stops it"
    ) as end:
        detachable(cluster, "x", followed)
    assert end.value.code == 128 + signal.SIGINT


def test_commands_that_run_on_a_cluster_exist() -> None:
    for name in submitting.RUNNABLE:
        if name != "data":
            with pytest.raises(typer.Exit):
                submitting.options_of(name, ["--help"])
