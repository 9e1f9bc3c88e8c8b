"""What a sweep costs besides training, and what ASHA saves; ratios from one run.

    python benchmarks/sweep.py            # smoke space, start of Ray trials, tracker
    python benchmarks/sweep.py --asha     # also: the demo space in full and with ASHA (half an hour)

*Training seconds* are the wall times of the trials' own steps and evaluations, as their checkpoints record them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace

from difc_ray.sweeps.find import find_space
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.outcome import SweepResult
from difc_ray.sweeps.space import Space, read_space
from difc_ray.sweeps.sweep import run_sweep
from difc_ray.sweeps.trials import base_config, check_sweep

CPUS = 2


class Clock:
    """A display that notes when the sweep went on to something else."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}

    def phase(self, text: str) -> None:
        """Notes its time."""
        self.phases[text] = time.time()

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """Nothing."""

    def notice(self, message: str) -> None:
        """Shown: a figure with an incident in it is no figure."""
        print(f"note: {message}")


def sweep(space: Space, folder: str, *settings: str) -> tuple[SweepResult, Clock, float]:
    """Runs a space; its result, its clock, and the wall time in seconds."""
    base = base_config(space, None, [f"output={folder}", *settings])
    clock = Clock()
    started = time.perf_counter()
    result = run_sweep(space, base, check_sweep(space, base, []), clock, resume=False, register=None)
    return result, clock, time.perf_counter() - started


def training_seconds(result: SweepResult) -> float:
    """Seconds of steps, evaluations and checkpoints, over all trials."""
    folder = SweepFolder(result.folder)
    total = 0.0
    for record in result.records:
        summary = folder.summary(record.point.number)
        assert summary is not None, record
        ms = summary["step_ms"]
        total += 1e-3 * record.step * (ms["step"] + ms["evaluation"] + ms["checkpoint"])
    return total


def smoke(folder: str) -> None:
    """The smoke space: wall time against training time, and what the tracker costs."""
    space = replace(read_space(find_space("smoke")), scheduler="none", options={})
    result, _, wall = sweep(space, folder)
    trained = training_seconds(result)
    bound = 1.25 * trained / CPUS + 20
    print(f"smoke space, {len(result.records)} inline trials, no scheduler")
    print(f"  wall {wall:.1f} s; training {trained:.1f} s in all, on {CPUS} CPUs {trained / CPUS:.1f} s")
    print(
        f"  goal: wall <= 1.25 x {trained / CPUS:.1f} s + 20 s = {bound:.1f} s: {'met' if wall <= bound else 'missed'}"
    )
    silent, _, without = sweep(space, folder, "tracking.mode=off")
    took = [sum(r.seconds for r in each.records) for each in (result, silent)]
    print(f"  without tracking: wall {without:.1f} s; the trials took {took[0]:.1f} s with tracking, {took[1]:.1f} s "
          f"without: {took[0] / took[1] - 1:+.1%} (goal: at most +5%)")  # fmt: skip


def ray_start(folder: str) -> None:
    """Request to first step of a trial with the Ray engine, on new actors and on reused ones."""
    space = replace(read_space(find_space("smoke")), scheduler="none", options={}, samples=3)
    settings = ("trial.engine=ray", "trial.concurrent=1", "steps=4", "eval_every=4", "model=mlp")
    result, clock, _ = sweep(space, folder, *settings)
    firsts = []
    for record in result.records:
        journal = result.folder / "trials" / record.point.name / "metrics.jsonl"
        entries = [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
        firsts.append(next(entry["time"] for entry in entries if entry["kind"] == "step") / 1000)
    print("trials of the Ray engine, request -> first step")
    print(f"  new actors {firsts[0] - clock.phases['starting trials']:.1f} s (goal 12); on reused actors, the trial "
          "before included: " + ", ".join(f"{b - a:.1f} s" for a, b in itertools.pairwise(firsts)))  # fmt: skip


def asha(folder: str) -> None:
    """The demo space in full, and with ASHA: best validation and steps."""
    space = read_space(find_space("lambda_alpha_beta"))
    settings = ("tracking.mode=off",)
    found = {}
    for name, each in (("full", replace(space, scheduler="none", options={})), ("asha", space)):
        result, _, wall = sweep(each, folder, *settings, f"name={name}")
        steps = sum(record.step for record in result.records)
        best = max(candidate.validation for candidate in result.candidates.values())
        found[name] = (best, steps, wall)
        print(f"  {name:<5} best validation {best:.2%}, {steps} steps, {wall:.0f} s", flush=True)
    difference = 100 * (found["full"][0] - found["asha"][0])
    share = found["asha"][1] / found["full"][1]
    print(f"  ASHA is {difference:.2f} points below (goal: 1) at {share:.0%} of the steps (goal: 50 %)")


def main() -> None:
    """Runs all parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asha", action="store_true", help="also the demo space in full and with ASHA")
    with_asha = parser.parse_args().asha
    with tempfile.TemporaryDirectory() as folder:
        smoke(folder)
        ray_start(folder)
        if with_asha:
            print(f"{json.dumps('lambda_alpha_beta')}: 16 settings in full and with ASHA")
            asha(folder)


if __name__ == "__main__":
    main()
