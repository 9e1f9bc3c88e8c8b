"""A sweep whose driver is killed or told to stop, and the same sweep resumed: no finished trial is lost or redone."""

from __future__ import annotations

import contextlib
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
import yaml

from difc_ray.cli.execution import execute
from difc_ray.sweeps.folder import SweepFolder
from tests.checkpoints import ROOT, environment
from tests.faults import end_of, fault, marked_pid, nothing_more
from tests.processes import alive
from tests.ray.test_signals import FAMILY, Driver, mlflow_status
from tests.sweeps import alone, assert_same_end, space_file, sweep
from tests.waiting import FOREVER_S, PATIENCE_S, eventually

pytestmark = pytest.mark.ray


def held(until: str = "runs/s/interrupted") -> list[dict[str, Any]]:
    """A trial is in the middle of a step, and stays there until the sweep tells its trials to stop; then it is slow."""
    hold = fault("hold", "a", 6, until=until)
    return [hold, fault("wait", "a", -1, seconds=0.15, times=0, after="batch-hold-a-6-0")]


class SweepDriver(Driver):
    """`difc-ray tune` as a process that joins the session's Ray."""

    def __init__(self, path: Path, *arguments: str) -> None:
        self.folder, self.run_dir = path.parent, path.parent / "runs" / "s"
        self.ray_dir = Path(tempfile.mkdtemp(prefix="difc", dir="/tmp"))
        command = [sys.executable, "-m", "difc_ray", "tune", str(path), "name=s", *arguments]
        with (self.folder / "said").open("wb") as said:
            variables = {**environment(), FAMILY: str(self.folder), "RAY_TMPDIR": str(self.ray_dir)}
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=variables, stdout=said, stderr=said, start_new_session=True
            )


@pytest.fixture
def drive() -> Iterator[Any]:
    """Starts drivers; ends them whatever happens."""
    drivers: list[SweepDriver] = []

    def start(path: Path, *arguments: str) -> SweepDriver:
        drivers.append(SweepDriver(path, *arguments))
        return drivers[-1]

    yield start
    for driver in drivers:
        driver.end()


@pytest.fixture(autouse=True)
def _nothing_left(ray_session: None) -> Iterator[None]:
    """No actor of a trial and no placement group more than before."""
    with nothing_more():
        yield


def file_of(folder: Path, *faults: list[dict[str, Any]], own_ray: bool = False, **config: Any) -> Path:
    """A space with a trial for every list of faults, whose sweep joins the session's Ray or starts its own."""
    address = None if own_ray else ray.get_runtime_context().gcs_address
    rows = [[0.02 + 0.001 * number, each] for number, each in enumerate(faults)]
    cluster = {"cpus_per_worker": 0.5, "address": address}
    return space_file(
        folder, {"cluster": cluster, **config}, space={"optimizer.lr, dataset_options.faults": {"grid": rows}}
    )


def contents(folder: Path) -> dict[Path, int]:
    """All files of a run but its records for MLflow, with the time of their last change."""
    files = [path for path in folder.rglob("*") if path.is_file() and "tracking" not in path.parts]
    return {path: path.stat().st_mtime_ns for path in files}


def trials() -> list[int]:
    """Processes of the sweeps' trials on the session's Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "".join(process.cmdline()[:1]).startswith("ray::Trial"):
                found.append(process.pid)
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a sweep is not resumed."""
    capsys.readouterr()
    assert execute(["tune", *arguments, "--resume"]) == 6
    (sentence,) = capsys.readouterr().err.splitlines()
    return sentence


