"""One driver per run folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from difc_ray.errors import CheckpointError
from difc_ray.runs.checkpoint import (
    RunLock,
)
from tests.checkpoints import (
    ROOT,
    environment,
    names,
)
from tests.processes import alive
from tests.waiting import PATIENCE_S

HOLD = """
import sys
from pathlib import Path
from difc_ray.runs.checkpoint import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """A process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


FORK = """
import os, sys, time
from pathlib import Path
from difc_ray.runs.checkpoint import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
child = os.fork()
if not child:
    time.sleep(600)
try:
    RunLock(Path(sys.argv[1])).acquire()
except Exception as error:
    print(child, type(error).__name__, flush=True)
time.sleep(600)
"""


def close(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=PATIENCE_S)


def test_second_driver_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(
            CheckpointError, match=f"in use by pid {process.pid} on host {socket.gethostname()}"
        ) as caught:
            RunLock(tmp_path).acquire()
        assert caught.value.exit_code == 6
    finally:
        close(process)
    assert names(tmp_path) == []
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_lock_of_a_killed_driver_is_taken_over(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    close(process)
    assert names(tmp_path) == [".lock"]
    with RunLock(tmp_path) as lock:
        assert lock.path.exists()
        with pytest.raises(CheckpointError, match=f"pid {os.getpid()}"):
            RunLock(tmp_path).acquire()
    assert names(tmp_path) == []


def test_lock_of_a_killed_driver_is_free_although_its_loaders_live(tmp_path: Path) -> None:
    """They end some seconds after it. While it lives, the lock is its own, whatever they close."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment()
    )
    assert process.stdout is not None
    child, error = process.stdout.readline().split()
    try:
        assert error == "CheckpointError"
        with pytest.raises(CheckpointError, match=f"in use by pid {process.pid}"):
            RunLock(tmp_path).acquire()
        process.kill()
        process.wait()
        assert alive(int(child))
        with RunLock(tmp_path):
            pass
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_unreadable_lock_files_are_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with RunLock(tmp_path):
        pass
    assert names(tmp_path) == []


def test_release_is_harmless_when_not_held_or_already_gone(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.release()
    lock.acquire()
    lock.acquire()
    shutil.rmtree(tmp_path)
    lock.release()
    tmp_path.mkdir()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be writable, got No such file or directory"):
        RunLock(tmp_path / "absent").acquire()


def test_without_file_locks_the_named_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = hold(tmp_path)
    held = (tmp_path / ".lock").read_text()

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    try:
        with pytest.raises(CheckpointError, match=f"pid {process.pid} .*surely gone, delete"):
            RunLock(tmp_path).acquire()
        other_start = json.loads(held) | {"started": 5.0}
        (tmp_path / ".lock").write_text(json.dumps(other_start))  # the number was given to another process since
        with RunLock(tmp_path):
            pass
        (tmp_path / ".lock").write_text(json.dumps(json.loads(held) | {"host": "elsewhere"}))
        with pytest.raises(CheckpointError, match="on host elsewhere"):
            RunLock(tmp_path).acquire()
    finally:
        close(process)
    (tmp_path / ".lock").write_text(held)
    with RunLock(tmp_path):
        pass
    monkeypatch.undo()


def test_a_lock_file_removed_between_open_and_lock_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The previous holder releases in just that moment: our lock would be on a file without a name."""
    real, calls = fcntl.flock, []

    def flock(handle: int, operation: int) -> None:
        calls.append(handle)
        if len(calls) == 1:
            (tmp_path / ".lock").unlink()
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(CheckpointError, match="in use"):
            RunLock(tmp_path).acquire()
    assert len(calls) == 3
