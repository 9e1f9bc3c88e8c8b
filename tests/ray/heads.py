"""A Ray cluster that is nobody's child but ours: a head with dashboard and token, as people start one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from tests.checkpoints import environment
from tests.clusters import FOLDER
from tests.ports import free_port
from tests.waiting import PATIENCE_S

FAMILY = "DIFC_RAY_TEST_HEAD"
"""An environment variable that every process of the cluster inherits."""

RUNTIME_ENV = FOLDER / "runtime_env.yaml"
"""What people submit with."""

PATIENT = {"RAY_timeout_ms_task_wait_for_death_info": "60000"}
"""The news of why an actor does not answer may be late on a busy machine."""


class Head:
    """`ray start --head --block` as a process, on loopback ports and in a folder of its own.

    Args:
        variables: more environment variables of the cluster.
    """

    def __init__(self, **variables: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="difc", dir="/tmp"))  # names of sockets must be short
        gcs, dashboard, agent, client = (free_port() for _ in range(4))
        self.url, self.address = f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}"
        command = [
            Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--port", gcs,
            "--dashboard-host", "127.0.0.1", "--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent,
            "--ray-client-server-port", client, "--min-worker-port", 0, "--max-worker-port", 0, "--num-cpus", 4,
            "--include-dashboard=true", "--object-store-memory", 200 * 2**20, "--temp-dir", self.folder,
            "--disable-usage-stats",
        ]  # fmt: skip
        path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        marked = {
            **environment(),
            "PATH": path,
            "RAY_TMPDIR": str(self.folder),
            FAMILY: str(self.folder),
            **PATIENT,
            **variables,
        }
        with (self.folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [str(word) for word in command], env=marked, stdout=said, stderr=said, start_new_session=True,
                cwd=self.folder,
            )  # fmt: skip

    def wait(self) -> None:
        """Until its dashboard answers."""
        deadline = time.monotonic() + PATIENCE_S
        headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{self.url}/api/version", headers=headers), timeout=5)
                return
            except OSError:
                said = (self.folder / "said").read_text()
                assert self.process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.2)

    def family(self) -> list[psutil.Process]:
        """Every process of the cluster."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(FAMILY) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def ask(self, path: str) -> Any:
        """The dashboard's answer to a request for a path, as any client that has the token gets it."""
        headers = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=60) as answer:
            return json.load(answer)

    def job(self, verb: str, *words: str, cwd: Path) -> subprocess.Popen[str]:
        """`ray job VERB ...` on this cluster, from a folder."""
        command = [str(Path(sys.executable).with_name("ray")), "job", verb, "--address", self.url, *words]
        return subprocess.Popen(
            command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def submit(self, name: str, *command: str, cwd: Path) -> subprocess.Popen[str]:
        """`ray job submit` of a command of ours with our runtime environment, which follows the job until it ends."""
        ours = ("--runtime-env", str(RUNTIME_ENV), "--submission-id", name)
        return self.job("submit", *ours, "--", "python", "-m", "difc_ray", *command, cwd=cwd)

    def end(self) -> None:
        """Ends it, gently first, and all that it has started."""
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
        left = self.family()
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=5)
        shutil.rmtree(self.folder, ignore_errors=True)