def test_a_sweep_whose_driver_was_killed(drive: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody could write down how it ended; what is resumed is what the folders of the trials say."""
    path = file_of(tmp_path, [], [fault("wait", "a", 9, seconds=FOREVER_S)], [])
    driver = drive(path)
    driver.wait_for(mark="batch-wait-a-9-0")
    driver.send(signal.SIGKILL)
    assert driver.process.wait(PATIENCE_S) == -signal.SIGKILL
    folder = SweepFolder(tmp_path / "runs" / "s")
    assert [record.status for record in folder.records()] == ["finished", "running", "waiting"]
    eventually(lambda: not trials())  # Ray tells them to end, and they write that down
    eventually(lambda: not alive(marked_pid(tmp_path, "wait-a-9-0")))
    finished = contents(folder.run_dir(0))
    before = contents(folder.path)

    sheet = folder.sheet.read_text()
    folder.sheet.write_text(sheet[: len(sheet) // 2])
    assert "`sweep.json` must list the sweep's trials" in refused(capsys, str(path), "name=s")
    folder.sheet.write_text(sheet)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "seeds": [1]}))
    assert "for a sweep of `space`; they differ in `seeds` (" in refused(capsys, str(other), "name=s")
    assert "there must be a sweep of" in refused(capsys, str(other))
    assert execute(["tune", str(path), "name=s"]) == 6
    assert "must have a new folder" in capsys.readouterr().err
    (folder.trials / "00002.json").write_text('{"point"')  # the kernel was at it
    assert {file for file, at in contents(folder.path).items() if before.get(file) != at} == {
        folder.sheet, folder.trials / "00002.json",
    }  # fmt: skip

    done = sweep(path, "name=s", resume=True)
    assert done.statuses() == ["finished"] * 3
    assert contents(folder.run_dir(0)) == finished
    assert {record.point.number for record, _ in done.display.trials} == {1, 2}
    for point in done.points:
        assert_same_end(end_of(folder.run_dir(point.number)), alone(tmp_path, done.base, point))
    assert [record["step"] for record in end_of(folder.run_dir(1)).records if record["kind"] == "evaluation"] == [
        4, 8, 12, 16,
    ]  # fmt: skip


def children(store: Path) -> list[str]:
    """The statuses of the trials, as the store itself has them."""
    with closing(sqlite3.connect(store)) as database:
        try:
            found = database.execute("select status from runs where name != 's' order by name").fetchall()
        except sqlite3.OperationalError:  # its tables are being made
            return []
    return [status for (status,) in found]


def test_a_sweep_that_was_told_to_stop(drive: Any, tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    tracking = {"mode": "on", "uri": f"sqlite:///{store}"}
    path = file_of(tmp_path, [], held(), [], tracking=tracking)
    driver = drive(path)
    driver.wait_for(mark="batch-hold-a-6-0")
    sent = driver.send(signal.SIGINT)
    assert driver.process.wait(PATIENCE_S) == 130, driver.said
    print(f"SIGINT: the sweep had ended after {time.time() - sent:.2f} s")
    assert "Stopped by SIGINT; trials that have ended are kept" in driver.said
    assert "Traceback" not in driver.said
    eventually(lambda: driver.family() == [])
    assert mlflow_status(store, "s") == "KILLED"
    assert children(store) == ["FINISHED", "KILLED"]
    folder = SweepFolder(tmp_path / "runs" / "s")
    assert [record.status for record in folder.records()] == ["finished", "interrupted", "waiting"]
    finished = contents(folder.run_dir(0))

    command = next(line for line in driver.said.splitlines() if "--resume" in line).split("`")[1].split()
    assert execute([*command[1:]]) == 0
    assert [record.status for record in folder.records()] == ["finished"] * 3
    assert contents(folder.run_dir(0)) == finished
    assert mlflow_status(store, "s") == "FINISHED"
    assert children(store) == ["FINISHED"] * 3
    again = sweep(path, "name=s", "tracking.mode=off", resume=True)
    assert again.display.trials == []
    for point in again.points:
        assert_same_end(end_of(folder.run_dir(point.number)), alone(tmp_path, again.base, point))
    shutil.rmtree(tmp_path / "alone")


def test_sigterm_to_the_whole_process_group(drive: Any, tmp_path: Path) -> None:
    """As a scheduler or `timeout` sends it: Ray must still be there when the driver ends its trials."""
    store = tmp_path / "store.db"
    path = file_of(tmp_path, held(), [], own_ray=True, tracking={"mode": "on", "uri": f"sqlite:///{store}"})
    driver = drive(path)
    driver.wait_for(mark="batch-hold-a-6-0")
    sent = driver.send_to_group(signal.SIGTERM)
    assert driver.process.wait(PATIENCE_S) == 143, driver.said
    print(f"SIGTERM to the group: the sweep had ended after {time.time() - sent:.2f} s")
    assert "Stopped by SIGTERM; trials that have ended are kept" in driver.said
    assert "--resume name=s" in driver.said
    assert mlflow_status(store, "s") == "KILLED"
    assert children(store) == ["KILLED"]
    folder = SweepFolder(tmp_path / "runs" / "s")
    assert [record.status for record in folder.records()] == ["interrupted", "waiting"]
    assert folder.can_resume(0)
    eventually(lambda: driver.family() == [])


@pytest.mark.parametrize("told", [True, False])
def test_a_sweep_whose_ray_is_gone(drive: Any, tmp_path: Path, told: bool) -> None:
    """A job manager signals every process, or the kernel takes Ray alone: Tune hangs, and Ray would then abort us."""
    store = tmp_path / "store.db"
    path = file_of(
        tmp_path,
        held("never") if told else held(),
        [],
        own_ray=True,
        tracking={"mode": "on", "uri": f"sqlite:///{store}"},
    )
    driver = drive(path)
    driver.wait_for(mark="batch-hold-a-6-0")
    sent = time.time()
    for process, line in driver.members().items():
        with contextlib.suppress(psutil.Error):
            if told:
                process.send_signal(signal.SIGTERM)
            elif "gcs_server" in line or "raylet/raylet" in line:
                process.kill()
    assert driver.process.wait(PATIENCE_S) == (143 if told else 4), driver.said
    print(f"Ray gone: the sweep had ended after {time.time() - sent:.2f} s")
    last = driver.said.splitlines()[-1]
    assert ("Stopped by SIGTERM, and Ray with it" if told else "Ray has ended in the middle of the sweep") in last
    assert "`difc-ray tune" in last
    assert "--resume name=s" in last
    assert "Failed to connect to GCS" not in driver.said
    assert mlflow_status(store, "s") == ("KILLED" if told else "FAILED")
    assert not {"RUNNING", "FINISHED"} & set(children(store))
    eventually(lambda: driver.family() == [])  # nobody is left who could end what does not end by itself
    command = last.split("`")[1].split()
    assert execute([*command[1:], "tracking.mode=off"]) == 0
    assert [record.status for record in SweepFolder(tmp_path / "runs" / "s").records()] == ["finished"] * 2


def test_sync_closes_what_a_dead_driver_has_left_open(
    drive: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The driver, its Ray and its uploader are killed at once: nobody is left to say how the runs ended."""
    store = tmp_path / "store.db"
    path = file_of(
        tmp_path, [fault("wait", "a", 5, seconds=FOREVER_S)], own_ray=True,
        tracking={"mode": "on", "uri": f"sqlite:///{store}"},
    )  # fmt: skip
    driver = drive(path)
    driver.wait_for(mark="batch-wait-a-5-0")
    eventually(lambda: store.exists() and children(store) == ["RUNNING"])
    everybody = {psutil.Process(driver.process.pid), *driver.members()}
    for act in (psutil.Process.suspend, psutil.Process.kill):  # or one would write down the death of another
        for process in everybody:
            with contextlib.suppress(psutil.Error):
                act(process)
    driver.process.wait(PATIENCE_S)
    eventually(lambda: driver.family() == [])
    assert (mlflow_status(store, "s"), children(store)) == ("RUNNING", ["RUNNING"])
    capsys.readouterr()
    assert execute(["sync", str(driver.run_dir), "--uri", f"sqlite:///{store}"]) == 0
    assert "2 run(s) whose processes ended without a word are KILLED in MLflow" in capsys.readouterr().out
    assert (mlflow_status(store, "s"), children(store)) == ("KILLED", ["KILLED"])
