"""The model in MLflow's format: saved in ``<run>/model`` first, then uploaded in steps that can be repeated.

``mlflow.pytorch.log_model`` does the same in one call, but each failed upload would leave a broken model behind, and on
the way it asks for the history of every metric.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from difc_ray.files import inside, read_json, write_json
from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import Record
from difc_ray.tracking.runs import RunStore

RECORD_TAG = "difc_ray.record"
_MARKER = "difc_ray.json"


def export_model(folder: TrackingFolder, record: Record) -> None:
    """Save the model of a ``model`` record in MLflow's ``pt2`` format (no pickle), for any batch size.

    Args:
        folder: the run's tracking files; the model goes to ``<run>/model``, replacing an earlier one.
        record: its directory has ``weights.safetensors`` and ``model.json`` with name, image_shape (C, H, W),
            n_outputs, options, loss, class_names and plugins.
    """
    if _saved_record(folder.model) == record.seq:
        return
    import mlflow.pytorch
    import numpy as np
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types import Schema, TensorSpec

    source = inside(folder.run_dir, record.data["path"])
    description = json.loads((source / "model.json").read_text("utf-8"))
    shape = tuple(description["image_shape"])
    float32 = np.dtype(
        np.float32
    )  # no names: MLflow would pass a named tensor as a dict, which its torch flavour refuses
    signature = ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, *shape))]),
        outputs=Schema([TensorSpec(float32, (-1, description["n_outputs"]))]),
    )
    metadata = {key: description.get(key) for key in ("name", "options", "loss", "class_names")}
    metadata["step"] = record.data["step"]
    temporary = folder.path / f"model.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    mlflow.pytorch.save_model(
        rebuild_model(source, description),
        str(temporary),
        mlflow_model=Model(metadata=metadata),
        signature=signature,
        input_example=np.random.Generator(np.random.PCG64(0)).random(
            (2, *shape), dtype=np.float32
        ),  # 1 is exported static
        pip_requirements=_requirements(),
        serialization_format="pt2",
    )
    write_json(temporary / _MARKER, {"journal_record": record.seq})
    shutil.rmtree(folder.model, ignore_errors=True)
    os.replace(temporary, folder.model)


def rebuild_model(source: Path, description: dict[str, Any]) -> Any:
    """The torch module in evaluation mode, from its registered factory and its weights."""
    from safetensors.torch import load_file

    from difc_ray.models import build_model

    for plugin in description.get("plugins", ()):
        importlib.import_module(plugin)
    shape, options = tuple(description["image_shape"]), description["options"]
    model = build_model(description["name"], shape, description["n_outputs"], options, seed=0, load_weights=False)
    model.load_state_dict(load_file(source / "weights.safetensors"))
    return model.eval()


def upload_model(runs: RunStore, folder: TrackingFolder, record: Record) -> None:
    """Make ``<run>/model`` a LoggedModel of the run, named ``model``.

    Its id is remembered before anything is uploaded, so a repetition continues with the same one.
    """
    client, tag = runs.client, f"{runs.run_id}-{record.seq}"
    if str(record.seq) not in runs.models:
        made = client.search_logged_models([runs.experiment_id], filter_string=f"tags.`{RECORD_TAG}` = '{tag}'")
        model = made[0] if made else client.create_logged_model(
            runs.experiment_id, name="model", source_run_id=runs.run_id, model_type="classifier",
            tags={RECORD_TAG: tag}, params={"step": str(record.data["step"])},
        )  # fmt: skip
        runs.models[str(record.seq)] = model.model_id
        runs.remember()
    model = client.get_logged_model(runs.models[str(record.seq)])
    _address(folder.model, model, runs.run_id)
    client.log_model_artifacts(model.model_id, str(inside(folder.run_dir, folder.model.name)))
    outputs = client.get_run(runs.run_id).outputs
    if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(runs.run_id, [LoggedModelOutput(model.model_id, step=record.data["step"])])
    client.finalize_logged_model(model.model_id, "READY")
    if record.data.get("register"):
        register_version(runs, model, str(record.data["register"]))


def register_version(runs: RunStore, model: Any, name: str) -> None:
    """Make a logged model a version of a registered one, which is created if need be; once, however often it is asked.

    Args:
        runs: the run that the model is of.
        model: the logged model.
        name: what it is called in the registry.
    """
    from mlflow.exceptions import MlflowException

    client = runs.client
    versions = client.search_model_versions(f"run_id = '{runs.run_id}'")
    if any(version.name == name and version.tags.get(RECORD_TAG) == model.model_id for version in versions):
        return
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    client.create_model_version(
        name, model.artifact_location, run_id=runs.run_id, model_id=model.model_id,
        tags={RECORD_TAG: model.model_id}, await_creation_for=0,
    )  # fmt: skip


def _address(path: Path, logged: Any, run_id: str | None) -> None:
    """Write the ids of the logged model into the saved one."""
    from mlflow.models import Model

    model = Model.load(str(path / "MLmodel"))
    model.model_id = model.model_uuid = logged.model_id
    model.run_id, model.artifact_path = run_id, logged.artifact_location
    model.save(str(path / "MLmodel"))


def _saved_record(path: Path) -> int | None:
    """The journal record that the saved model is of."""
    return read_json(path / _MARKER).get("journal_record")


def _requirements() -> list[str]:
    """What loading needs, given so that MLflow does not spend 15 s on finding out."""
    import mlflow
    import numpy as np
    import torch

    return [f"torch=={torch.__version__.split('+')[0]}", f"numpy=={np.__version__}", f"mlflow=={mlflow.__version__}"]
