"""Nothing that was saved is lost to a full disk, an error, or a kill at any moment."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from difc_ray.errors import CheckpointError
from difc_ray.runs.checkpoint import (
    newest_valid,
    save,
)
from tests.checkpoints import (
    FILES,
    ROOT,
    assert_same,
    dead_pid,
    environment,
    names,
    run_python,
    snapshot_of,
)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weights_are_not_written(tmp_path: Path, value: float) -> None:
    save(tmp_path, snapshot_of(1), keep=1, best=False)
    bad = snapshot_of(2)
    bad.named_weights["f.bias"][1] = value
    with pytest.raises(CheckpointError, match=r"non-finite values in `f\.bias` at step 2"):
        save(tmp_path, bad, keep=1, best=False)
    assert names(tmp_path) == ["latest", "step-00000001"]
    buffer = snapshot_of(2)
    buffer.named_weights["buffer.mean"] = torch.tensor([float("nan")])
    with pytest.raises(CheckpointError, match=r"`buffer\.mean`"):
        save(tmp_path, buffer, keep=1, best=False)


LIMITED = """
import resource, sys
from pathlib import Path
from difc_ray.runs.checkpoint import save, newest_valid
from difc_ray.errors import CheckpointError
from tests.checkpoints import snapshot_of
root, resave = Path(sys.argv[1]), sys.argv[2] == "resave"
save(root, snapshot_of(1), keep=1, best=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
try:
    save(root, snapshot_of(1 if resave else 2, size=100_000), keep=1, best=True)
except CheckpointError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
path, snapshot, rejected = newest_valid(root)
assert (snapshot.step, len(snapshot.config_yaml) > 0, rejected) == (1, True, [])
assert sorted(entry.name for entry in root.iterdir()) == ["best.json", "latest", "step-00000001"]
save(root, snapshot_of(2), keep=1, best=True)
assert newest_valid(root)[1].step == 2
"""


@pytest.mark.process
@pytest.mark.parametrize(("what", "limit"), [("next", 50_000), ("resave", 50_000), ("next", 0)])
def test_a_disk_that_takes_no_more_leaves_the_old_ones(tmp_path: Path, what: str, limit: int) -> None:
    done = run_python(LIMITED, str(tmp_path / "c"), what, str(limit))
    assert "File too large, the limit of `ulimit -f`" in done
    assert f"`{tmp_path / 'c'}`: it needs 0.8 MB (" in done
    assert "are free" in done


def test_a_full_disk_is_named_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, snapshot_of(1), keep=1, best=False)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(CheckpointError, match=r"No space left on device for step 2 .* \(1000 bytes\) are free"):
        save(tmp_path, snapshot_of(2), keep=1, best=False)
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory for step 1"):
        save(tmp_path / "file" / "checkpoints", snapshot_of(1), keep=1, best=False)


def test_a_failure_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, snapshot_of(1), keep=1, best=False)
    real = os.fsync
    calls: list[int] = []

    def fail(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match="Input/output error"):
        save(tmp_path, snapshot_of(2), keep=1, best=False)
    assert len(calls) == 3
    assert names(tmp_path) == ["latest", "step-00000001"]


def test_everything_is_flushed_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(handle: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")).partition("@")[0])
        real_fsync(handle)

    def rename(path: Path, target: Path) -> Path:
        events.append(f"rename to {target.name}")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    save(tmp_path, snapshot_of(1), keep=1, best=False)
    at = events.index("rename to step-00000001")
    assert events[:at] == [*FILES, ".tmp-step-00000001"]
    assert events[at + 1] == tmp_path.name


KILLED = """
import sys
from pathlib import Path
from difc_ray.runs.checkpoint import newest_valid, save
from difc_ray.errors import CheckpointError
from tests.checkpoints import snapshot_of
root = Path(sys.argv[1])
step = newest_valid(root)[1].step if (root / "latest").exists() else 0
print("ready", flush=True)
while True:
    step += 1
    for _ in range(2):  # the second replaces the first
        save(root, snapshot_of(step, size=50_000), keep=2, best=step % 3 == 0)
    print(step, flush=True)
"""


@pytest.mark.process
def test_sigkill_at_any_moment_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    root = tmp_path / "c"
    rng = np.random.Generator(np.random.PCG64(1))
    acknowledged = 0
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(root)], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment()
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        lines = process.stdout.readline().split() if round_ % 2 else []  # every other one gets that far
        time.sleep(float(rng.uniform(0.03, 0.25)))
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().split()
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
        acknowledged = int(lines[-1]) if lines else acknowledged
        path, snapshot, rejected = newest_valid(root) if acknowledged else (root, snapshot_of(0, 50_000), [])
        assert snapshot.step in (acknowledged, acknowledged + 1)
        assert rejected == []
        assert_same(snapshot, snapshot_of(snapshot.step, size=50_000))
        if acknowledged:
            assert not [name for name in names(root) if name.startswith((".tmp-", ".old-"))]
            assert path.name in names(root)
            acknowledged = snapshot.step  # the next process goes on from there, told or not
    assert acknowledged >= 2
    save(root, snapshot_of(acknowledged + 2), keep=1, best=True)
    assert len(names(root)) == 3


def test_a_replaced_checkpoint_comes_back_if_its_successor_did_not_arrive(tmp_path: Path) -> None:
    """Killed between the two renames of a repeated save."""
    path = save(tmp_path, snapshot_of(4), keep=1, best=False)
    path.rename(tmp_path / f".old-{path.name}@{socket.gethostname()}@{dead_pid()}")
    found, snapshot, _ = newest_valid(tmp_path)
    assert found == path
    assert_same(snapshot, snapshot_of(4))


def test_readers_leave_a_living_writer_alone(tmp_path: Path) -> None:
    save(tmp_path, snapshot_of(4), keep=1, best=False)
    mine = tmp_path / f".tmp-step-00000005@{socket.gethostname()}@{os.getpid()}"
    foreign = tmp_path / ".tmp-step-00000005@elsewhere@1"
    dead = tmp_path / f".tmp-step-00000005@{socket.gethostname()}@{dead_pid()}"
    for folder in (mine, foreign, dead):
        folder.mkdir()
    old = tmp_path / ".tmp-latest@elsewhere@2"
    old.write_text("")
    os.utime(old, (0, 0))
    newest_valid(tmp_path)
    assert {mine.name, foreign.name} < set(names(tmp_path))
    assert not dead.exists()
    assert not old.exists()
    save(tmp_path, snapshot_of(5), keep=1, best=False)
    assert names(tmp_path) == ["latest", "step-00000005"]
