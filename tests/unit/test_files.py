"""Files: whole or not at all, never by a link, and one process at a time."""

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
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from difc_ray.errors import CheckpointError
from difc_ray.files import Lock, exclusive, inside, open_own, read_json, replace, replacing, write_json
from difc_ray.runs.checkpoint import run_lock
from difc_ray.tracking import TrackingFolder
from tests.checkpoints import ROOT, environment, names
from tests.processes import alive
from tests.waiting import PATIENCE_S

# ---- writing ---------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"step": 1})
    assert path.read_text() == '{\n  "step": 1\n}\n'
    mode = path.stat().st_mode & 0o777
    with suppress(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert read_json(path) == {"step": 1}
    with replacing(path, durable=True) as file:
        file.write(b"[1]")
        assert read_json(path) == {"step": 1}
    assert path.read_text() == "[1]"
    assert read_json(path) == read_json(tmp_path / "absent") == {}
    assert names(tmp_path) == ["a.json"]
    assert (path.stat().st_mode & 0o777, mode) == (0o666 & ~umask(),) * 2


@pytest.fixture
def strange(tmp_path: Path) -> Path:
    """A folder with all that somebody else may have put into it."""
    (tmp_path / "secret").write_text("mine")
    folder = tmp_path / "folder"
    for name in ("good/deep", "linked", "piped"):
        (folder / name).mkdir(parents=True)
    for name in ("good/deep/file", "..file", "piped/file"):
        (folder / name).write_text("theirs")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "linked" / "file").symlink_to(tmp_path / "secret")
    (folder / "away").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "piped" / "pipe")
    return folder


