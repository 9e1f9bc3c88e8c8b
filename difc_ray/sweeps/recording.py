"""The sweep's own MLflow run, below which those of its trials stand."""

from __future__ import annotations

import json
from collections.abc import Callable

from difc_ray.config import Config, flat
from difc_ray.sweeps.folder import SweepFolder
from difc_ray.sweeps.space import Space
from difc_ray.tracking import MlflowTracker, probe


def begin_record(tracker: MlflowTracker, space: Space, base: Config, folder: SweepFolder) -> None:
    """Opens the sweep's run, with what is searched and what all trials share."""
    tracker.start(run_name=folder.path.name, params=sweep_params(space, base), tags=sweep_tags(space, base, folder))
    tracker.artifact(folder.path / "space.yaml")
    tracker.artifact(folder.path / "config.yaml")


def sweep_tracker(
    base: Config, folder: SweepFolder, uri: str | None, *, resume: bool, notice: Callable[[str], None]
) -> MlflowTracker | None:
    """The tracker of the sweep's own MLflow run, whose uploader sends the journals of all trials."""
    if uri is None:
        return None
    if trouble := probe(uri, timeout_s=2.0):
        notice(f"{trouble} The sweep goes on; records are kept in {folder.path} and sent when the server is back.")
    return MlflowTracker(folder.path, uri, base.tracking.experiment, resume=resume, notice=notice)


def sweep_params(space: Space, base: Config) -> dict[str, object]:
    """What the parent run records: the shared configuration, and the space."""
    searched = {f"sweep.space.{key}": f"{d.kind} {json.dumps(list(d.values))}" for key, d in space.space.items()}
    return {**flat(base), **searched, "sweep.samples": space.samples, "sweep.seeds": json.dumps(list(space.seeds))}


def sweep_tags(space: Space, base: Config, folder: SweepFolder) -> dict[str, str]:
    """Tags by which a sweep is found and read."""
    return {
        "kind": "sweep", "sweep": folder.path.name, "sweep.metric": space.metric, "sweep.mode": space.mode,
        "sweep.space": space.name, "sweep.digest": space.digest, "sweep.scheduler": space.scheduler,
        "sweep.selection": space.selection, "dataset": base.dataset, "target": base.target or "none",
        "domains": ",".join(base.sources),
    }  # fmt: skip
