"""Between a run in memory and its checkpoints: training state, the loop's own memory, the exported model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from difc_ray.config import AnnealConfig, Config, OptimizerConfig, to_yaml
from difc_ray.config.yaml_strict import UnreadableError, read_text
from difc_ray.errors import CheckpointError
from difc_ray.files import write_json
from difc_ray.models import without_weights
from difc_ray.objectives.losses import LOSSES
from difc_ray.runs.checkpoint import BUFFER_PREFIX, Rejected, Snapshot, load, newest_valid
from difc_ray.step.coordinator import TrainState
from difc_ray.step.coordinator.state import THETA
from difc_ray.step.factory import family_of, model_of
from difc_ray.step.optimizer import state_shapes
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


class _Weights(BaseModel):
    """Where the initial weights came from, as `state.json` has it."""

    source: str
    sha256: str
    head: bool


class _Identity(BaseModel):
    """What a resumed run is compared with, as `state.json` has it."""

    data: str
    class_names: list[str]
    versions: dict[str, str]
    weights: _Weights | None = None
    augmentation: str | None = None


class _Meta(BaseModel):
    """Fields of `state.json`, with their types and ranges."""

    step: Annotated[int, Field(ge=0)]
    skipped: list[Annotated[int, Field(ge=0)]]
    progress: Progress
    identity: _Identity


class _Alignment(BaseModel):
    anneal: AnnealConfig = AnnealConfig()


class _Settings(BaseModel):
    """What of a checkpoint's configuration says which tensors it has; plug-ins that it names stay unread."""

    optimizer: OptimizerConfig = OptimizerConfig()
    alignment: _Alignment = _Alignment()


def damage(snapshot: Snapshot) -> str | None:
    """What of a checkpoint's content cannot be the state of a run, as the end of a sentence; None: nothing.

    A folder from somebody else may hold anything under valid hashes. Whether the weights are those of this model is
    asked later, by :func:`~difc_ray.runs.checkpoint.compare_layout`.
    """
    try:
        meta = _Meta.model_validate_json(json.dumps(snapshot.meta), strict=True)
    except ValidationError as error:
        return f"{_first_problem(error)} in its `state.json`"
    try:
        settings = _Settings.model_validate(recorded_settings(snapshot))
    except ValidationError as error:
        return f"{_first_problem(error)} in its `config.yaml`"
    except CheckpointError as error:
        return f"its `config.yaml` cannot be used ({error})"
    if unknown := set(snapshot.meta["progress"]) - set(asdict(meta.progress)):
        return f"`progress.{min(unknown)}` in its `state.json` is not known"
    late = [step for step in meta.skipped if step >= meta.step]
    if late or not -1 <= meta.progress.best_step <= meta.step:
        return f"its `state.json` tells of step {max([*late, meta.progress.best_step])}, after its own, {meta.step}"
    parameters = {name: value for name, value in snapshot.named_weights.items() if not name.startswith(BUFFER_PREFIX)}
    wrong = [name for name, value in parameters.items() if value.dtype != torch.float32]
    if wrong:
        return f"the weight `{wrong[0]}` is of type {parameters[wrong[0]].dtype}, not float32"
    return _wrong_state(snapshot.tensors, settings, meta, sum(value.numel() for value in parameters.values()))


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_input=False)[0]
    return f"`{'.'.join(map(str, problem['loc']))}` is wrong ({problem['msg']})"


def _wrong_state(tensors: Mapping[str, Tensor], settings: _Settings, meta: _Meta, size: int) -> str | None:
    """The same of the tensors of `state.safetensors`: those of optimizer and curvature fit `size` parameters.

    What a rule remembers it checks itself (:func:`~difc_ray.harmonizers.base.check_memory`).
    """
    groups: dict[str, dict[str, Tensor]] = {"optimizer": {}, "curvature": {}, "harmonizer": {}, "loss": {}}
    for full, value in tensors.items():
        group, _, name = full.partition(".")
        if group not in groups:
            return f"`{full}` is no part of a training state"
        groups[group][name] = value
    anneal, optimizer = settings.alignment.anneal, groups["optimizer"]
    forgotten = anneal.steps if anneal.reset_optimizer and meta.step > anneal.steps else 0
    updated = not set(range(forgotten, meta.step)) <= set(meta.skipped)
    expected = state_shapes(settings.optimizer, size) if updated or optimizer else {}
    if optimizer.keys() != expected.keys():
        shown = ", ".join(sorted(optimizer)) or "nothing"
        return f"the optimizer `{settings.optimizer.name}` keeps {', '.join(sorted(expected))}, and it has {shown}"
    allowed = {name: {shape} for name, shape in expected.items()}
    allowed |= {name: {(size,)} if name == "diagonal" else {(), (1,)} for name in groups["curvature"]}
    for name, value in {**optimizer, **groups["curvature"]}.items():
        if tuple(value.shape) not in allowed[name] or value.dtype not in (torch.float32, torch.float64):
            return f"`{name}` of its state is {value.dtype} {tuple(value.shape)}, with {size} parameters"
    return None


def recorded_settings(snapshot: Snapshot) -> dict[str, Any]:
    """The settings that a checkpoint was made with, read under the same limits as a configuration file.

    Raises:
        CheckpointError: they are no YAML that this package writes.
    """
    if not snapshot.config_yaml.strip():
        return {}
    try:
        document = read_text(snapshot.config_yaml, "`config.yaml` of the checkpoint")
    except UnreadableError as error:
        raise CheckpointError(str(error)) from error
    if document.problems:
        raise CheckpointError(str(document.problems[0]))
    return document.data


def read_checkpoint(folder: Path) -> Snapshot:
    """The content of a run's checkpoint, of which everything is checked that can be without its model.

    Raises:
        DamagedCheckpointError: it cannot be used.
        UnreadableCheckpointError: the storage refuses.
    """
    return load(folder, damage)


def newest_checkpoint(run_dir: Path) -> tuple[Snapshot, list[Rejected]]:
    """The newest checkpoint of a run that passes these checks, and the newer ones that do not.

    Raises:
        CheckpointError: there is none, or the storage refuses.
    """
    _, snapshot, rejected = newest_valid(run_dir / "checkpoints", damage)
    return snapshot, rejected


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
