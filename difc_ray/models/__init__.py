"""Classifiers: what one is, and their registry. One file per family; importing this registers them all.

torchvision and timm are imported when a model of theirs is made, not before.
"""

from __future__ import annotations

from difc_ray.models import small, timm, torchvision
from difc_ray.models.base import (
    MODELS,
    LoadedWeights,
    Model,
    ModelFactory,
    absolute_model_options,
    build_model,
    check_weights,
    named_weights,
    without_weights,
)
from difc_ray.models.modes import has_batch_norm, inference, train_mode

__all__ = [
    "MODELS",
    "LoadedWeights",
    "Model",
    "ModelFactory",
    "absolute_model_options",
    "build_model",
    "check_weights",
    "has_batch_norm",
    "inference",
    "named_weights",
    "small",
    "timm",
    "torchvision",
    "train_mode",
    "without_weights",
]
