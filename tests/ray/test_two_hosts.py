"""A cluster of two hosts: two network namespaces with an address each and a cable between them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from tests.checkpoints import environment
from tests.cli.shell import MODULE
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

HOSTS = ("10.77.31.1", "10.77.31.2")
MARK = "DIFC_RAY_TEST_TWO_HOSTS"
STEPS = 3
RUN = (
    "train", "sources=mnist,fonts", "target=null", "model=lenet", f"steps={STEPS}", "batch_size=8",
    f"eval_every={STEPS}", "tracking.mode=off",
)  # fmt: skip

BETWEEN_HOSTS = (
    f"cluster.address={HOSTS[0]}:6379", "cluster.transport=collective", "cluster.bundles.mnist.resources.one=1",
    "cluster.bundles.fonts.resources.two=1",
)  # fmt: skip


def ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=10)


class TwoHosts:
    """Two namespaces, and a Ray node in each.

    Args:
        folder: of all that the cluster writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.names = folder, [f"difc{secrets.token_hex(3)}" for _ in HOSTS]
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        self.variables = {**environment(), "PATH": path, "RAY_TMPDIR": str(folder), MARK: str(folder)}
        self.nodes: list[subprocess.Popen[bytes]] = []

    def lay_the_cable(self) -> None:
        """One network, and nothing else in it."""
        one, other = self.names
        for name in self.names:
            assert ip("netns", "add", name).returncode == 0
        assert ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "eth0", "netns", other).returncode == 0
        for name, address in zip(self.names, HOSTS, strict=True):
            for command in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "lo", "up"),
                            ("link", "set", "eth0", "up")):  # fmt: skip
                answer = ip("-n", name, *command)
                assert answer.returncode == 0, answer.stderr

    def start(self) -> None:
        head = ("--head", "--port=6379", "--include-dashboard=false", f"--temp-dir={self.folder}")
        for number, own in enumerate((head, (f"--address={HOSTS[0]}:6379",))):
            words = ("ray", "start", "--block", f"--node-ip-address={HOSTS[number]}", "--num-cpus=2", *own,
                     "--disable-usage-stats", f"--resources={json.dumps({('one', 'two')[number]: 1})}",
                     f"--object-store-memory={200 * 2**20}")  # fmt: skip
            with (self.folder / f"said{number}").open("wb") as said:
                self.nodes.append(
                    subprocess.Popen(
                        self.inside(number, words), env=self.variables, stdout=said, stderr=said, start_new_session=True
                    )
                )
            self._wait_for(number)

    def inside(self, number: int, words: Sequence[str]) -> list[str]:
        return ["ip", "netns", "exec", self.names[number], *words]

    def _wait_for(self, number: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in (self.folder / f"said{number}").read_text():
            assert self.nodes[number].poll() is None, (self.folder / f"said{number}").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def end(self) -> None:
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            try:
                node.wait(15)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait(5)
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == str(self.folder):
                    process.kill()
                    left.append(process)
            except psutil.Error:
                continue
        psutil.wait_procs(left, timeout=5)
        for name in self.names:
            ip("netns", "del", name)


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    """Skipped where a namespace may not be made: that takes root, Linux and the program `ip`."""
    probe = f"difc{secrets.token_hex(3)}"
    if shutil.which("ip") is None or ip("netns", "add", probe).returncode:
        pytest.skip("network namespaces need Linux, root and the program `ip`")
    ip("netns", "del", probe)
    folder = Path(tempfile.mkdtemp(prefix="difc", dir="/tmp"))
    found = TwoHosts(folder)
    try:
        found.lay_the_cable()
        found.start()
        yield found
    finally:
        found.end()
        shutil.rmtree(folder, ignore_errors=True)


def test_rows_go_over_the_cable_and_change_no_bit(hosts: TwoHosts, tmp_path: Path) -> None:
    """The weights of a single process, from workers on two hosts that send each other shards of rows."""
    common = (*MODULE, *RUN, f"output={tmp_path}", "cluster.cpus_per_worker=1")
    before = cable_bytes(hosts)
    for name, words in (
        ("apart", hosts.inside(0, (*common, "name=apart", *BETWEEN_HOSTS))),
        ("inline", [*common, "name=inline", "engine=inline"]),
    ):
        answer = subprocess.run(words, env=hosts.variables, capture_output=True, text=True, timeout=PATIENCE_S)
        assert answer.returncode == 0, answer.stdout + answer.stderr
        assert (name == "inline") or "transport: collective (gloo)" in answer.stdout
    one, other = (load_file(tmp_path / name / "export" / "weights.safetensors") for name in ("apart", "inline"))
    assert all((one[name] == other[name]).all() for name in one)
    row_bytes = 4 * sum(value.numel() for value in one.values())
    sent = cable_bytes(hosts) - before
    assert sent > STEPS * 1.5 * row_bytes, "half of two rows, and half of the direction, in each step"


def cable_bytes(hosts: TwoHosts) -> int:
    """What has left the first host."""
    answer = subprocess.run(
        hosts.inside(0, ("cat", "/sys/class/net/eth0/statistics/tx_bytes")), capture_output=True, text=True, timeout=10
    )
    return int(answer.stdout)
