"""Folders of small pictures for tests of `image_folder`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from difc_ray.data import open_family
from difc_ray.data.image_folder import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ImageDomain,
)
from difc_ray.data.image_folder import index as index_module

SIDE = 8


def forget() -> None:
    """As in another process."""
    index_module._READ.clear()


def picture(
    path: Path, colour: tuple[int, ...] | int = (255, 0, 0), mode: str = "RGB", size: int = 6, **save: Any
) -> Path:
    """A picture of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), colour).save(path, **save)
    return path


def tree(root: Path, counts: dict[str, dict[str, int]]) -> Path:
    """Domain -> class -> pictures; the red value of a picture tells its number."""
    for domain, classes in counts.items():
        for name, count in classes.items():
            for i in range(count):
                picture(root / domain / name / f"{i:03}.png", (i, 0, 0))
    return root


def opened(root: Path | None, name: str, seed: int = 0, on_bad_image: Any = "raise", **options: Any) -> ImageDomain:
    domain = open_family("image_folder", options, root, seed, SIDE, on_bad_image).load(name)
    assert isinstance(domain, ImageDomain)
    return domain


def colour_of(image: np.ndarray) -> list[int]:
    """The mean colour of a normalised picture in bytes."""
    mean, std = np.array(IMAGENET_MEAN), np.array(IMAGENET_STD)
    return [round(each) for each in ((image.mean(axis=(1, 2)) * std + mean) * 255).tolist()]
