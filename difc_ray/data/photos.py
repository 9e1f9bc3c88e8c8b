"""Patches of two photographs (a temple, a flower) that scikit-learn ships: backgrounds without a download."""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from difc_ray.data.shipped import shipped

PHOTOS: Final = 2


@cache
def sample_photos() -> tuple[UInt8[np.ndarray, "_ _ 3"], ...]:
    """The photographs, 427×640 each; read once in a process, and nobody may write into them.

    Raises:
        ImportError, OSError: scikit-learn has them no more.
    """
    folder = shipped("sklearn", "datasets", "images")
    photos = tuple(np.asarray(Image.open(folder / name)) for name in ("china.jpg", "flower.jpg"))
    for photo in photos:
        photo.setflags(write=False)
    return photos


def random_place(rng: np.random.Generator, side: int) -> tuple[int, int, int]:
    """Number of a photograph, top and left of a square in it, each uniform; three draws in this order."""
    photo = int(rng.integers(PHOTOS))
    top, left = (int(rng.integers(length - side + 1)) for length in sample_photos()[photo].shape[:2])
    return photo, top, left


def random_places(rng: np.random.Generator, count: int, side: int) -> Int[np.ndarray, "count 3"]:
    """The same for many squares, drawn photograph by photograph, then all tops, then all lefts."""
    photos = rng.integers(PHOTOS, size=count)
    room = np.array([photo.shape[:2] for photo in sample_photos()])[photos] - side + 1
    corners = (rng.integers(room[:, axis]) for axis in (0, 1))
    return np.stack([photos, *corners], axis=1).astype(np.int64)


def patch(photo: int, top: int, left: int, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """A square of a photograph."""
    square: UInt8[np.ndarray, "side side 3"] = sample_photos()[photo][top : top + side, left : left + side]
    return square


def difference(patch: UInt8[np.ndarray, "h w 3"], grey: UInt8[np.ndarray, "h w 1"]) -> UInt8[np.ndarray, "h w 3"]:
    """``|patch − grey|`` per pixel and channel.

    Source: MNIST-M, Ganin & Lempitsky 2015, section 4.
    """
    blended: UInt8[np.ndarray, "h w 3"] = np.abs(patch.astype(np.int16) - grey).astype(np.uint8)
    return blended
