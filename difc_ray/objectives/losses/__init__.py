"""Classification losses with their derivatives in closed form, and their registry."""

from __future__ import annotations

from difc_ray.objectives.losses.base import LOSSES, Confusion, Loss, LossState
from difc_ray.objectives.losses.bce import BinaryCrossEntropy
from difc_ray.objectives.losses.cross_entropy import CrossEntropy
from difc_ray.objectives.losses.ldam import Difc, Ldam, confusion_of

__all__ = [
    "LOSSES",
    "BinaryCrossEntropy",
    "Confusion",
    "CrossEntropy",
    "Difc",
    "Ldam",
    "Loss",
    "LossState",
    "confusion_of",
]
