"""A run on a cluster that has no room for it yet, and gets some while the run waits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import growing_cluster
from tests.cli.shell import MODULE, difc_ray, environment
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUN = (
    "train", "sources=mnist,fonts", "target=null", "model=mlp", "steps=2", "tracking.mode=off",
    "cluster.cpus_per_worker=1", "cluster.gpus_per_worker=0.5",
)  # fmt: skip


@pytest.fixture
def cluster() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a cluster that is too small, and the process that makes it larger."""
    process = subprocess.Popen(
        [sys.executable, growing_cluster.__file__],
        env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        yield next(line.strip() for line in lines if line.strip().rpartition(":")[2].isdigit()), process
    finally:
        process.communicate(timeout=PATIENCE_S)


def test_a_run_waits_for_nodes_only_if_it_is_told_to(
    cluster: tuple[str, subprocess.Popen[str]], tmp_path: Path
) -> None:
    address, process = cluster
    there = (f"cluster.address={address}",)
    refused = difc_ray(*RUN, *there, cwd=tmp_path)
    assert refused.code == 4
    assert "GPU: wanted 1, available 0" in refused.err
    assert "`cluster.autoscale=true`" in refused.err

    late = difc_ray(*RUN, *there, "cluster.autoscale=true", "cluster.start_timeout_s=3", cwd=tmp_path)
    assert late.code == 4
    assert "the cluster must grant" in late.err

    run = subprocess.Popen(
        [*MODULE, *RUN, *there, "cluster.autoscale=true", "name=grown"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    told = []
    for line in iter(run.stdout.readline, ""):
        told.append(line)
        if "starting domain workers" in line:
            break
    time.sleep(3)
    assert run.poll() is None, told
    assert process.stdin is not None
    process.stdin.write("more\n")
    process.stdin.flush()
    out, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, "".join(told) + out
    assert (tmp_path / "runs" / "grown" / "summary.json").is_file()
