"""Small runs for tests: configurations, engines, and what makes two states the same."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from difc_ray.config import Config, load_config, resolve
from difc_ray.engines.inline import InlineEngine
from difc_ray.runs import train as run
from difc_ray.runs.loop import Training
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import StepRecord, TrainState

SMALL: dict[str, Any] = {
    "name": "test",
    "dataset": "digits",
    "sources": ["mnist", "optdigits", "fonts"],
    "target": None,
    "model": "mlp",
    "model_options": {"hidden": [32]},
    "batch_size": 8,
    "steps": 5,
    "tracking": {"mode": "off"},
}
"""A run of a second."""

PENALTIES: dict[str, dict[str, Any]] = {
    "none": {"alpha": 0, "beta": 0},
    "gradient": {"penalty": "gradient", "beta": 0.3},
    "hutchinson-exact": {"penalty": "hutchinson", "alpha": 0.2, "beta": 0.1},
    "hutchinson-hessian-only": {"penalty": "hutchinson", "alpha": 0.2, "beta": 0},
    "hutchinson-shared": {"penalty": "hutchinson", "estimator": "hutchinson", "probes": 2},
    "hutchinson-independent": {"penalty": "hutchinson", "estimator": "hutchinson", "probe_sets": "independent"},
    "hutchinson-released": {"penalty": "hutchinson", "estimator": "hutchinson", "probe_sets": "released", "probes": 3},
    "hgp-detached": {"penalty": "hgp", "detach_mean": True},
    "hgp": {"penalty": "hgp", "detach_mean": False, "reduction": "sum"},
    "irm": {"penalty": "irm", "alpha": 0.5},
    "vrex": {"penalty": "vrex", "alpha": 4},
    "fishr": {"penalty": "fishr", "alpha": 0.5, "reduction": "sum"},
    "coral": {"penalty": "coral", "alpha": 0.5},
    "dann_domain": {"penalty": "dann_domain", "alpha": 0.5},
}
"""Every penalty and estimator of the spine."""

RULES = ("mean", "gh", "ghpp", "ghpp_rotation", "ghpp_paper")


def small_config(**changes: Any) -> Config:
    """The small run with changes, merged section by section."""
    merged = dict(SMALL)
    if "model" in changes:
        del merged["model_options"]
    for key, value in changes.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    if merged.get("alignment", {}).get("alpha") == 0 and merged["alignment"].get("beta") == 0:
        merged.setdefault("harmonize", {"rule": "mean"})
    return resolve(load_config(None, base=merged))


def run_inline(config: Config, steps: int, state: TrainState | None = None) -> tuple[TrainState, list[StepRecord]]:
    """So many steps of the reference."""
    engine = InlineEngine(config, "reference", lambda: False, lambda text: None)
    engine.connect()
    try:
        engine.start(state or prepare(config, None).state)
        records = engine.advance(steps)
        return engine.snapshot(), records
    finally:
        engine.close()  # loader processes that are left to the garbage collector take five seconds each to end


def train(config: Config, *display: Any) -> run.Result:
    """The run as `difc_ray.train` makes it, without figures: to draw them takes longer than to train this little."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "draw", lambda training, metrics: None)
        return run.train(config, *display)


def digest(state: TrainState) -> str:
    """sha256 over all bits of a training state."""
    found = hashlib.sha256(str(state.step).encode())
    for name, tensor in sorted(state.named().items()):
        found.update(name.encode() + tensor.numpy().tobytes())
    found.update(str(state.skipped).encode())
    return found.hexdigest()


def same_records(one: list[StepRecord], other: list[StepRecord]) -> bool:
    """Whether two runs decided the same, times aside."""
    return [strip(record) for record in one] == [strip(record) for record in other]


def strip(record: StepRecord) -> dict[str, Any]:
    """A record without its times, and without what depends on the transport."""
    return {name: value for name, value in vars(record).items() if name not in ("seconds", "sent_bytes")}


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    """A configuration file."""
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path
