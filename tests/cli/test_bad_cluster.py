"""No cluster, another one than asked for, or too little of one: exit code 4, one sentence, and nothing started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import ray

from difc_ray.engines.ray import placement
from tests.cli.shell import Cli, assert_sentences, something_else
from tests.ports import free_port

CLUSTER = 4


@pytest.fixture
def no_ray_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not connected to Ray, whatever earlier tests did; starting one would be an error."""
    monkeypatch.setattr(placement.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(placement.ray, "shutdown", lambda: None)  # which would end the session's cluster

    def init(**options: object) -> None:
        raise AssertionError(f"Ray was started with {options}")

    monkeypatch.setattr(placement.ray, "init", init)


@pytest.mark.usefixtures("no_ray_yet")
class TestCluster:
    def test_nobody_at_the_address(self, cli: Cli, tmp_path: Path) -> None:
        answer = cli("train", f"cluster.address=127.0.0.1:{free_port()}")
        assert answer.code == CLUSTER
        assert_sentences(
            answer, ("a Ray head must answer at", "Connection refused (cluster.address)", "ray start --head")
        )
        assert not (tmp_path / "runs").exists()

    def test_a_dashboard_is_no_head(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "http://ann:s3cret@host:8265")
        answer = cli("train")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("not to its dashboard", "`http://***@host:8265` (RAY_ADDRESS)"))

    def test_somebody_else_at_the_address(self, cli: Cli) -> None:
        with something_else() as port:
            answer = cli("train", f"cluster.address=127.0.0.1:{port}")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("a Ray head must answer at", "got the answer of something else", "port of a head"))

    @pytest.mark.parametrize("address", ["host", "127.0.0.1:99999", "a..b:1"])
    def test_no_address_at_all(self, address: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", address)
        answer = cli("train")
        assert answer.code == CLUSTER
        assert_sentences(answer, (address, "(RAY_ADDRESS)"))

    def test_temporary_folder_with_a_long_name(self, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RAY_TMPDIR", f"/tmp/{'x' * 60}")
        answer = cli("train")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("RAY_TMPDIR must", "at most 37 characters, got 65", "(environment)", "shorter path"))
        assert not (tmp_path / "runs").exists()

    def test_temporary_folder_that_cannot_be_made(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        def init(**options: object) -> None:
            raise FileNotFoundError(2, "No such file or directory", "/proc/ray")

        monkeypatch.setattr(placement.ray, "init", init)
        monkeypatch.setenv("RAY_TMPDIR", "/proc")
        answer = cli("train")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("got FileNotFoundError", "/proc/ray", "Set RAY_TMPDIR to a folder that can be"))

    def test_more_object_store_than_memory(self, cli: Cli, tmp_path: Path) -> None:
        answer = cli("train", "cluster.object_store_mb=99999999")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("must be less than this machine's memory", "got 99999999", "Lower it"))
        assert not (tmp_path / "runs").exists()

    def test_a_user_without_a_home(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        """As in a container under a number without a name: Ray is started with a token of the run's own."""
        started_with: list[str] = []

        def home() -> Path:
            raise RuntimeError("Could not determine home directory.")

        def init(**options: object) -> None:
            started_with.append(os.environ["RAY_AUTH_TOKEN"])
            raise RuntimeError("that is enough")

        monkeypatch.setattr(Path, "home", home)
        monkeypatch.setattr(placement.ray, "init", init)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "")
        answer = cli("train")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("Ray must start here, got RuntimeError: that is enough (this machine)", "doctor"))
        assert len(started_with[0]) == 64

    @pytest.mark.parametrize(
        ("refusal", "words"),
        [
            ("AuthenticationError: token is missing", ("wants its token", "RAY_AUTH_TOKEN_PATH")),
            ("Failed to connect to Ray cluster at 10.0.0.9:6379", ("must know us", "RAY_AUTH_TOKEN_PATH")),
            ("Version mismatch: The cluster was started with:\nRay: 2.1", ("must run our versions", "Install its Ray")),
            ("anything else", ("must accept the connection, got anything else", "the network")),
        ],
    )
    def test_ray_refuses(self, refusal: str, words: tuple[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        def init(**options: object) -> None:
            raise RuntimeError(refusal)

        monkeypatch.setattr(placement.ray, "init", init)
        monkeypatch.setattr(placement, "probe_address", lambda *_: None)
        answer = cli("train", "cluster.address=10.0.0.9:6379")
        assert answer.code == CLUSTER
        assert_sentences(answer, ("10.0.0.9:6379", *words))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (
            "cluster.cpus_per_worker=2",
            ("too little of CPUs", "CPU: wanted 8, available 4", "`cluster.cpus_per_worker`"),
        ),
        ("cluster.gpus_per_worker=0.5", ("too little of GPUs", "GPU: wanted 1.5, available 0", "`engine=inline`")),
    ],
)
def test_not_enough_of_something(setting: str, words: tuple[str, ...], cli: Cli, tmp_path: Path) -> None:
    answer = cli("train", setting)
    assert answer.code == CLUSTER
    assert_sentences(answer, ("room for 3 domain workers and a coordinator", *words))
    assert not (tmp_path / "runs").exists()
    assert ray.is_initialized()
