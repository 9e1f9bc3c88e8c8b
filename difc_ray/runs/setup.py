"""Everything that a run needs before it starts: data checked, model built, a checkpoint to resume from, a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from difc_ray.config import (
    CheckpointProblems,
    Config,
    batch_norm_policy,
    check_data,
    differences,
    has_penalty,
    load_config,
    resolve,
    run_folder,
)
from difc_ray.data import Domain, make_augmentation
from difc_ray.errors import CheckpointError, ConfigError
from difc_ray.models import Model
from difc_ray.objectives.losses import Loss, LossState
from difc_ray.runs.checkpoint import BUFFER_PREFIX, Snapshot, compare_layout, find_newest_run
from difc_ray.runs.fingerprint import code_tags, data_fingerprint, versions
from difc_ray.runs.reading import newest_checkpoint, read_checkpoint, recorded_settings
from difc_ray.runs.state import Progress, ResumePoint, Start, train_state
from difc_ray.step.coordinator import TrainState
from difc_ray.step.division import is_divided
from difc_ray.step.factory import family_of, model_of
from difc_ray.step.worker import domain_buffer
from difc_ray.step.worker.dropout import check_divisible
from difc_ray.step.worker.memory import check_memory
from difc_ray.step.worker.third_order import check_third_order
from difc_ray.tracking import UploadSettings, resolve_uri
from difc_ray.vectors import ParameterLayout

AUGMENTATION_FILE = "augmentation.yaml"
"""The pipeline of a run, in its folder."""


def prepare(config: Config, point: ResumePoint | None) -> Start:
    """Loads the data and builds the model on the driver; takes state and progress from a checkpoint if there is one.

    Raises:
        DataError: a domain cannot be used.
        CheckpointError: the checkpoint belongs to another dataset or model.
    """
    domains = check_data(config, family_of(config))
    model, loss = model_of(config, load_weights=point is None)
    layout = ParameterLayout.of(model)
    class_names = list(domains[config.sources[0]].class_names)
    libraries = versions("timm") if config.model.startswith("timm:") else versions()
    identity: dict[str, Any] = {"data": data_fingerprint(domains), "class_names": class_names, "versions": libraries}
    augmentation = make_augmentation(config.augment, domains[config.sources[0]].image_shape)
    if augmentation is not None:
        identity["augmentation"] = augmentation.text()
    if has_penalty(config):
        check_memory(config, model, psutil.virtual_memory().available)
    if config.alignment.scope == "all" and has_penalty(config):
        check_third_order(config, model, loss, domains[config.sources[0]].image_shape, len(class_names))
    if is_divided(config):
        image_shape = domains[config.sources[0]].image_shape
        check_divisible(model, image_shape, frozen=batch_norm_policy(config) == "freeze")
    if point is None:
        if model.loaded is not None:
            identity["weights"] = asdict(model.loaded)
        state = TrainState(
            step=0,
            theta_P=layout.flatten(dict(model.named_parameters())),
            buffers=initial_buffers(config, model),
            loss=loss_state(config, domains, loss),
        )
        return Start(config=config, layout=layout, state=state, progress=Progress(), identity=identity)
    compare_layout(point.snapshot, expected_shapes(model, point.snapshot))
    former = point.snapshot.meta["identity"]
    identity |= {"weights": former["weights"]} if "weights" in former else {}
    if former["data"] != identity["data"]:
        raise CheckpointError(
            f"the data must be that of the run which is continued, got fingerprint {identity['data'][:12]} for "
            f"{', '.join(domains)} ({former['data'][:12]} in `{point.run_dir}`). Restore the data, or start a new run."
        )
    if former.get("augmentation") != identity.get("augmentation"):
        raise CheckpointError(
            f"the augmentation must be that of the run which is continued, got another pipeline in `{config.augment}`. "
            f"Restore it (a copy is `{point.run_dir / AUGMENTATION_FILE}`), or start a new run."
        )
    state, progress = train_state(point.snapshot, layout), Progress(**point.snapshot.meta["progress"])
    memory = {name: (value.shape, value.dtype) for name, value in loss_state(config, domains, loss).items()}
    if {name: (value.shape, value.dtype) for name, value in state.loss.items()} != memory:
        raise CheckpointError(
            f"the memory of the loss must be that of `{config.loss}` on these classes, got other names, sizes or types "
            f"({', '.join(state.loss) or 'nothing'} in `{point.run_dir}`). Use another checkpoint, or start a new run."
        )
    return Start(config=config, layout=layout, state=state, progress=progress, identity=identity, point=point)


def loss_state(config: Config, domains: Mapping[str, Domain], loss: Loss) -> LossState:
    """The memory of the loss at step 0, from the sources' training examples."""
    sources = [domains[name] for name in config.sources]
    counts_K = np.sum([domain.class_counts("train") for domain in sources], axis=0)
    epoch_steps = -(-max(domain.size("train") for domain in sources) // config.batch_size)
    return loss.begin(counts_K, epoch_steps, config.steps)


def initial_buffers(config: Config, model: Model) -> dict[str, torch.Tensor]:
    """A model's buffers as a run begins with them; with `batch_norm: per_domain` a copy for every source besides.

    Raises:
        ConfigError: the name of a buffer has a `/`, which marks those copies.
    """
    buffers = {name: value.detach().clone() for name, value in model.named_buffers()}
    if batch_norm_policy(config) != "per_domain":
        return buffers
    if bad := [name for name in buffers if "/" in name]:
        raise ConfigError(
            f"Buffers must have no `/` in their names under `batch_norm: per_domain`. Found `{bad[0]}` in model "
            f"`{config.model}`. Rename the module, or write `batch_norm=mean`."
        )
    own = {domain_buffer(domain, name): value.clone() for domain in config.sources for name, value in buffers.items()}
    return buffers | own


def run_tags(start: Start, facts: Mapping[str, str]) -> dict[str, str]:
    """Tags of the MLflow run: data, domains, rule, engine, versions, code."""
    config = start.config
    tags = {
        "dataset": config.dataset,
        "dataset.fingerprint": start.identity["data"],
        "domains": ",".join(config.sources),
        "target": config.target or "none",
        "rule": config.harmonize.rule,
        "seed": str(config.seed),
    }
    if loaded := start.identity.get("weights"):
        tags["weights.sha256"] = loaded["sha256"]
    tags |= {f"version.{name}": version for name, version in start.identity["versions"].items()}
    tags |= {f"engine.{name}": value for name, value in facts.items()}
    if config.selection == "oracle":
        tags["selection"] = "oracle (chosen on the target domain)"
    return tags | code_tags()


def start_warnings(start: Start) -> list[str]:
    """What a user should know of where the run starts.

    Of a new run: a head that did not come with the weights. Of one that is continued: damaged checkpoints, and other
    versions, which may round differently.
    """
    if start.point is None:
        loaded = start.identity.get("weights")
        if loaded is None or loaded["head"]:
            return []
        source = loaded["source"]
        return [f"the head begins at the seed's initial values: that of `{source}` has another size, or is absent"]
    then, now = start.point.snapshot.meta["identity"]["versions"], start.identity["versions"]
    changed = [f"{name} {then.get(name)} -> {now[name]}" for name in now if then.get(name) != now[name]]
    if then == now:
        return start.point.rejected
    sentence = f"versions changed since the checkpoint ({', '.join(changed)}): the same bits are not promised"
    return [*start.point.rejected, sentence]


def expected_shapes(model: torch.nn.Module, snapshot: Snapshot) -> dict[str, tuple[int, ...]]:
    """Name -> shape of everything that a checkpoint of this model holds.

    Args:
        model: the model.
        snapshot: the checkpoint; its own configuration says whether there are buffers per domain, and for which.
    """
    made = recorded_settings(snapshot)
    own = made.get("sources", ()) if made.get("batch_norm") == "per_domain" else ()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for name, value in model.named_buffers():
        for full in (name, *(domain_buffer(domain, name) for domain in own)):
            shapes[f"{BUFFER_PREFIX}{full}"] = tuple(value.shape)
    return shapes


def run_to_resume(resume: str, output: Path) -> Path | None:
    """The run folder that `resume` names; `auto`: the newest with a checkpoint under `output` (None: there is none).

    Raises:
        CheckpointError: the folder does not exist or is no run.
    """
    if resume == "auto":
        return find_newest_run(output)
    run_dir = Path(resume).expanduser().resolve()
    meant = output / run_dir.name
    if not (run_dir / "config.yaml").is_file() and (meant / "config.yaml").is_file():
        shown = os.path.relpath(meant) if meant.is_relative_to(Path.cwd()) else meant
        raise CheckpointError(
            f"`resume` must be `auto` or a run folder, got `{resume}` (resume). Did you mean `resume={shown}`?"
        )
    check_run_folder(run_dir, "`resume` must be `auto` or a run folder", "resume")
    return run_dir


def check_run_folder(run_dir: Path, rule: str, where: str) -> None:
    """Refuses what is no run's folder.

    Args:
        run_dir: the folder.
        rule: the beginning of the error sentence.
        where: where the folder was named.

    Raises:
        CheckpointError: it does not exist, or has no config.yaml.
    """
    if not (run_dir / "config.yaml").is_file():
        kind = "a folder without config.yaml" if run_dir.is_dir() else "which is a file"
        kind = kind if run_dir.exists() else "which does not exist"
        raise CheckpointError(
            f"{rule}, got `{run_dir}`, {kind} ({where}). Run folders lie under `output` (`runs` by default), by name."
        )


def tracking_uri(config: Config) -> str | None:
    """Where a run of a resolved configuration is recorded; None: nowhere.

    Raises:
        ConfigError: MLflow cannot record there, or a variable of the uploader is wrong.
    """
    if config.tracking.mode == "off":
        return None
    UploadSettings.from_environ()
    return resolve_uri(config.tracking.uri, config.output, os.environ)


def resume_point(config: Config) -> tuple[Config, ResumePoint | None]:
    """The configuration bound to the run that it continues, and where that run stands.

    Raises:
        CheckpointError: no valid checkpoint, or the configuration differs in what may not change.
    """
    if config.resume is None:
        return config, None
    run_dir = run_to_resume(config.resume, config.output)
    if run_dir is None:
        return config.model_copy(update={"resume": None}), None
    snapshot, rejected = newest_checkpoint(run_dir)
    recorded = resolve(load_config(None, base=recorded_settings(snapshot)))
    if changed := differences(recorded, config):
        raise CheckpointProblems(changed)
    if config.steps < snapshot.step:
        raise CheckpointError(
            "`steps` counts from the beginning of the run, so it must be more than those taken, got "
            f"`steps={config.steps}` (`{run_dir}` stands at step {snapshot.step}). Write for example "
            f"`steps={snapshot.step + config.steps}`."
        )
    bound = config.model_copy(update={"name": run_dir.name, "output": run_dir.parent, "resume": str(run_dir)})
    messages = [f"checkpoint {r.path.name} rejected ({r.reason}); using {snapshot.meta['step']}" for r in rejected]
    return bound, ResumePoint(run_dir=run_dir, snapshot=snapshot, rejected=messages)


def open_run(config: Config, *, resumed: bool) -> Path:
    """Creates the run's folder, or opens that of the run which is continued; its lock is not taken yet.

    Raises:
        CheckpointError: the folder holds another run.
    """
    run_dir = run_folder(config)
    if not resumed and run_dir.exists() and any(run_dir.iterdir()):
        raise CheckpointError(
            f"The run folder must be new. Found {run_dir} with another run. Choose another `name`, or continue that "
            f"run with `resume={run_dir}`."
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    return run_dir


def selected_checkpoint(run_dir: Path) -> tuple[Snapshot, list[str]]:
    """The checkpoint that the run's selection chose; the newest valid one if that is damaged or there is none yet.

    Raises:
        CheckpointError: there is no valid checkpoint.
    """
    messages: list[str] = []
    summary = run_dir / "summary.json"
    if summary.is_file():
        try:
            chosen = Path(json.loads(summary.read_text("utf-8"))["checkpoint"]).name
            return read_checkpoint(run_dir / "checkpoints" / chosen), messages
        except CheckpointError as error:
            messages.append(f"{error} Here the newest valid checkpoint is used.")
        except (ValueError, KeyError, TypeError):
            messages.append(f"`{summary}` names no checkpoint; the newest valid one is used.")
    snapshot, rejected = newest_checkpoint(run_dir)
    return snapshot, messages + [f"checkpoint {r.path.name} rejected ({r.reason})" for r in rejected]
