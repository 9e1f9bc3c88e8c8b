"""The spectrum of the domains' Hessians at a run's checkpoints, how far they are apart, and what that bounds."""

from __future__ import annotations

from difc_ray.studies.spectrum.measure import measure_run
from difc_ray.studies.spectrum.options import Options
from difc_ray.studies.spectrum.records import ALL_SOURCES, PairDistance, Spectrum

__all__ = ["ALL_SOURCES", "Options", "PairDistance", "Spectrum", "measure_run"]
