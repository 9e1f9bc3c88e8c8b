"""Signals to a driver that is a process of its own, as a person, a scheduler or the kernel sends them.

A fault makes a batch wait for minutes where the signal is to come: what ends before has heard it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from difc_ray.config import Config
from tests.checkpoints import ROOT, environment, names
from tests.fault_plugin import marks
from tests.faults import (
    end_of,
    fault,
    faulty_config,
    nothing_more,
    resume,
    train,
    without_faults,
    written,
)
from tests.waiting import FOREVER_S, PATIENCE_S, eventually

pytestmark = pytest.mark.ray

HEARD_S = 20.0
"""How soon a signal must be heard, in two or less on a free machine: the checkpoint is there, or the process ends."""

FAMILY = "DIFC_RAY_TEST_FAMILY"
"""An environment variable that every process inherits which a driver starts."""


class Driver:
    """`difc-ray train` as a process, with its output and its Ray, if it starts one, below a folder."""

    def __init__(self, config: Config, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "runs" / str(config.name)
        self.ray_dir = Path(tempfile.mkdtemp(prefix="difc", dir="/tmp"))  # names of sockets must be short
        command = [sys.executable, "-m", "difc_ray", "train", "--config", str(written(config, folder))]
        variables = {**environment(), FAMILY: str(folder), "RAY_TMPDIR": str(self.ray_dir)}
        with (folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=said, stderr=said, start_new_session=True
            )

    @property
    def said(self) -> str:
        """Both of its streams."""
        return (self.folder / "said").read_text()

    def wait_for(self, text: str = "", mark: str = "") -> None:
        """Until it has said something, or a fault has left its mark."""

        def arrived() -> bool:
            assert self.process.poll() is None, self.said
            return text in self.said and (not mark or (self.folder / mark).exists())

        eventually(arrived)

    def send(self, number: int) -> float:
        """Sends a signal to the driver alone; when, as files are dated."""
        sent = time.time()
        self.process.send_signal(number)
        return sent

    def send_to_group(self, number: int) -> float:
        """Sends a signal to the driver's process group, as `timeout`, containers and schedulers do."""
        sent = time.time()
        os.killpg(self.process.pid, number)
        return sent

    def members(self) -> dict[psutil.Process, str]:
        """All that runs of what it started, uploader and Ray included, each with its command line."""
        found = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get(FAMILY) == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE:
                    found[process] = " ".join(process.cmdline())
            except psutil.Error:
                continue
        return found

    def family(self) -> list[str]:
        """The command lines of :meth:`members`."""
        return list(self.members().values())

    def end(self) -> None:
        """What a failed test leaves."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        shutil.rmtree(self.ray_dir, ignore_errors=True)


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Any]:
    """Starts a driver; ends it whatever happens."""
    drivers: list[Driver] = []

    def start(*faults: dict[str, Any], **changes: Any) -> Driver:
        drivers.append(Driver(small(tmp_path, *faults, **changes), tmp_path))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()


@pytest.fixture
def nothing_left(ray_session: None) -> Iterator[None]:
    """No actor and no placement group more than before."""
    with nothing_more():
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One MLflow store for all drivers: to make it takes longer than to run."""
    return tmp_path_factory.mktemp("mlflow") / "store.db"


def small(folder: Path, *faults: dict[str, Any], **changes: Any) -> Config:
    base: dict[str, Any] = {
        "sources": ["a", "b"],
        "model_options": {"hidden": [16]},
        "steps": 20,
        "eval_every": 20,
        "checkpoint": {"every": 4, "keep": 10},
    }
    return faulty_config(folder, *faults, **{**base, **changes})


def on_session(store: Path) -> dict[str, Any]:
    """Joins the session's Ray, which spares a start; records in the store."""
    address = ray.get_runtime_context().gcs_address
    return {"engine": "ray", "cluster": {"address": address}, "tracking": {"mode": "on", "uri": f"sqlite:///{store}"}}


def mlflow_status(store: Path, name: str) -> str:
    """The status of a run, as the store itself has it."""
    with closing(sqlite3.connect(store)) as database:
        ((status,),) = database.execute("select status from runs where name = ?", (name,))
    return str(status)


def finish_of(run_dir: Path) -> dict[str, Any]:
    """The last record for MLflow: it is written when the run ends, and then sent."""
    last: dict[str, Any] = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "finish"
    return last


def written_after(run_dir: Path, step: int, sent: float) -> float:
    """Seconds from the signal to the checkpoint."""
    return (run_dir / "checkpoints" / f"step-{step:08d}" / "manifest.json").stat().st_mtime - sent


@pytest.mark.usefixtures("nothing_left")
def test_sigterm_in_the_middle_of_a_step(drive: Any, tmp_path: Path, store: Path) -> None:
    """A worker is busy for minutes: the step in hand is given up, the state before it is saved."""
    driver = drive(fault("wait", "a", 3, seconds=FOREVER_S), name="terminated", **on_session(store))
    driver.wait_for(mark="batch-wait-a-3-0")
    sent = driver.send(signal.SIGTERM)
    assert driver.process.wait(PATIENCE_S) == 143
    print(
        f"SIGTERM: saved after {written_after(driver.run_dir, 3, sent):.2f} s, ended after {time.time() - sent:.2f} s"
    )
    assert written_after(driver.run_dir, 3, sent) < HEARD_S
    assert "Stopped by SIGTERM after step 3" in driver.said
    assert mlflow_status(store, "terminated") == "KILLED"
    eventually(lambda: driver.family() == [])

    expected = end_of(train(without_faults(small(tmp_path, name="straight", engine="inline")), tmp_path).run_dir)
    resume(driver.run_dir, "engine=inline", "tracking.mode=off")
    assert end_of(driver.run_dir).weights == expected.weights
    assert end_of(driver.run_dir).state == expected.state


