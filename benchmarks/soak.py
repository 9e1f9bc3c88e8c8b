"""Whether the memory of a long run stays flat: coordinator, domain workers and driver of one whole run on Ray.

    python benchmarks/soak.py                  # 20,000 steps of the `mlp`, K = 3, object store: about a quarter hour
    python benchmarks/soak.py --steps 2000

The run is what `difc-ray train` makes, evaluations and checkpoints included. Memory is read from the kernel
(`smaps_rollup`) every hundredth of the run. *rss* is what is mapped and present, *pss* the same with shared pages
divided among those that share them, *own* what no file and no shared memory backs. Growth is from the median of the
second tenth of the run, the first being warm-up, to that of the last; the exit code is 1 if any of the three has grown
by more than the goal in any process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import ray
import torch

from difc_ray.config import Config, load_config, resolve
from difc_ray.runs.train import Silent, train
from difc_ray.step.coordinator import StepRecord

GOAL = 0.05
"""Growth that is allowed."""

SAMPLES = 100
KINDS = {"rss": "Rss", "pss": "Pss", "own": "Anonymous"}


def configuration(folder: Path, steps: int) -> Config:
    """The run: small batches, as what is looked for is kept per step and not per example."""
    return resolve(
        load_config(
            None,
            [
                "sources=mnist,optdigits,fonts", "target=mnistm", "model=mlp", "model_options.hidden=[64]",
                "batch_size=8", f"steps={steps}", f"eval_every={steps // 20}", f"checkpoint.every={steps // 20}",
                "tracking.mode=off", "name=soak", f"output={folder}",
            ],
        )
    )  # fmt: skip


def memory(pid: int) -> dict[str, float]:
    """Memory of a process by kind, in MiB."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, amount = line.partition(":")
        if amount.endswith("kB"):
            found[name] = int(amount.split()[0]) / 1024
    return {kind: found[name] for kind, name in KINDS.items()}


def processes(log: Path) -> dict[str, int]:
    """Who is which process, as the run's log tells; and the driver, which is this one."""
    (told,) = [line for line in log.read_text().splitlines() if "processes: " in line]
    words = [each.split() for each in told.partition("processes: ")[2].split(", ")]
    return {words[0]: int(words[1]) for words in words} | {"driver": psutil.Process().pid}


class Sampler(Silent):
    """A display that looks at the memory of everybody now and then.

    Args:
        log: the run's log.
        every: steps between two looks.
    """

    def __init__(self, log: Path, every: int) -> None:
        self.log, self.every = log, every
        self.steps_at: list[int] = []
        self.samples: dict[str, list[dict[str, float]]] = {}
        self.pids: dict[str, int] = {}
        self.began = 0.0

    def steps(self, records: Sequence[StepRecord]) -> None:
        """A look, if it is time."""
        if not records:
            return
        if not self.pids:
            self.pids, self.began = processes(self.log), time.monotonic()
            self.samples = {name: [] for name in self.pids}
        step = records[-1].step + 1
        if step < (self.steps_at[-1] if self.steps_at else 0) + self.every:
            return
        self.steps_at.append(step)
        for name, pid in self.pids.items():
            self.samples[name].append(memory(pid))
        if len(self.steps_at) % 10 == 0:
            told = ", ".join(f"{name} {self.samples[name][-1]['pss']:.0f}" for name in self.pids)
            print(f"step {step}, {time.monotonic() - self.began:.0f} s: pss in MiB: {told}", flush=True)

    def notice(self, message: str) -> None:
        """Shown: a restart would make the figures those of another process."""
        print(f"note: {message}", flush=True)

    def medians(self, name: str, kind: str, steps: int) -> tuple[float, float]:
        """MiB after the warm-up, and at the end."""
        values = [sample[kind] for sample in self.samples[name]]
        after = [v for v, at in zip(values, self.steps_at, strict=True) if steps / 10 <= at <= steps / 5]
        late = [v for v, at in zip(values, self.steps_at, strict=True) if at >= 9 * steps / 10]
        return statistics.median(after), statistics.median(late)


def table(sampler: Sampler, steps: int) -> list[str]:
    """Prints what everybody's memory came to; names those that have grown by more than the goal."""
    print(f"{'MiB':<12}" + "".join(f"{kind:^26}" for kind in KINDS) + "  own, bytes per step")
    beyond = []
    for name in sampler.samples:
        line, grown = f"{name:<12}", 0.0
        for kind in KINDS:
            after, late = sampler.medians(name, kind, steps)
            grown = late - after
            line += f"{after:>8.1f} -> {late:>6.1f} {grown / after:>+6.1%} "
            if grown / after > GOAL:
                beyond.append(f"{name}'s {kind}")
        print(f"{line} {grown * 2**20 / (0.8 * steps):>+8.0f}")
    return beyond


def restarts(summary: Mapping[str, object]) -> int:
    """Workers that were replaced."""
    found = summary["restarts"]
    assert isinstance(found, dict)
    return sum(found.values())


def main() -> None:
    """Runs, samples, prints a table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="steps of the run, at least 100")
    steps = parser.parse_args().steps
    if steps < SAMPLES:
        parser.error(f"--steps must be at least {SAMPLES}, got {steps}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        sampler = Sampler(Path(folder) / "soak" / "run.log", steps // SAMPLES)
        result = train(configuration(Path(folder), steps), sampler)
    ms = result.summary["step_ms"]["step"]
    print(f"{steps} steps of `mlp`, K = 3, object store: {time.monotonic() - began:.0f} s in all, {ms:.1f} ms per step")
    beyond = table(sampler, steps)
    if restarts(result.summary):
        beyond.append("restarts")
    print(f"goal: the memory of every process grows by at most {GOAL:.0%}: "
          + (f"MISSED ({', '.join(beyond)})" if beyond else "met"))  # fmt: skip
    print(f"torch {torch.__version__}, ray {ray.__version__}, python {sys.version.split()[0]}")
    sys.exit(1 if beyond else 0)


if __name__ == "__main__":
    main()
