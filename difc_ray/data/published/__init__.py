"""Published collections of small pictures, read by torchvision, and the datasets made of them."""

from __future__ import annotations

from difc_ray.data.published.collection import Collection
from difc_ray.data.published.colored import ColoredMnist, ColoredMnist5k
from difc_ray.data.published.digits import TorchvisionDigits
from difc_ray.data.published.domain import ShiftedDomain
from difc_ray.data.published.fashion import Fashion
from difc_ray.data.published.finding import FilesMissingError
from difc_ray.data.published.inked import ColoredDigits, ColoredDigits5k
from difc_ray.data.published.readers import READERS, Reader
from difc_ray.data.published.rotated import RotatedMnist, RotatedMnist5k

__all__ = [
    "READERS",
    "Collection",
    "ColoredDigits",
    "ColoredDigits5k",
    "ColoredMnist",
    "ColoredMnist5k",
    "Fashion",
    "FilesMissingError",
    "Reader",
    "RotatedMnist",
    "RotatedMnist5k",
    "ShiftedDomain",
    "TorchvisionDigits",
]
