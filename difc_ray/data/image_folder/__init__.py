"""The `image_folder` dataset: pictures on disk, `root/<domain>/<class>/…`, split lists, or a manifest."""

from __future__ import annotations

from difc_ray.data.image_folder.decoding import IMAGENET_MEAN, IMAGENET_STD, BadImage, decode, decode_fitted, shown
from difc_ray.data.image_folder.domain import ImageDomain
from difc_ray.data.image_folder.family import ImageFolder
from difc_ray.data.image_folder.index import Index, Part, read_index

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "BadImage",
    "ImageDomain",
    "ImageFolder",
    "Index",
    "Part",
    "decode",
    "decode_fitted",
    "read_index",
    "shown",
]
