"""The story of docs/tutorials/cluster.md: a job on a cluster started here, a domain worker killed under it, and nothing
to be seen of it in the weights, but in MLflow."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from difc_ray.engines.ray.private import SEVERAL_NODES
from tests.checkpoints import sha256sum
from tests.cli.shell import difc_ray
from tests.faults import end_of, train
from tests.mlflow.servers import MlflowServer
from tests.processes import alive
from tests.ray.heads import Head
from tests.ray.test_loopback import listening, reachable_from_elsewhere
from tests.runs import small_config, write_yaml
from tests.waiting import PATIENCE_S, eventually

pytestmark = [pytest.mark.ray, pytest.mark.mlflow, pytest.mark.slow]

PATIENCE = "DIFC_RAY_TRACKING_DRAIN_S"
"""How long a run waits at its end until MLflow has everything: this machine may be busy."""

STEPS = 480  # some of them are left when the worker is killed, on a busy machine as well
RUN: dict[str, Any] = {
    "sources": ["mnist", "fonts"], "target": "mnistm", "model": "mlp", "model_options": {"hidden": [32]},
    "batch_size": 8, "steps": STEPS, "eval_every": 240, "checkpoint": {"every": 20},
    "cluster": {"cpus_per_worker": 0.5},
}  # fmt: skip
PROCESSES = re.compile(r"processes: coordinator (\d+) on \S+, mnist (\d+) on \S+, fonts (\d+) on \S+")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, MlflowServer]]:
    """A cluster and an MLflow server, which start at the same time."""
    head, server = Head(**{SEVERAL_NODES: "0", PATIENCE: "100"}), MlflowServer(tmp_path_factory.mktemp("mlflow-server"))
    try:
        with ThreadPoolExecutor() as both:
            for each in (both.submit(head.wait), both.submit(server.start)):
                each.result()
        yield head, server
    finally:
        head.end()
        server.stop()


def actors(head: Head) -> set[int]:
    """Coordinators and domain workers of the cluster."""
    found = set()
    for process in head.family():
        try:
            if process.cmdline()[0].startswith(("ray::Coordinator", "ray::DomainWorker")):
                found.add(process.pid)
        except (psutil.Error, IndexError):
            continue
    return found


def used(head: Head) -> dict[str, float]:
    """Amounts that are taken, by resource; bytes of the object store aside, which Ray gives back when it likes."""
    usage = head.ask("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
    return {name: amount for name, (amount, _) in usage.items() if "memory" not in name and amount}


def kill_one(run_dir: Path, job: subprocess.Popen[str]) -> int:
    """Kills the worker of `fonts`, which the run's log names, in the middle of the run: its process."""
    eventually(lambda: (run_dir / "checkpoints" / "step-00000020" / "manifest.json").exists())
    told = PROCESSES.search((run_dir / "run.log").read_text())
    assert told is not None
    pid = int(told[3])
    assert psutil.Process(pid).cmdline()[0].startswith("ray::DomainWorker")
    assert job.poll() is None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not alive(pid))
    return pid


def test_a_worker_killed_under_a_job(servers: tuple[Head, MlflowServer], tmp_path: Path) -> None:
    head, server = servers
    home, run_dir = tmp_path / "home", tmp_path / "runs" / "disturbed"
    home.mkdir()
    write_yaml(home / "run.yaml", RUN)
    before = actors(head), used(head)
    settings = (f"output={tmp_path / 'runs'}", "name=disturbed", f"tracking.uri={server.url}")
    job = head.submit("disturbed", "train", "-c", "run.yaml", *settings, cwd=home)
    try:
        pid = kill_one(run_dir, job)
        said, _ = job.communicate(timeout=PATIENCE_S)
    finally:
        job.kill()
        job.communicate()
    assert job.returncode == 0, said
    notice = re.search(rf"note: domain `fonts`: worker process {pid} died \(.*\) at step (\d+); restart 1/3 took", said)
    assert notice is not None, said
    assert 20 <= int(notice[1]) < STEPS
    assert "restarts      fonts 1" in said

    undisturbed = train(small_config(**RUN, name="undisturbed", engine="inline"), tmp_path).run_dir
    expected, found = end_of(undisturbed), end_of(run_dir)
    assert found == dataclasses.replace(expected, summary={**expected.summary, "name": "disturbed"})
    first, other = (sha256sum(each / "export" / "weights.safetensors") for each in (run_dir, undisturbed))
    assert first == other

    store = MlflowClient(server.url)
    (experiment,) = [each for each in store.search_experiments() if each.name != "Default"]
    (run,) = store.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("disturbed", "FINISHED")
    assert run.data.tags["engine.restarts"] == "fonts 1"
    counted = sorted(store.get_metric_history(run.info.run_id, "engine/restarts"), key=lambda point: point.step)
    counts = [point.value for point in counted]
    assert counts == sorted(counts)
    assert (len(counts), counts[0], counts[-1]) == (STEPS, 0.0, 1.0)

    eventually(lambda: (actors(head), used(head)) == before)


def test_the_head_listens_on_loopback_only_and_is_found_there(
    servers: tuple[Head, MlflowServer], tmp_path: Path
) -> None:
    head, _ = servers
    sockets = listening(head.family())
    assert len(sockets) > 5
    assert reachable_from_elsewhere(sockets) == []
    found = difc_ray("doctor", "--cluster", f"cluster.address={head.address}", cwd=tmp_path)
    assert (found.code, found.err) == (0, "")
    assert "1 node(s), nothing wrong" in found.out


def test_the_server_answers_to_its_own_name_only(servers: tuple[Head, MlflowServer]) -> None:
    _, server = servers
    asked = urllib.request.Request(
        f"{server.url}/api/2.0/mlflow/experiments/get?experiment_id=0", headers={"Host": "elsewhere:5000"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(asked, timeout=10)
    assert refused.value.code == 403
    refused.value.close()
