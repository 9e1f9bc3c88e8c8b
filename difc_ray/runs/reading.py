"""Reading a run's checkpoints, whose folder may come from somebody else: what no run could have written is damage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from difc_ray.config import OptimizerConfig
from difc_ray.config.yaml_strict import UnreadableError, read_text
from difc_ray.errors import CheckpointError
from difc_ray.runs.checkpoint import BUFFER_PREFIX, Rejected, Snapshot, load, newest_valid
from difc_ray.runs.state import Progress
from difc_ray.step.coordinator.state import GROUPS
from difc_ray.step.optimizer import state_shapes


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


class _Settings(BaseModel):
    """What of a checkpoint's configuration says which tensors it has; plug-ins that it names stay unread."""

    optimizer: OptimizerConfig = OptimizerConfig()


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

    What a rule remembers is checked where it is used (:func:`~difc_ray.harmonizers.base.check_memory`).
    """
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS if f"{group}." != BUFFER_PREFIX}
    for full, value in tensors.items():
        group, _, name = full.partition(".")
        if group not in groups:
            return f"`{full}` is no part of a training state"
        groups[group][name] = value
    optimizer, updated = groups["optimizer"], not set(range(meta.step)) <= set(meta.skipped)
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
