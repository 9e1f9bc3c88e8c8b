"""Published collections of small pictures, read by torchvision, and the datasets made of them."""

from __future__ import annotations

from difc_ray.data.published.collection import Collection, ShiftedDomain
from difc_ray.data.published.colored_digits import ColoredDigits, ColoredDigits5k
from difc_ray.data.published.colored_mnist import ColoredMnist, ColoredMnist5k
from difc_ray.data.published.fashion import Fashion
from difc_ray.data.published.readers import READERS, Reader
from difc_ray.data.published.rotated_mnist import RotatedMnist, RotatedMnist5k
from difc_ray.data.published.torchvision_digits import TorchvisionDigits

__all__ = [
    "READERS",
    "Collection",
    "ColoredDigits",
    "ColoredDigits5k",
    "ColoredMnist",
    "ColoredMnist5k",
    "Fashion",
    "Reader",
    "RotatedMnist",
    "RotatedMnist5k",
    "ShiftedDomain",
    "TorchvisionDigits",
]
