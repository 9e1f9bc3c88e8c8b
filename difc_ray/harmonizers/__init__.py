"""Harmonizers: Gram matrix of the rows -> weights. One file per family; importing this registers them all."""

from __future__ import annotations

from difc_ray.harmonizers import (
    adapters,
    aligned,
    averaging,
    bargaining,
    bisector,
    cagrad,
    cone,
    flatness,
    gh,
    loss_weights,
    minnorm,
    normalized,
    pairwise,
    smoothing,
)
from difc_ray.harmonizers.base import HARMONIZERS, GramStatistics, Harmonization, Harmonizer, harmonize, make_harmonizer

__all__ = [
    "HARMONIZERS",
    "GramStatistics",
    "Harmonization",
    "Harmonizer",
    "adapters",
    "aligned",
    "averaging",
    "bargaining",
    "bisector",
    "cagrad",
    "cone",
    "flatness",
    "gh",
    "harmonize",
    "loss_weights",
    "make_harmonizer",
    "minnorm",
    "normalized",
    "pairwise",
    "smoothing",
]
