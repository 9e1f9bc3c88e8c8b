"""What faults cost: seconds, steps and bits, each against its goal; the exit code is 1 if one is missed.

    python benchmarks/faults.py            # some four minutes
    python benchmarks/faults.py --quick    # 5 random kills instead of 20

Every fault is a real one: SIGKILL to a process, the end of a node's Ray, a port where no server is. *Bits equal*
compares the training state, or the last checkpoint's files, with an undisturbed run in one process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from difc_ray.config import Config, load_config, resolve
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.errors import ClusterError
from difc_ray.runs.configuration import requested_config
from difc_ray.runs.setup import prepare
from difc_ray.runs.train import train
from difc_ray.step.coordinator import StepRecord, TrainState
from difc_ray.tracking import entries

RUN = (
    "sources=mnist,optdigits,fonts", "target=", "model=mlp", "batch_size=16", "steps=400", "eval_every=400",
    "tracking.mode=off", "cluster.cpus_per_worker=0.5", "cluster.gpus_per_worker=0",
)  # fmt: skip
MARK = "DIFC_RAY_BENCHMARK"
"""An environment variable that every process inherits which a driver starts."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    fault: str
    goal: str
    measured: str
    met: bool


def settings(*changes: str) -> list[str]:
    """Those of the small run, with changes."""
    merged = dict(each.split("=", 1) for each in (*RUN, *changes))
    return [f"{key}={value}" for key, value in merged.items()]


def configuration(*changes: str) -> Config:
    """The small run with changes."""
    return resolve(load_config(None, settings(*changes)))


def digest(state: TrainState) -> str:
    """sha256 over parameters, buffers, optimizer and the rule's memory."""
    found = hashlib.sha256(state.theta_P.numpy().tobytes())
    for group in (state.buffers, state.optimizer):
        for name in sorted(group):
            found.update(name.encode() + group[name].numpy().tobytes())
    for name in sorted(state.harmonizer):
        found.update(name.encode() + state.harmonizer[name].tobytes())
    return found.hexdigest()


