"""What the tests with faults share: their configuration, and what is left of a run on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from safetensors.torch import load_file

from difc_ray.config import Config, resolve
from difc_ray.runs.configuration import requested_config
from difc_ray.runs.train import Result, Silent
from difc_ray.tracking import entries
from tests import runs
from tests.checkpoints import raw
from tests.runs import small_config, write_yaml
from tests.waiting import eventually

FAULTY: dict[str, Any] = {
    "plugins": ["tests.fault_plugin"],
    "dataset": "faulty",
    "sources": ["a", "b", "c"],
    "model": "faulty_mlp",
    "model_options": {"hidden": [512]},  # rows of 142 kB: too long for Ray's messages, so they go through the store
    "objective": "faulty_hutchinson",
    "cluster": {"cpus_per_worker": 0.5},
}

ALONE: dict[str, Any] = {"sources": ["a"], "objective": "erm", "harmonize": {"rule": "mean"}}
"""One domain: two actors, which start faster than four."""


def fault(kind: str, domain: str, step: int, where: str = "batch", **more: Any) -> dict[str, Any]:
    """One entry of the plug-in's list."""
    return {"kind": kind, "domain": domain, "step": step, "where": where, **more}


def faulty_config(folder: Path, *faults: dict[str, Any], **changes: Any) -> Config:
    """The small run on the plug-in's data, with faults that leave their marks in a folder."""
    changes["cluster"] = {**FAULTY["cluster"], **changes.get("cluster", {})}
    return small_config(**{**FAULTY, "dataset_options": {"folder": str(folder), "faults": list(faults)}, **changes})


def without_faults(config: Config) -> Config:
    """The same run undisturbed: the data do not depend on the options."""
    return config.model_copy(update={"dataset_options": {**config.dataset_options, "faults": []}})


def written(config: Config, folder: Path, **changes: Any) -> Path:
    """The configuration as a file, for a run with its output in ``<folder>/runs``."""
    values = {**config.model_dump(mode="json"), "output": str(folder / "runs"), **changes}
    return write_yaml(folder / "config.yaml", values)


class Notices(Silent):
    """A display that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)


def train(config: Config, folder: Path, notices: Notices | None = None) -> Result:
    """The run as the command line makes it, in this process, with its output in ``<folder>/runs``."""
    return runs.train(config.model_copy(update={"output": folder / "runs"}), notices)


def marked_pid(folder: Path, ending: str) -> int:
    """The process that left the mark."""
    (found,) = folder.glob(f"*-{ending}")
    return int(found.read_text())


def our_actors() -> set[int]:
    """Processes of coordinators and domain workers on the session's Ray."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            title = process.cmdline()[:1]
        except psutil.Error:
            continue
        if title and title[0].startswith(("ray::Coordinator", "ray::DomainWorker", "ray::ReplicaWorker")):
            found.add(process.pid)
    return found


def our_groups() -> set[str]:
    """Placement groups on the session's Ray that have not been given back."""
    return {name for name, group in ray.util.placement_group_table().items() if group["state"] != "REMOVED"}


@contextmanager
def nothing_more() -> Iterator[None]:
    """Of what runs on the session's Ray inside of this, nothing is left; what was there before may have gone."""
    actors, groups = our_actors(), our_groups()
    yield
    eventually(lambda: our_actors() <= actors and our_groups() <= groups, "its actors and placement groups are gone")


@dataclass(frozen=True)
class End:
    """What a run came to."""

    weights: dict[str, bytes]
    state: dict[str, bytes]
    summary: dict[str, Any]
    records: list[dict[str, Any]]


def end_of(run_dir: Path) -> End:
    """The newest checkpoint's tensors, the summary and the records, without times, places, and what was sent."""
    newest = max((run_dir / "checkpoints").glob("step-*"))
    summary = json.loads((run_dir / "summary.json").read_text())
    for key in ("wall_s", "step_ms", "checkpoint", "engine", "restarts"):
        del summary[key]
    records = list(entries(run_dir / "metrics.jsonl", "step", "evaluation"))
    for record in records:
        for field in ("seconds", "sent_bytes", "worker_restarts"):
            record.pop(field, None)
    return End(
        weights={name: raw(tensor) for name, tensor in load_file(newest / "weights.safetensors").items()},
        state={name: raw(tensor) for name, tensor in load_file(newest / "state.safetensors").items()},
        summary=summary,
        records=records,
    )


def resume(run_dir: Path | str, *overrides: str, notices: Notices | None = None) -> Result:
    """The run as the command line continues it, in this process."""
    return runs.train(resolve(requested_config(None, [f"resume={run_dir}", *overrides])), notices)
