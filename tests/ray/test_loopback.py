"""A Ray that a run starts: who can reach it, and what he needs. Looked at from outside, while it trains."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest

from difc_ray.tracking import entries
from tests.cli.shell import MODULE, environment
from tests.processes import command_of
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SOURCES = ("mnist", "fonts")
RUN = (
    "train", "name=r", f"sources={','.join(SOURCES)}", "target=null", "model=mlp", "steps=100000", "tracking.mode=off",
    "cluster.transport=collective",  # which opens ports of its own besides those of Ray
)  # fmt: skip
GCS = "from ray._raylet import GcsClient; print(len(GcsClient(address='127.0.0.1:{port}').cluster_id.hex()))"


def listening(processes: Iterable[psutil.Process]) -> dict[tuple[str, int], str]:
    """(address, port) -> command of every TCP socket on which one of the processes accepts connections."""
    found = {}
    for process in processes:
        try:
            name = " ".join(process.cmdline()[:1])
            for each in process.net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    found[each.laddr.ip, each.laddr.port] = name
        except psutil.NoSuchProcess:
            continue
    return found


def reachable_from_elsewhere(found: dict[tuple[str, int], str]) -> list[str]:
    """Those that are not on a loopback address."""
    return [f"{name} on {ip}:{port}" for (ip, port), name in found.items() if not is_loopback(ip)]


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = getattr(address, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return bool((mapped or address).is_loopback)


@pytest.fixture(scope="module")
def trains(tmp_path_factory: pytest.TempPathFactory) -> Iterator[psutil.Process]:
    """`difc-ray train`, some steps in, of a user without a token, in an environment that says nothing of Ray."""
    folder, temporary = tmp_path_factory.mktemp("loopback"), tempfile.mkdtemp(prefix="difc", dir="/tmp")
    variables = {name: value for name, value in environment().items() if not name.startswith("RAY_")}
    variables |= {"HOME": str(folder), "RAY_TMPDIR": temporary}
    process = subprocess.Popen([*MODULE, *RUN], cwd=folder, env=variables)
    try:
        deadline = time.monotonic() + 150
        while not any(entries(folder / "runs" / "r" / "metrics.jsonl", "step")) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.2)
        assert time.monotonic() < deadline
        yield psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=PATIENCE_S) == 130
        shutil.rmtree(temporary, ignore_errors=True)
    assert not (folder / ".ray").exists()  # where Ray would leave a token that everybody can read


def family(trains: psutil.Process) -> list[psutil.Process]:
    return [trains, *trains.children(recursive=True)]


def named(trains: psutil.Process, name: str) -> list[psutil.Process]:
    return [process for process in family(trains) if name in " ".join(command_of(process)[:1])]


def gcs_port(trains: psutil.Process) -> int:
    [(_, port)] = listening(named(trains, "gcs_server"))
    return port


def test_every_socket_is_on_loopback(trains: psutil.Process) -> None:
    found = listening(family(trains))
    servers = set(found.values())
    for name in ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent", "Coordinator", "ReplicaWorker"):
        assert any(name in server for server in servers), (name, servers)
    assert len(named(trains, "ReplicaWorker")) == len(SOURCES)
    assert reachable_from_elsewhere(found) == []


def test_a_socket_on_all_interfaces_would_be_seen() -> None:
    for family_, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family_) as server:
            try:
                server.bind((address, 0))
            except OSError:  # no such addresses on this machine
                continue
            server.listen()
            port = server.getsockname()[1]
            told = reachable_from_elsewhere(listening([psutil.Process()]))  # this process may be on Ray as well
            assert [each for each in told if each.endswith(f"on {address}:{port}")]


@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "b" * 64}])
def test_nobody_joins_without_the_token(variables: dict[str, str], trains: psutil.Process, tmp_path: Path) -> None:
    answer = ask_gcs(gcs_port(trains), variables, tmp_path)
    assert answer.returncode != 0
    assert "InvalidAuthToken" in answer.stderr


def test_who_has_the_token_joins(trains: psutil.Process, tmp_path: Path) -> None:
    """That the refusals above are about the token; it is in the environment of Ray's processes, and nowhere else."""
    [server] = named(trains, "gcs_server")
    token = server.environ()["RAY_AUTH_TOKEN"]
    assert len(token) == 64
    assert not [process for process in family(trains) if token in " ".join(process.cmdline())]
    answer = ask_gcs(gcs_port(trains), {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}, tmp_path)
    assert answer.returncode == 0, answer.stderr


def ask_gcs(port: int, variables: dict[str, str], home: Path) -> subprocess.CompletedProcess[str]:
    """What a process with these variables, and without a token in its home, hears from Ray's head."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-c", GCS.format(port=port)],
        env=plain | {"HOME": str(home)} | variables, capture_output=True, text=True, timeout=90,
    )  # fmt: skip
