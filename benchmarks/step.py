"""What a step costs besides the workers' own compute, and what the penalty costs: ratios from one run.

    python benchmarks/step.py            # LeNet, batch 64, K = 3, then 11 M parameters, K = 4
    python benchmarks/step.py --quick    # fewer steps

Every figure is a median over steps after a warm-up. "overhead" is everything of a step that is not the slowest worker's
compute: exchange, Gram matrix, rule, optimizer, waiting on Ray.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

import psutil
import ray
import torch

from difc_ray.config import Config, load_config, resolve
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import StepRecord


def configuration(*, rows: int, engine: str, sources: str, model: str, batch: int) -> Config:
    """One row per domain is plain training (`mean`); two are the default alignment with `ghpp`."""
    changes = [
        f"engine={engine}",
        f"sources={sources}",
        "target=",
        f"model={model}",
        f"batch_size={batch}",
        "steps=100000",
    ]
    if model == "wide_mlp":
        changes.append("plugins=wide_mlp")
    if rows == 1:
        changes += ["alignment.alpha=0", "alignment.beta=0", "harmonize.rule=mean"]
    return resolve(load_config(None, changes))


def medians(records: list[StepRecord]) -> dict[str, float]:
    """Median milliseconds by part."""
    parts = ("step", "compute", "transport", "coordinator")
    return {part: 1e3 * statistics.median(record.seconds[part] for record in records) for part in parts}


def measure_ray(config: Config, warm_up: int, steps: int) -> tuple[dict[str, float], RayEngine]:
    """Medians of a Ray run; the engine is left running for further questions."""
    engine = RayEngine(config, "benchmark", lambda: False, lambda text: print("note:", text))
    engine.connect()
    engine.start(prepare(config, None).state)
    engine.advance(warm_up)
    return medians(engine.advance(steps)), engine


def measure_inline(config: Config, warm_up: int, steps: int) -> dict[str, float]:
    """Medians of the same steps in one process."""
    engine = InlineEngine(config, "benchmark", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    engine.advance(warm_up)
    return medians(engine.advance(steps))


def coordinator_process() -> psutil.Process:
    """The coordinator's process among our own."""
    for child in psutil.Process().children(recursive=True):
        if "Coordinator" in " ".join(child.cmdline()[:2]) or "Coordinator" in child.name():
            return child
    raise RuntimeError("no coordinator process found")


def anonymous_bytes(process: psutil.Process) -> int:
    """Memory that is the process's own: not mapped files, not the object store."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def small(steps: int) -> None:
    """LeNet, batch 64, three domains."""
    print("LeNet, batch 64, K = 3 (ms per step)")
    print(f"{'engine':<8} {'rows':>4} {'step':>8} {'compute':>8} {'transport':>10} {'coordinator':>12} {'overhead':>9}")
    compute = {}
    for rows in (1, 2):
        kinds = {"sources": "mnist,optdigits,fonts", "model": "lenet", "batch": 64}
        ms = measure_inline(configuration(rows=rows, engine="inline", **kinds), 5, steps)
        compute[rows] = ms["compute"]
        show("inline", rows, ms)
        ms, engine = measure_ray(configuration(rows=rows, engine="ray", **kinds), 10, steps)
        engine.close()
        show("ray", rows, ms)
    ratio = compute[2] / compute[1]
    print(f"exact head penalty, two rows: {ratio:.2f} × the plain cross-entropy step (workers' compute, inline)")


def show(engine: str, rows: int, ms: dict[str, float]) -> None:
    """One line of a table."""
    overhead = ms["step"] - ms["compute"]
    print(f"{engine:<8} {rows:>4} {ms['step']:>8.1f} {ms['compute']:>8.1f} {ms['transport']:>10.1f} "
          f"{ms['coordinator']:>12.1f} {overhead:>9.1f}", flush=True)  # fmt: skip


def big(steps: int) -> None:
    """11 M parameters, four domains: exchange and memory."""
    print("\n11 M parameters, K = 4 (ms per step)")
    for rows in (1, 2):
        domains = "mnist,optdigits,fonts,mnistm"
        config = configuration(rows=rows, engine="ray", sources=domains, model="wide_mlp", batch=8)
        engine = RayEngine(config, "benchmark", lambda: False, lambda text: print("note:", text))
        engine.connect()
        start = prepare(config, None)
        size = start.layout.size
        before_state = None
        engine.start(start.state)
        process = coordinator_process()
        before_state = anonymous_bytes(process) - 4 * size  # theta is there already
        engine.advance(3)
        ms = medians(engine.advance(steps))
        grown = anonymous_bytes(process) - before_state
        stored = store_bytes()
        show("ray", rows, ms)
        k = len(config.sources)
        print(f"  P = {size:,}; coordinator grew by {grown / 2**20:.0f} MB "
              f"(allowed {(8 * 4 * size + 100e6) / 2**20:.0f}); objects in the store {stored / 2**20:.0f} MB "
              f"(allowed {(2 * k + 3) * 4 * size / 2**20:.0f})")  # fmt: skip
        engine.close()


def store_bytes() -> int:
    """Bytes of live objects in this node's store."""
    total = ray.cluster_resources().get("object_store_memory", 0)
    return int(total - ray.available_resources().get("object_store_memory", total))


def main() -> None:
    """Runs both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps = 20 if parser.parse_args().quick else 100
    began = time.monotonic()
    small(steps)
    big(max(5, steps // 10))
    versions = f"torch {torch.__version__}, ray {ray.__version__}, python {sys.version.split()[0]}"
    print(f"\n{time.monotonic() - began:.0f} s in all on {len(os.sched_getaffinity(0))} cores, {versions}")


if __name__ == "__main__":
    main()
