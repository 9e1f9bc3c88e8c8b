"""Domains, their batches, and the registry of dataset families."""

from __future__ import annotations

from difc_ray.domains.base import (
    DATASETS,
    Batch,
    DatasetFamily,
    Domain,
    EvaluationSplit,
    ImageSizeError,
    MalformedDataError,
    OnBadImage,
    Split,
)
from difc_ray.domains.digits import Digits
from difc_ray.domains.image_folder import ImageFolder
from difc_ray.domains.opening import open_domain, open_family
from difc_ray.domains.published import Fashion, FilesMissingError, TorchvisionDigits

__all__ = [
    "DATASETS",
    "Batch",
    "DatasetFamily",
    "Digits",
    "Domain",
    "EvaluationSplit",
    "Fashion",
    "FilesMissingError",
    "ImageFolder",
    "ImageSizeError",
    "MalformedDataError",
    "OnBadImage",
    "Split",
    "TorchvisionDigits",
    "open_domain",
    "open_family",
]
