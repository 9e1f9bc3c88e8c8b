"""Harmonizers: Gram matrix of the rows -> weights. One file per family; importing this registers them all."""

from __future__ import annotations

from difc_ray.harmonizers import averaging, gh
from difc_ray.harmonizers.base import (
    HARMONIZERS,
    GramStatistics,
    Harmonization,
    Harmonizer,
    harmonize,
    make_harmonizer,
)

__all__ = [
    "HARMONIZERS",
    "GramStatistics",
    "Harmonization",
    "Harmonizer",
    "averaging",
    "gh",
    "harmonize",
    "make_harmonizer",
]
