"""What twelve runs come to, as hashes: the same before and after a change that must not change any bit.

    python -m tests.bits FOLDER [NAME ...]

trains each run below FOLDER with the command line (fixed seeds, one thread) and writes FOLDER/hashes.json: of every
run the SHA-256 of its exported weights and of its last checkpoint, tensor by tensor, and of what its records say,
without times, names and paths. Hashes belong to a machine and to the versions of its libraries; compare two that were
made on the same one.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

INLINE = ("engine=inline", "model=mlp")
RUNS: dict[str, Sequence[Sequence[str]]] = {
    "erm_inline": [[*INLINE, "objective=erm", "harmonize.rule=mean", "model=lenet"]],
    "hutchinson_ghpp_ray": [["engine=ray", "harmonize.rule=ghpp", "alignment.estimator=hutchinson"]],
    "hgp_gh": [[*INLINE, "alignment.penalty=hgp", "harmonize.rule=gh", "alignment.anneal.steps=8",
                "alignment.anneal.weight_after=3"]],
    "fishr_upgrad": [[*INLINE, "alignment.penalty=fishr", "harmonize.rule=upgrad", "optimizer.schedule=cosine"]],
    "dann_nash": [[*INLINE, "alignment.penalty=dann_domain", "harmonize.rule=nash"]],
    "flat_dualproj": [[*INLINE, "harmonize.rule=flat_dualproj", "harmonize.flatness=0.3"]],
    "resnet_mean_batch_norm": [["engine=inline", "model=resnet18", "batch_norm=mean", "batch_size=8", "augment=light",
                                "steps=6", "eval_every=3", "harmonize.rule=mean"]],
    "difc_margins": [[*INLINE, "loss=difc", "loss_options.confusion_from=0.0", "loss_options.reweight_from=0.6",
                      "sampler=class_balanced", "harmonize.rule=pcgrad"]],
    "mixup": [[*INLINE, "objective=mixup", "harmonize.rule=mgda"]],
    "resume_ray": [["engine=ray", "steps=10", "model=mlp", "optimizer.name=adamw"],
                   ["resume=out/resume_ray", "steps=20"]],
    "replicas": [["engine=ray", "model=mlp", "cluster.replicas=2", "cluster.cpus_per_worker=0.25", "steps=8",
                  "sources=mnist,fonts"]],
    "collective": [["engine=ray", "model=mlp", "cluster.transport=collective", "harmonize.rule=cagrad"]],
    "scope_all": [[*INLINE, "alignment.scope=all", "alignment.estimator=hutchinson", "harmonize.rule=dualproj",
                   "batch_size=16", "steps=6"]],
}  # fmt: skip
COMMON = (
    "steps=20",
    "eval_every=5",
    "checkpoint.every=5",
    "batch_size=32",
    "output=out",
    "tracking.mode=off",
    "seed=3",
)
SPACE = """\
config: {steps: 12, eval_every: 4, batch_size: 16, model: mlp, trial.engine: inline, trial.concurrent: 1}
space: {alignment.alpha: {loguniform: [1e-3, 10]}, harmonize.lam: {uniform: [0, 1]}}
samples: 4
"""
"""A sweep of four trials."""

DROPPED = {"seconds", "sent_bytes", "time", "wall_s", "elapsed_s", "step_ms", "name", "output", "run", "tracking",
           "threads", "seq", "checkpoint", "versions", "session_s"}  # fmt: skip
"""What depends on the machine, the clock, or where a run lies."""


def main() -> None:
    """Makes the runs and writes the hashes."""
    folder, chosen = Path(sys.argv[1]).resolve(), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    hashes = {}
    for name, commands in RUNS.items():
        if not chosen or name in chosen:
            for number, command in enumerate(commands):
                given = [] if number else [*COMMON, f"name={name}"]
                settings = dict(setting.split("=", 1) for setting in [*given, *command])
                call(folder, "train", *(f"{key}={value}" for key, value in settings.items()))
            hashes[name] = hashes_of(folder / "out" / name)
    if not chosen or "sweep" in chosen:
        (folder / "space.yaml").write_text(SPACE, encoding="utf-8")
        call(folder, "tune", "space.yaml", "name=sweep", "output=out", "tracking.mode=off")
        for trial in sorted((folder / "out" / "sweep" / "trials").glob("*/")):
            hashes[f"sweep/{trial.name}"] = hashes_of(trial)
    (folder / "hashes.json").write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")


def call(folder: Path, *arguments: str) -> None:
    """The command line, in a process of its own; what it prints is kept."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": os.getcwd()}
    with (folder / "printed.txt").open("a", encoding="utf-8") as printed:
        subprocess.run(
            [sys.executable, "-m", "difc_ray", *arguments],
            cwd=folder, env=environment, stdout=printed, stderr=printed, check=True,
        )  # fmt: skip


def hashes_of(run: Path) -> dict[str, str]:
    """Of one run folder: weights, state, records and summary."""
    newest = max((run / "checkpoints").glob("step-*"))
    hashes = {"state": tensors(newest / "state.safetensors"), "weights": tensors(newest / "weights.safetensors")}
    if (run / "export" / "weights.safetensors").exists():
        hashes["export"] = tensors(run / "export" / "weights.safetensors")
    hashes["metrics"] = digest(list(records(run / "metrics.jsonl")))
    hashes["summary"] = digest(plain(json.loads((run / "summary.json").read_text(encoding="utf-8"))))
    return hashes


def tensors(path: Path) -> str:
    """Names, types, shapes and bytes of a file of tensors."""
    found = hashlib.sha256()
    for name, array in sorted(load_file(path).items()):
        found.update(f"{name} {array.dtype} {array.shape} ".encode() + array.tobytes())
    return found.hexdigest()[:16]


def records(path: Path) -> Iterator[Any]:
    """Steps and evaluations, without what a later `rewound` record takes back."""
    kept: list[Mapping[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if entry["kind"] == "rewound":
            kept = [e for e in kept if e["step"] <= (entry["step"] if e["kind"] == "step" else entry["evaluated"])]
        elif entry["kind"] in ("step", "evaluation"):
            kept.append(entry)
    return (plain(entry) for entry in kept)


def plain(value: Any) -> Any:
    """Without times, names and paths."""
    if isinstance(value, Mapping):
        return {
            name: plain(each) for name, each in value.items() if name not in DROPPED and not name.startswith("time/")
        }
    return [plain(each) for each in value] if isinstance(value, list) else value


def digest(value: Any) -> str:
    """Of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