@pytest.mark.parametrize("name", ["good", "good/deep/file", "..file", "."])
def test_what_is_inside_a_folder_is_given(strange: Path, name: str) -> None:
    for bad in ("link", "linked", "away", "pipe", "piped"):
        shutil.rmtree(strange / bad) if (strange / bad).is_dir() and bad != "away" else (strange / bad).unlink()
    assert inside(strange, name).exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("/etc/hostname", "leads out of its folder"),
        ("../secret", "leads out of its folder"),
        ("good/../../secret", "leads out of its folder"),
        ("a\0b", "leads out of its folder"),
        ("link", "a link, which could lead elsewhere"),
        ("linked", "a link, which could lead elsewhere"),
        ("linked/file", "a link, which could lead elsewhere"),
        ("away/secret", "a link, which could lead elsewhere"),
        ("pipe", "neither a file nor a folder"),
        ("piped", "neither a file nor a folder"),
        (".", "neither|a link"),
    ],
)
def test_what_leads_out_of_a_folder_is_refused(strange: Path, name: str, words: str) -> None:
    with pytest.raises(OSError, match=words):
        inside(strange, name)
    with pytest.raises(FileNotFoundError):
        inside(strange, "good/none")


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_what_a_killed_process_of_our_number_left_is_no_hindrance(tmp_path: Path) -> None:
    with replacing(tmp_path / "a") as file:
        leftover = Path(file.name)
    leftover.symlink_to(tmp_path / "b")
    replace(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"
    assert names(tmp_path) == ["a"]


def test_no_link_is_followed(tmp_path: Path) -> None:
    """Whoever may write into the folder could else have us overwrite any file of ours."""
    precious = tmp_path / "precious"
    precious.write_text("mine")
    for name in ("run.log", "config.yaml", ".lock"):
        (tmp_path / name).symlink_to(precious)
    with pytest.raises(OSError, match="a link, which could lead elsewhere"):
        open_own(tmp_path / "run.log", "a")
    replace(tmp_path / "config.yaml", "seed: 1\n")
    assert not (tmp_path / "config.yaml").is_symlink()
    with pytest.raises(CheckpointError, match="must be writable"):
        run_lock(tmp_path).acquire()
    assert precious.read_text() == "mine"


# ---- locks -----------------------------------------------------------------------------------------------------------


HOLD = """
import sys
from pathlib import Path
from difc_ray.files import Lock
with Lock(Path(sys.argv[1]) / ".lock", rule="", remedy=""):
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
from difc_ray.files import Lock
def lock(): return Lock(Path(sys.argv[1]) / ".lock", rule="", remedy="")
held = lock()
held.acquire()
child = os.fork()
if not child:
    time.sleep(600)
try:
    lock().acquire()
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


def test_who_has_a_folder_is_said(tmp_path: Path) -> None:
    folder = TrackingFolder(tmp_path)
    folder.path.mkdir()
    for make, rule, remedy in (
        (lambda: run_lock(tmp_path), "one process at a time may train in a run folder", "choose another `name`"),
        (folder.lock, "the records of a run must be sent by one process at a time", "Wait for it to end"),
    ):
        with make(), pytest.raises(CheckpointError, match=f"^{rule}, got one in use by pid {os.getpid()} .*{remedy}"):
            make().acquire()
        with make():
            pass


def test_a_lock_can_be_waited_for(tmp_path: Path) -> None:
    first, second = (Lock(tmp_path / "x", rule="r", remedy="") for _ in range(2))
    first.acquire()
    timer = threading.Timer(0.5, first.release)
    timer.start()
    second.acquire(PATIENCE_S)
    timer.join()
    second.release()


def test_exclusive_waits_and_then_goes_on_without(tmp_path: Path) -> None:
    order: list[str] = []

    def other() -> None:
        with exclusive(tmp_path / "x", PATIENCE_S):
            order.append("second")

    with exclusive(tmp_path / "x", PATIENCE_S):
        thread = threading.Thread(target=other)
        thread.start()
        with exclusive(tmp_path / "x", 0.2):
            order.append("first")
    thread.join()
    assert order == ["first", "second"]


@pytest.mark.process
def test_second_driver_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(
            CheckpointError, match=f"in use by pid {process.pid} on host {socket.gethostname()}"
        ) as caught:
            run_lock(tmp_path).acquire()
        assert caught.value.exit_code == 6
    finally:
        close(process)
    assert names(tmp_path) == []
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


@pytest.mark.process
def test_lock_of_a_killed_driver_is_taken_over(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    close(process)
    assert names(tmp_path) == [".lock"]
    with run_lock(tmp_path) as lock:
        assert lock.path.exists()
        with pytest.raises(CheckpointError, match=f"pid {os.getpid()}"):
            run_lock(tmp_path).acquire()
    assert names(tmp_path) == []


@pytest.mark.process
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
            run_lock(tmp_path).acquire()
        process.kill()
        process.wait()
        assert alive(int(child))
        with run_lock(tmp_path):
            pass
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.parametrize("content", ["", "{", '{"pid": 1}', "[]"])
def test_unreadable_lock_files_are_taken_over(tmp_path: Path, content: str) -> None:
    (tmp_path / ".lock").write_text(content)
    with run_lock(tmp_path):
        pass
    assert names(tmp_path) == []


def test_release_is_harmless_when_not_held_or_already_gone(tmp_path: Path) -> None:
    lock = run_lock(tmp_path)
    lock.release()
    lock.acquire()
    lock.acquire()
    shutil.rmtree(tmp_path)
    lock.release()
    tmp_path.mkdir()


def test_a_folder_that_cannot_be_locked_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must be writable, got No such file or directory"):
        run_lock(tmp_path / "absent").acquire()


@pytest.mark.process
def test_without_file_locks_the_named_process_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = hold(tmp_path)
    held = (tmp_path / ".lock").read_text()

    def unsupported(handle: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    try:
        with pytest.raises(CheckpointError, match=f"pid {process.pid} .*surely gone, delete"):
            run_lock(tmp_path).acquire()
        other_start = json.loads(held) | {"started": 5.0}
        (tmp_path / ".lock").write_text(json.dumps(other_start))  # the number was given to another process since
        with run_lock(tmp_path):
            pass
        (tmp_path / ".lock").write_text(json.dumps(json.loads(held) | {"host": "elsewhere"}))
        with pytest.raises(CheckpointError, match="on host elsewhere"):
            run_lock(tmp_path).acquire()
    finally:
        close(process)
    (tmp_path / ".lock").write_text(held)
    with run_lock(tmp_path):
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
    with run_lock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
        with pytest.raises(CheckpointError, match="in use"):
            run_lock(tmp_path).acquire()
    assert len(calls) > 2
