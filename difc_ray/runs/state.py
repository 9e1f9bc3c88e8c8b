"""Between a run in memory and its checkpoints: training state, the loop's own memory, the exported model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from difc_ray.config import Config, to_yaml
from difc_ray.files import write_json
from difc_ray.models import without_weights
from difc_ray.objectives.losses import LOSSES
from difc_ray.runs.checkpoint import BUFFER_PREFIX, Snapshot, load
from difc_ray.step.coordinator import TrainState
from difc_ray.step.coordinator.state import THETA
from difc_ray.step.factory import family_of, model_of
from difc_ray.step.worker import ModelState
from difc_ray.vectors import ParameterLayout


@dataclass
class Progress:
    """The loop's own memory; part of every checkpoint.

    Args:
        evaluated: the last step after which the run was evaluated (-1: never).
        best_step: the step that selection prefers so far (-1: none).
        best_score: its score (None: no score was finite yet).
        elapsed_s: wall time of all sessions before this one.
        seconds: wall time by part over all steps of all sessions.
    """

    evaluated: int = -1
    best_step: int = -1
    best_score: float | None = None
    elapsed_s: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        """Counts time of a part."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds


@dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """A valid checkpoint of an earlier run, and what was found wrong with newer ones."""

    run_dir: Path
    snapshot: Snapshot
    rejected: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run starts.

    Args:
        config: the run's configuration.
        layout: the model's parameters.
        state: the training state to start from.
        progress: the loop's memory to start from.
        identity: facts that checkpoints carry and a resumed run is compared with: `data`, `class_names`, `versions`.
        point: where the run stands that is continued, if one is.
    """

    config: Config
    layout: ParameterLayout
    state: TrainState
    progress: Progress
    identity: dict[str, Any]
    point: ResumePoint | None = None


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return run_dir / "checkpoints" / f"step-{step:08d}"


def yaml_of_run(config: Config) -> str:
    """The configuration as a run keeps it: without `resume`, which is a command for one time and no setting."""
    return to_yaml(config.model_copy(update={"resume": None}))


def make_snapshot(
    config: Config, state: TrainState, layout: ParameterLayout, progress: Progress, identity: Mapping[str, Any]
) -> Snapshot:
    """Training state and loop memory in the form that checkpoints hold."""
    tensors = state.named()
    weights = layout.named(tensors.pop(THETA))
    weights |= {name: tensors.pop(name) for name in list(tensors) if name.startswith(BUFFER_PREFIX)}
    meta = {"step": state.step, "skipped": state.skipped, "progress": asdict(progress), "identity": dict(identity)}
    return Snapshot(named_weights=weights, tensors=tensors, meta=meta, config_yaml=yaml_of_run(config))


def train_state(snapshot: Snapshot, layout: ParameterLayout) -> TrainState:
    """The training state of a checkpoint, the inverse of :func:`make_snapshot`."""
    buffers = {name: value for name, value in snapshot.named_weights.items() if name.startswith(BUFFER_PREFIX)}
    named = {THETA: layout.flatten(snapshot.named_weights), **buffers, **snapshot.tensors}
    return TrainState.from_named(named, step=snapshot.step, skipped=snapshot.meta["skipped"])


def model_state(snapshot: Snapshot, layout: ParameterLayout) -> ModelState:
    """What workers need of a checkpoint to evaluate it."""
    return train_state(snapshot, layout).model_state()


def export_model(config: Config, checkpoint: Path, directory: Path, identity: Mapping[str, Any]) -> Path:
    """The model of a checkpoint as a folder that others can load: `weights.safetensors` and `model.json`.

    The weights are the model's state dict, without a companion; of buffers that the domains have each their own of, it
    is the mean.
    """
    directory.mkdir(exist_ok=True)
    saved, (model, _) = load(checkpoint).named_weights, model_of(config)
    model.companion = None
    weights = {name: saved.get(name, saved.get(f"{BUFFER_PREFIX}{name}")) for name in model.state_dict()}
    save_file({name: value for name, value in weights.items() if value is not None}, directory / "weights.safetensors")
    family = family_of(config)
    write_json(
        directory / "model.json",
        {
            "name": config.model,
            "options": without_weights(config.model, config.model_options),
            "image_shape": list(family.image_shape),
            "n_outputs": LOSSES.get(config.loss)(config.loss_options).n_outputs(len(family.class_names)),
            "loss": config.loss,
            "class_names": list(identity["class_names"]),
            "plugins": list(config.plugins),
        },
    )
    return directory
