"""Small checkpoints for the tests, their comparison, and processes that write them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from difc_ray.runs.checkpoint import Snapshot
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[1]
FILES = ["weights.safetensors", "state.safetensors", "state.json", "config.yaml", "manifest.json"]


def snapshot_of(step: int, size: int = 6) -> Snapshot:
    """A small snapshot whose every value depends on the step; weights are views of one flat vector, as in training."""
    theta = torch.arange(size + 3, dtype=torch.float32) + step
    return Snapshot(
        named_weights={
            "f.weight": theta[:size].view(2, -1),
            "f.bias": theta[size:],
            "buffer.count": torch.tensor(step),
        },
        tensors={
            "optimizer.exp_avg": theta * 0.1,
            "optimizer.step": torch.tensor(float(step)),
            "harmonizer.gram": torch.from_numpy(np.full((2, 2), step / 3.0)),
        },
        meta={"step": step, "skipped": [1, 2], "best": None, "identity": {"data": "äβ"}, "seconds": step / 3.0},
        config_yaml=f"steps: {step}\n# λ = ½\n",
    )


def assert_same(found: Snapshot, expected: Snapshot) -> None:
    """Equal bit for bit."""
    for mine, theirs in ((found.named_weights, expected.named_weights), (found.tensors, expected.tensors)):
        assert set(mine) == set(theirs)
        for name, tensor in theirs.items():
            assert mine[name].dtype == tensor.dtype
            assert mine[name].shape == tensor.shape
            assert raw(mine[name]) == raw(tensor), name
    assert found.meta == expected.meta
    assert found.config_yaml == expected.config_yaml


def raw(tensor: torch.Tensor) -> bytes:
    """The tensor's memory."""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir())


def sha256sum(path: Path) -> str:
    """The digest as coreutils computes it."""
    done = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def dead_pid() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
