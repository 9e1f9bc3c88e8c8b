"""What is measured at a run's checkpoints after the fact: training accuracy, and how far apart the domains are.

Shape suffixes: S parameters of the head.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import torch

from difc_ray.config import Config
from difc_ray.data import Domain
from difc_ray.files import write_json
from difc_ray.models import Model, inference
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.losses import Loss
from difc_ray.runs.checkpoint import load
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import head_curvature
from difc_ray.vectors import ParameterLayout, write_theta

NAME: Final = "measured.json"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """On all training examples as they are, for every method in the same way.

    Args:
        train: share of them that is classified right, in [0, 1], the mean over the training domains.
        gradient: ``‖g_a − g_b‖₂`` between the first two training domains, at the head.
        hessian: ``‖H_a − H_b‖₂``, the largest absolute eigenvalue of the difference of the whole Hessians of the head.
    """

    train: float
    gradient: float
    hessian: float


def measured(config: Config, run_dir: Path) -> dict[int, Measured]:
    """What is measured at every checkpoint of a run that is there, by step.

    It is kept in `measured.json` of the run folder, and the checkpoints before the last are removed once measured.
    """
    kept = run_dir / NAME
    if kept.is_file():
        stored: Mapping[str, Mapping[str, float]] = json.loads(kept.read_text("utf-8"))
        return {int(step): Measured(**values) for step, values in stored.items()}
    model, loss = model_of(config)
    layout = ParameterLayout.of(model)
    domains = [load_domain(config, name) for name in config.sources]
    found: dict[int, Measured] = {}
    folders = sorted((run_dir / "checkpoints").glob("step-*"))
    for folder in folders:
        snapshot = load(folder)
        write_theta(layout.flatten(snapshot.named_weights), list(model.parameters()))
        heads, right = zip(*(on_all_examples(model, loss, domain) for domain in domains), strict=True)
        gradient, hessian = between(*heads[:2])
        found[snapshot.step] = Measured(train=math.fsum(right) / len(right), gradient=gradient, hessian=hessian)
    write_json(kept, {str(step): asdict(each) for step, each in found.items()})
    for folder in folders[:-1]:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def on_all_examples(model: Model, loss: Loss, domain: Domain) -> tuple[HeadCurvature, float]:
    """The head's closed forms on all training examples of a domain, without a graph, and the accuracy."""
    parts = list(domain.evaluation_batches("train", 4096))
    labels = torch.cat([batch.labels for batch in parts])
    with inference(model):
        features = torch.cat([model.features(batch.images) for batch in parts])
        logits = model.head(features)
        return head_curvature(loss, model, features, logits, labels), loss.accuracy(logits, labels)


def between(one: HeadCurvature, other: HeadCurvature) -> tuple[float, float]:
    """The distances of two domains' gradients and Hessians."""
    eye_SS = torch.eye(one.size, dtype=one.features_ND.dtype)
    difference_SS = (one.hessian_product(eye_SS) - other.hessian_product(eye_SS)).double()
    spectrum_S = torch.linalg.eigvalsh((difference_SS + difference_SS.T) / 2)
    return float((one.gradient() - other.gradient()).norm()), float(spectrum_S.abs().max())
