"""What alignment costs beside plain training: the head's penalty exact and estimated, and the whole network's.

    python benchmarks/alignment.py

Two tables, each from one run in one process in which the methods take turns: full-batch steps of the Colored MNIST
recipe on the 5,000 digits, and steps of LeNet with `alignment.scope=all`. Figures are medians of the worker's compute.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from difc_ray.config import Config, load_config, resolve
from difc_ray.engines.inline import InlineEngine
from difc_ray.runs.setup import prepare
from difc_ray.studies.colored_mnist.methods import METHODS
from difc_ray.studies.colored_mnist.running import Request, planned
from difc_ray.sweeps.trials import trial_config

MNIST = ("erm", "hutchinson_exact", "hutchinson")
PLAIN = {"objective": "erm", "harmonize": {"rule": "mean"}}
WHOLE = {"alignment": {"scope": "all", "estimator": "hutchinson"}, "harmonize": {"rule": "mean"}}
LENET: dict[str, dict[str, Any]] = {
    "erm": PLAIN,
    "head, exact": {"harmonize": {"rule": "mean"}},
    "all, m = 1": WHOLE,
    "all, m = 1, 4 pieces": {**WHOLE, "alignment": {**WHOLE["alignment"], "micro_batches": 4}},
}


def colored_mnist() -> dict[str, Config]:
    """The recipe's configurations."""
    request = Request(
        digits=None, methods=[METHODS[name] for name in MNIST], restarts=1,
        output=Path("nowhere"), settings=[],
    )  # fmt: skip
    plan = planned(request)
    return {
        name: trial_config(plan.base, point, Path("/"), name) for name, point in zip(MNIST, plan.points, strict=True)
    }


def lenet(name: str) -> Config:
    """LeNet on the digits, batch 64."""
    return resolve(load_config(None, base={"name": "b", "model": "lenet", "engine": "inline", "target": None,
                                           "steps": 1000, **LENET[name]}))  # fmt: skip


def measure(configs: dict[str, Config], rounds: int) -> dict[str, float]:
    """Median milliseconds of the workers' compute by method; they take turns."""
    engines = {}
    for name, config in configs.items():
        engines[name] = InlineEngine(config, "benchmark", lambda: False, lambda text: None)
        engines[name].connect()
        engines[name].start(prepare(config, None).state)
        engines[name].advance(1)
    times: dict[str, list[float]] = {name: [] for name in configs}
    for _ in range(rounds):
        for name, engine in engines.items():
            times[name] += [1e3 * record.seconds["compute"] for record in engine.advance(1)]
    for engine in engines.values():
        engine.close()
    return {name: statistics.median(own) for name, own in times.items()}


def memory_of(name: str) -> float:
    """MiB by which a process grows during its first step of LeNet, at the most; in a process of its own."""
    code = (
        "from benchmarks.alignment import *; import psutil, threading, time\n"
        f"engine = InlineEngine(lenet({name!r}), 'b', lambda: False, lambda text: None); engine.connect()\n"
        "engine.start(prepare(engine.config, None).state); own = psutil.Process(); found = [own.memory_info().rss]\n"
        "def look():\n    while found: found.append(max(found[-1], own.memory_info().rss)); time.sleep(0.0005)\n"
        "threading.Thread(target=look, daemon=True).start(); engine.advance(1)\n"
        "print((found[-1] - found[0]) / 2**20)"
    )
    root = Path(__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    return float(answer.stdout.split()[-1])


def verdict(text: str, value: float, goal: float, *, least: bool = False) -> bool:
    """Prints one comparison; whether it was met."""
    met = value >= goal if least else value <= goal
    print(f"  {text}: {value:.2f} × (goal {'>=' if least else '<='} {goal} ×): {'met' if met else 'missed'}")
    return met


def main() -> int:
    """Prints both tables; 1 if a goal was missed."""
    print("Colored MNIST, 5,000 digits, full batch (ms of compute per step)")
    ms = measure(colored_mnist(), 7)
    for name, value in ms.items():
        print(f"  {name:<22} {value:>8.1f}  {value / ms['erm']:>5.2f} ×")
    met = [verdict("exact head penalty against erm", ms["hutchinson_exact"] / ms["erm"], 1.15)]
    ratio = (ms["hutchinson"] - ms["erm"]) / (ms["hutchinson_exact"] - ms["erm"])
    met.append(verdict("cost of the released penalty against the exact one's", ratio, 5.0, least=True))
    print("LeNet, batch 64, K = 3 (ms of compute per step; MiB that a process grows by)")
    ms, mib = measure({name: lenet(name) for name in LENET}, 9), {name: memory_of(name) for name in LENET}
    for name, value in ms.items():
        print(f"  {name:<22} {value:>8.1f}  {value / ms['erm']:>5.2f} ×  {mib[name]:>7.0f}  "
              f"{mib[name] / mib['erm']:>5.2f} ×")  # fmt: skip
    met.append(verdict("scope all, time", ms["all, m = 1"] / ms["erm"], 8.0))
    met.append(verdict("scope all, memory", mib["all, m = 1"] / mib["erm"], 3.0))
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