@pytest.mark.usefixtures("nothing_left")
def test_sigint_while_workers_start(drive: Any, store: Path) -> None:
    driver = drive(fault("hold", "a", -1, "load", until="never"), name="early", **on_session(store))
    driver.wait_for("starting domain workers", mark="load-hold-a--1-0")
    sent = driver.send(signal.SIGINT)
    assert driver.process.wait(PATIENCE_S) == 130
    heard = finish_of(driver.run_dir)["time"] / 1e3 - sent
    print(f"SIGINT while workers start: heard after {heard:.2f} s, ended after {time.time() - sent:.2f} s")
    assert heard < HEARD_S
    assert "Stopped by SIGINT" in driver.said
    assert "resume=" in driver.said
    assert "Traceback" not in driver.said
    assert [name for name in names(driver.run_dir / "checkpoints") if name.startswith("step")] == ["step-00000000"]
    assert mlflow_status(store, "early") == "KILLED"
    eventually(lambda: driver.family() == [])


def test_sigterm_while_ray_starts(drive: Any) -> None:
    """Ray has its own handler of SIGTERM in place at that time."""
    driver = drive(engine="ray")
    driver.wait_for("starting Ray")
    eventually(lambda: any("gcs_server" in line for line in driver.family()))
    (server,) = (process for process, line in driver.members().items() if "gcs_server" in line)
    server.suspend()  # so that Ray cannot be up before the signal is there
    sent = driver.send(signal.SIGTERM)
    server.resume()
    assert driver.process.wait(PATIENCE_S) == 143
    print(f"SIGTERM while Ray starts: ended after {time.time() - sent:.2f} s")
    assert time.time() - sent < HEARD_S
    assert "Stopped by SIGTERM before the run began; nothing was written" in driver.said
    assert not (driver.folder / "runs").exists()
    eventually(lambda: driver.family() == [])


def test_sigterm_to_the_whole_process_group(drive: Any, store: Path) -> None:
    """Ray, which the driver has started, must outlive it: the driver needs it to stop well."""
    tracking = {"mode": "on", "uri": f"sqlite:///{store}"}
    driver = drive(fault("wait", "b", 6, seconds=FOREVER_S), name="group", engine="ray", tracking=tracking)
    driver.wait_for(mark="batch-wait-b-6-0")
    sent = driver.send_to_group(signal.SIGTERM)
    assert driver.process.wait(PATIENCE_S) == 143, driver.said
    print(f"SIGTERM to the group: ended after {time.time() - sent:.2f} s")
    assert "Stopped by SIGTERM after step 6; the checkpoint is written." in driver.said
    assert len(driver.said.split("difc-ray: ")) == 2, driver.said
    assert (driver.run_dir / "checkpoints" / "step-00000006" / "manifest.json").is_file()
    assert mlflow_status(store, "group") == "KILLED"
    eventually(lambda: driver.family() == [])


def test_second_signal_ends_at_once(drive: Any) -> None:
    """In one process a step cannot be given up: the first signal waits for it, the second does not."""
    driver = drive(fault("wait", "b", 2, seconds=FOREVER_S), engine="inline")
    driver.wait_for(mark="batch-wait-b-2-0")
    driver.send(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        driver.process.wait(0.5)
    sent = driver.send(signal.SIGTERM)  # two of a kind would be one to a process that has not heard the first
    assert driver.process.wait(PATIENCE_S) == 130
    print(f"second signal: ended after {time.time() - sent:.2f} s")
    assert time.time() - sent < HEARD_S
    assert "Traceback" not in driver.said
    eventually(lambda: driver.family() == [])


def test_sigkill_and_resume_auto(drive: Any, tmp_path: Path, store: Path) -> None:
    """Nothing can be caught; the kernel, Ray and the uploader's own watch end all that the driver had started."""
    tracking = {"mode": "on", "uri": f"sqlite:///{store}"}
    driver = drive(fault("wait", "b", 13, seconds=FOREVER_S), name="killed", engine="ray", tracking=tracking)
    driver.wait_for(mark="batch-wait-b-13-0")
    family = "\n".join(driver.family())
    for member in ("gcs_server", "raylet", "ray::Coordinator", "ray::DomainWorker", "tracking.uploader"):
        assert member in family
    driver.send(signal.SIGKILL)
    assert driver.process.wait(PATIENCE_S) == -signal.SIGKILL
    print(f"SIGKILL: nothing left after {eventually(lambda: driver.family() == []):.2f} s")
    assert (
        max(names(driver.run_dir / "checkpoints"), key=lambda name: (name.startswith("step"), name)) == "step-00000012"
    )

    resume("auto", f"output={driver.run_dir.parent}", "engine=inline", "tracking.mode=off")
    assert marks(tmp_path) == ["batch-wait-b-13-0"]
    expected = end_of(train(without_faults(small(tmp_path, name="straight", engine="inline")), tmp_path).run_dir)
    resumed = end_of(driver.run_dir)
    assert resumed == dataclasses.replace(expected, summary={**expected.summary, "name": "killed"})
