"""What is done to the pictures of a collection so that they make a domain; each a pure function of picture and row.

Shape suffixes: N rows of the collection, h and w of a picture, C its channels (1: grey, ink bright on black).

Whatever is random was drawn when the shift was made, for every row of the collection: which rows a domain takes, or how
many of them, changes no picture.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Final

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from difc_ray.data.photos import difference, patch, sample_photos

Grey = UInt8[np.ndarray, "h w 1"]
Picture = UInt8[np.ndarray, "h w _"]

OPACITY: Final = 4
"""A pixel of an article hides the photo in proportion to its brightness, wholly from 255 / 4 on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift(ABC):
    """Picture and row to picture."""

    version: ClassVar[int] = 1
    """Raised with every change of what :meth:`applied` returns."""

    @abstractmethod
    def applied(self, picture: Picture, row: int) -> Picture:
        """The picture of a row as the domain has it; a pure function, of the same height and width."""

    def identity(self) -> bytes:
        """SHA-256 of everything that decides what comes out, the collection's pictures excluded."""
        digest = hashlib.sha256(f"{type(self).__name__} {self.version}".encode())
        for field in fields(self):
            value = np.ascontiguousarray(getattr(self, field.name))
            digest.update(f"{field.name} {value.dtype.newbyteorder('<').str} {value.shape}".encode())
            digest.update(value.astype(value.dtype.newbyteorder("<")).tobytes())
        return digest.digest()


@dataclass(frozen=True, kw_only=True, eq=False)
class AsPublished(Shift):
    """The pictures as they are."""

    def applied(self, picture: Picture, row: int) -> Picture:
        """The picture."""
        return picture


@dataclass(frozen=True, kw_only=True, eq=False)
class _OverPhotos(Shift):
    """With a photo patch for every row.

    Args:
        places_N3: number of the photograph, top and left, as :func:`difc_ray.data.photos.random_places` draws them.
    """

    places_N3: Int[np.ndarray, "N 3"]

    def identity(self) -> bytes:
        """With the photographs."""
        return super().identity() + b"".join(hashlib.sha256(photo.tobytes()).digest() for photo in sample_photos())

    def _patch(self, picture: Grey, row: int) -> UInt8[np.ndarray, "h w 3"]:
        photo, top, left = self.places_N3[row].tolist()
        return patch(photo, top, left, picture.shape[0])


class PhotoDifference(_OverPhotos):
    """``|photo patch − picture|``: MNIST-M (Ganin & Lempitsky 2015)."""

    def applied(self, picture: Grey, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """Blended."""
        return difference(self._patch(picture, row), picture)


class BeforePhoto(_OverPhotos):
    """The picture in front of a photo patch: ``a·picture + (1 − a)·patch`` with ``a = min(1, 4·picture / 255)``."""

    def applied(self, picture: Grey, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """Blended, in whole numbers."""
        grey, photo = picture.astype(np.int32), self._patch(picture, row).astype(np.int32)
        opacity = np.minimum(255, OPACITY * grey)
        return ((opacity * grey + (255 - opacity) * photo + 127) // 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True, eq=False)
class Turned(Shift):
    """Rotated about its middle, bilinear, black outside.

    Args:
        degrees_N: by row, counter-clockwise.

    Source: DomainBed's RotatedMNIST, ``torchvision.transforms.functional.rotate``.
    """

    degrees_N: Float[np.ndarray, " N"]

    def applied(self, picture: Grey, row: int) -> Grey:
        """Rotated by Pillow."""
        image = Image.fromarray(picture[:, :, 0])
        turned = image.rotate(float(self.degrees_N[row]), resample=Image.Resampling.BILINEAR)
        return np.asarray(turned)[:, :, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inked(Shift):
    """Ink of a colour on black.

    Args:
        colours_N3: red, green and blue by row.
    """

    colours_N3: UInt8[np.ndarray, "N 3"]

    def applied(self, picture: Grey, row: int) -> UInt8[np.ndarray, "h w 3"]:
        """Brightness times colour, in whole numbers."""
        inked: Int[np.ndarray, "h w 3"] = (picture.astype(np.int32) * self.colours_N3[row] + 127) // 255
        return inked.astype(np.uint8)


class Sketched(Shift):
    """Edges, dark on white: 255 minus the length of Sobel's gradient, scaled so that the strongest edge is black.

    The square root of the scaled length is taken, so that seams and folds show beside the outline.
    """

    def applied(self, picture: Grey, row: int) -> Grey:
        """Edges."""
        padded = np.pad(picture[:, :, 0].astype(np.int32), 1)
        across = padded[:-2] + 2 * padded[1:-1] + padded[2:]
        along = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
        x, y = across[:, 2:] - across[:, :-2], along[2:] - along[:-2]
        length = np.sqrt((x * x + y * y).astype(np.float64))
        ink = np.rint(255 * np.sqrt(length / max(float(length.max()), 1.0)))
        edges: Grey = (255 - ink).astype(np.uint8)[:, :, None]
        return edges