def undisturbed(config: Config, steps: int) -> str:
    """Digest after so many steps in one process."""
    engine = InlineEngine(config, "reference", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    engine.advance(steps)
    return digest(engine.snapshot())


@contextmanager
def running(config: Config) -> Iterator[RayEngine]:
    """An engine that has started, and has taken its first steps."""
    engine = RayEngine(config, "benchmark", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    try:
        yield engine
    finally:
        engine.close()


def disturbed(engine: RayEngine, steps: int, disturb: Callable[[], None]) -> list[StepRecord]:
    """So many steps, while a thread disturbs them."""
    thread = threading.Thread(target=disturb)
    thread.start()
    records: list[StepRecord] = []
    while len(records) < steps or thread.is_alive():
        records += engine.advance(5)
    thread.join()
    return records


def workers() -> list[psutil.Process]:
    """The processes of the domain workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()[:1]).startswith("ray::DomainWorker"):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.pid)


def verdict(engine: RayEngine, config: Config, records: list[StepRecord]) -> tuple[int, float, bool]:
    """Steps out of place, seconds of the longest step (it contains the recovery), and whether the bits are equal."""
    lost = sum(record.step != number for number, record in enumerate(records))
    same = digest(engine.snapshot()) == undisturbed(config, len(records))
    return lost, max(record.seconds["step"] for record in records), same


def one_kill() -> Figure:
    """A worker gets SIGKILL in the middle of a run."""
    config = configuration()
    with running(config) as engine:
        engine.advance(5)

        def kill() -> None:
            time.sleep(0.3)
            workers()[0].kill()

        engine.begin(config, "one kill", prepare(config, None).state)
        lost, seconds, same = verdict(engine, config, disturbed(engine, 60, kill))
        fired = sum(engine.restarts.values()) == 1
    return Figure(
        "worker SIGKILL", "0 steps lost, <= 10 s, bits equal", f"{lost} lost, {seconds:.1f} s, {words(same)}",
        fired and lost == 0 and seconds <= 10 and same,
    )  # fmt: skip


def many_kills(count: int) -> Figure:
    """Random workers get SIGKILL at random times, each once the one before was replaced."""
    config = configuration(f"cluster.max_worker_restarts={count}")
    draw = random.Random(0)
    with running(config) as engine:

        def kill() -> None:
            for number in range(count):
                while sum(engine.restarts.values()) < number or len(workers()) < len(config.sources):
                    time.sleep(0.05)
                time.sleep(draw.uniform(0.0, 0.5))
                draw.choice(workers()).kill()

        records = disturbed(engine, 60, kill)
        records += engine.advance(5)
        lost, seconds, same = verdict(engine, config, records)
        fired = sum(engine.restarts.values())
    return Figure(
        f"{count} random kills in one run", "bits equal",
        f"{fired} restarts, {lost} steps lost, at most {seconds:.1f} s, {words(same)}", fired >= count and same,
    )  # fmt: skip


def infeasible() -> Figure:
    """More GPUs than there are."""
    config = configuration("cluster.gpus_per_worker=8")
    engine = RayEngine(config, "benchmark", lambda: False, lambda text: None)
    began, code = time.monotonic(), 0
    try:
        engine.connect()
        engine.start(prepare(config, None).state)
    except ClusterError as error:
        code = error.exit_code
    seconds = time.monotonic() - began
    engine.close()
    return Figure("infeasible request", "exit 4, <= 10 s", f"exit {code}, {seconds:.1f} s", code == 4 and seconds <= 10)


def lost_node() -> Figure:
    """The Ray of a node ends; another node has room. Health checks are those of clusters/Dockerfile."""
    from ray.cluster_utils import Cluster

    checks = {"initial_delay_ms": 5000, "period_ms": 1000, "timeout_ms": 2000, "failure_threshold": 3}
    os.environ |= {f"RAY_health_check_{name}": str(value) for name, value in checks.items()}
    store = 80 * 2**20
    head = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": store}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        spots = [cluster.add_node(num_cpus=1, resources={"spot": 1}, object_store_memory=store) for _ in range(2)]
        config = configuration(
            f"cluster.address={cluster.address}", "cluster.cpus_per_worker=1", "cluster.bundles.fonts.resources.spot=1"
        )
        with running(config) as engine:
            engine.advance(5)
            lives = next(pair.split("/")[1] for pair in engine.facts["placement"].split(", ") if "fonts@" in pair)
            victim = next(spot for spot in spots if spot.node_id.startswith(lives))
            engine.begin(config, "lost node", prepare(config, None).state)
            records = engine.advance(20)
            cluster.remove_node(victim, allow_graceful=False)
            while len(records) < 60:
                records += engine.advance(5)
            lost, seconds, same = verdict(engine, config, records)
            fired = engine.restarts["fonts"] >= 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    return Figure(
        "node removed", "<= 20 s, bits equal", f"{lost} steps lost, {seconds:.1f} s, {words(same)}",
        fired and seconds <= 20 and same,
    )  # fmt: skip


def killed_driver(folder: Path) -> Figure:
    """The driver gets SIGKILL, and `resume=auto` goes on."""
    changes = ("checkpoint.every=20", "steps=300", "eval_every=300", f"output={folder / 'killed'}", "name=killed")
    checkpoints = folder / "killed" / "killed" / "checkpoints"
    driver = driver_when((checkpoints / "step-00000020" / "manifest.json").exists, folder, *changes)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    began = time.monotonic()
    while family(folder) and time.monotonic() - began < 30:
        time.sleep(0.02)
    gone = time.monotonic() - began
    before = max(int(path.name[5:]) for path in checkpoints.glob("step-*"))
    resumed = resolve(requested_config(None, ["resume=auto", f"output={folder / 'killed'}", "engine=inline"]))
    straight = configuration(*changes, "engine=inline", f"output={folder / 'straight'}")
    ends = [train(config).run_dir / "checkpoints" / "step-00000300" for config in (resumed, straight)]
    same = len({(end / "state.safetensors").read_bytes() + (end / "weights.safetensors").read_bytes()
                for end in ends}) == 1  # fmt: skip
    return Figure(
        "driver SIGKILL", "children gone <= 5 s, resume bits equal",
        f"gone after {gone:.2f} s, resumed from step {before}, {words(same)}",
        gone <= 5 and 20 <= before < 300 and same,
    )  # fmt: skip


def told_driver(folder: Path) -> Figure:
    """The driver gets SIGTERM, and one of its workers does not answer: the step in hand cannot end."""
    output = folder / "told"
    changes = ("checkpoint.every=100000", "steps=100000", "eval_every=100000", f"output={output}", "name=told")
    driver = driver_when(lambda: any(entries(output / "told" / "metrics.jsonl", "step")), folder, *changes)
    time.sleep(1)  # some steps
    worker = next(each for each in family(folder) if "".join(each.cmdline()[:1]).startswith("ray::DomainWorker"))
    worker.suspend()
    time.sleep(1)  # the others have answered, and all wait for it
    sent = time.time()
    driver.send_signal(signal.SIGTERM)
    code = driver.wait(60)
    ended = time.time() - sent
    last = max((output / "told" / "checkpoints").glob("step-*"))
    heard = (last / "manifest.json").stat().st_mtime - sent
    while family(folder) and time.time() - sent < 60:
        time.sleep(0.02)
    gone = time.time() - sent
    return Figure(
        "SIGTERM, a worker is stopped", "checkpoint <= 2 s, exit 143, gone <= 20 s",
        f"checkpoint after {heard:.2f} s, exit {code} after {ended:.1f} s, gone after {gone:.1f} s",
        0 <= heard <= 2 and code == 143 and gone <= 20,
    )  # fmt: skip


def driver_when(begun: Callable[[], bool], folder: Path, *changes: str) -> subprocess.Popen[bytes]:
    """A driver with a Ray of its own, as soon as its run is where it should be."""
    driver = subprocess.Popen(
        [sys.executable, "-m", "difc_ray", "train", *settings(*changes, "engine=ray")],
        env={**os.environ, MARK: str(folder)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not begun() and time.monotonic() < deadline:
        time.sleep(0.02)
    return driver


def family(folder: Path) -> list[psutil.Process]:
    """What a driver has started, and it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def no_mlflow(folder: Path, pairs: int) -> Figure:
    """Nobody listens where the records go; runs with and without tracking in turn, the fastest of each counts."""
    os.environ["DIFC_RAY_TRACKING_DRAIN_S"] = "1"  # nobody comes: no need to wait for him at the end
    steps = 200
    common = ("engine=inline", "model=lenet", "batch_size=64", f"steps={steps}", f"eval_every={steps}")
    took: dict[str, list[float]] = {"off": [], "down": []}
    kept = []
    for pair in range(pairs):
        for name in took:
            tracking = ("tracking.mode=on", "tracking.uri=http://127.0.0.1:9") if name == "down" else ()
            result = train(configuration(*common, *tracking, f"output={folder}", f"name={name}-{pair}"))
            took[name].append(result.summary["wall_s"])
            if name == "down":
                journal = (result.run_dir / "metrics.jsonl").read_text("utf-8").splitlines()
                kept.append(len({step for step in map(step_of, journal) if step is not None}))
    slower = min(took["down"]) / min(took["off"]) - 1
    lost = max(steps - each for each in kept)
    return Figure(
        "MLflow down for the whole run", "step time +<= 5 %, 0 records lost",
        f"{slower:+.1%}, {lost} of {steps} steps without a record", slower <= 0.05 and lost == 0,
    )  # fmt: skip


def step_of(line: str) -> int | None:
    """The step whose metrics a line of the journal holds."""
    entry: dict[str, Any] = json.loads(line)
    return entry.get("step") if entry["kind"] == "step" else None


def words(same: bool) -> str:
    """Of a comparison of bits."""
    return "bits equal" if same else "BITS DIFFER"


def main() -> int:
    """Runs all; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="5 random kills, one pair of runs for MLflow")
    quick = parser.parse_args().quick
    if "RAY_AUTH_TOKEN" not in os.environ:  # Ray reads it when it is imported
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **token})
    os.environ.pop("RAY_ADDRESS", None)
    began, figures = time.monotonic(), []

    def show(figure: Figure) -> None:
        figures.append(figure)
        print(
            f"{figure.fault:<31}{figure.goal:<42}{figure.measured:<62}{'met' if figure.met else 'MISSED'}", flush=True
        )

    print(f"{'fault':<31}{'goal':<42}{'measured':<62}verdict")
    with tempfile.TemporaryDirectory(prefix="difc", dir="/tmp") as name:
        folder = Path(name)
        options = {"address": "local", "include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
        ray.init(num_cpus=3, object_store_memory=200 * 2**20, _temp_dir=str(folder), **options)
        show(one_kill())
        show(many_kills(5 if quick else 20))
        show(infeasible())
        ray.shutdown()
        show(lost_node())
        show(killed_driver(folder))
        show(told_driver(folder))
        show(no_mlflow(folder, 1 if quick else 2))
    print(f"\n{time.monotonic() - began:.0f} s in all on {psutil.cpu_count()} cores, ray {ray.__version__}")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
