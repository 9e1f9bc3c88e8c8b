"""How far apart the training domains' gradients and Hessians at the head are, after the fact, from checkpoints.

Shape suffixes: S parameters of the head.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

from difc_ray.checkpoint import load
from difc_ray.config import Config
from difc_ray.curvature import HeadCurvature
from difc_ray.domains import Domain
from difc_ray.local_step import head_curvature, load_domain, model_of
from difc_ray.losses import Loss
from difc_ray.models import Model, inference
from difc_ray.snapshots import write_json
from difc_ray.vectors import ParameterLayout, write_theta

NAME: Final = "distances.json"


@dataclass(frozen=True, kw_only=True)
class Distance:
    """Between two domains, on all of their training examples, for every method measured in the same way.

    Args:
        gradient: ``‖g_a − g_b‖₂``.
        hessian: ``‖H_a − H_b‖₂``, the largest absolute eigenvalue of the difference of the whole Hessians.
    """

    gradient: float
    hessian: float


def distances(config: Config, run_dir: Path) -> dict[int, Distance]:
    """Distances between the first two sources of a run at every checkpoint that is there, by step.

    They are kept in `distances.json` of the run folder, and the checkpoints before the last are removed once measured.
    """
    kept = run_dir / NAME
    if kept.is_file():
        held: Mapping[str, Mapping[str, float]] = json.loads(kept.read_text("utf-8"))
        return {int(step): Distance(**values) for step, values in held.items()}
    model, loss = model_of(config)
    layout = ParameterLayout.of(model)
    pair = [load_domain(config, name) for name in config.sources[:2]]
    found: dict[int, Distance] = {}
    folders = sorted((run_dir / "checkpoints").glob("step-*"))
    for folder in folders:
        snapshot = load(folder)
        write_theta(layout.flatten(snapshot.named_weights), list(model.parameters()))
        found[snapshot.step] = between(*(whole_head(model, loss, domain) for domain in pair))
    write_json(kept, {str(step): asdict(distance) for step, distance in found.items()})
    for folder in folders[:-1]:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def whole_head(model: Model, loss: Loss, domain: Domain) -> HeadCurvature:
    """The head's closed forms on all training examples of a domain, without a graph."""
    parts = list(domain.evaluation_batches("train", 4096))
    labels = torch.cat([batch.labels for batch in parts])
    with inference(model):
        features = torch.cat([model.features(batch.images) for batch in parts])
        return head_curvature(loss, model, features, model.head(features), labels)


def between(one: HeadCurvature, other: HeadCurvature) -> Distance:
    """The distances of two heads."""
    eye_SS = torch.eye(one.size, dtype=one.features_ND.dtype)
    difference_SS = (one.hessian_product(eye_SS) - other.hessian_product(eye_SS)).double()
    spectrum_S = torch.linalg.eigvalsh((difference_SS + difference_SS.T) / 2)
    return Distance(gradient=float((one.gradient() - other.gradient()).norm()), hessian=float(spectrum_S.abs().max()))
