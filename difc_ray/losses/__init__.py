"""Classification losses with their derivatives in closed form, and their registry."""

from __future__ import annotations

from difc_ray.losses.base import LOSSES, Loss
from difc_ray.losses.bce import BinaryCrossEntropy
from difc_ray.losses.cross_entropy import CrossEntropy

__all__ = ["LOSSES", "BinaryCrossEntropy", "CrossEntropy", "Loss"]
