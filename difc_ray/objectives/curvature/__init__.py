"""Curvature of the loss: of the classifier head in closed form, of all parameters by repeated differentiation."""

from __future__ import annotations

from difc_ray.objectives.curvature.base import Curvature
from difc_ray.objectives.curvature.head import HeadCurvature
from difc_ray.objectives.curvature.lanczos import Density, Estimate, Krylov, Product, Ritz, lanczos, trace
from difc_ray.objectives.curvature.network import NetworkCurvature
from difc_ray.objectives.curvature.primitives import WrittenOut, fused_layers
from difc_ray.objectives.curvature.probes import rademacher

__all__ = [
    "Curvature",
    "Density",
    "Estimate",
    "HeadCurvature",
    "Krylov",
    "NetworkCurvature",
    "Product",
    "Ritz",
    "WrittenOut",
    "fused_layers",
    "lanczos",
    "rademacher",
    "trace",
]
