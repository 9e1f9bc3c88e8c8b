"""Domains, their batches, and the registry of dataset families."""

from __future__ import annotations

from difc_ray.data.augmentation import Augmentation, make_augmentation
from difc_ray.data.batch import Batch, RawBatch
from difc_ray.data.digits import Digits
from difc_ray.data.domain import Domain, EvaluationSplit
from difc_ray.data.errors import AugmentationError, FilesMissingError, ImageSizeError, MalformedDataError
from difc_ray.data.family import DATASETS, DatasetFamily, OnBadImage
from difc_ray.data.image_folder import ImageFolder
from difc_ray.data.loader import Loader
from difc_ray.data.order import SAMPLERS, BalancedOrder, NaturalOrder, Order, class_shares
from difc_ray.data.partner_loader import PartnerLoader
from difc_ray.data.pixels import ArrayDomain, PixelDomain
from difc_ray.data.published import (
    ColoredDigits,
    ColoredDigits5k,
    ColoredMnist,
    ColoredMnist5k,
    Fashion,
    RotatedMnist,
    RotatedMnist5k,
    TorchvisionDigits,
)
from difc_ray.data.splits import Split
from difc_ray.data.validation import open_domain, open_family

__all__ = [
    "DATASETS",
    "SAMPLERS",
    "ArrayDomain",
    "Augmentation",
    "AugmentationError",
    "BalancedOrder",
    "Batch",
    "ColoredDigits",
    "ColoredDigits5k",
    "ColoredMnist",
    "ColoredMnist5k",
    "DatasetFamily",
    "Digits",
    "Domain",
    "EvaluationSplit",
    "Fashion",
    "FilesMissingError",
    "ImageFolder",
    "ImageSizeError",
    "Loader",
    "MalformedDataError",
    "NaturalOrder",
    "OnBadImage",
    "Order",
    "PartnerLoader",
    "PixelDomain",
    "RawBatch",
    "RotatedMnist",
    "RotatedMnist5k",
    "Split",
    "TorchvisionDigits",
    "class_shares",
    "make_augmentation",
    "open_domain",
    "open_family",
]
