"""Domains, their batches, and the registry of dataset families."""

from __future__ import annotations

from difc_ray.domains.base import DATASETS, Batch, DatasetFamily, Domain, EvaluationSplit, Split
from difc_ray.domains.digits import Digits

__all__ = ["DATASETS", "Batch", "DatasetFamily", "Digits", "Domain", "EvaluationSplit", "Split"]
