"""Examples as pictures for people: the cells of a contact sheet, and a folder of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from difc_ray.data.augmentation import Augmentation
from difc_ray.data.domain import Domain
from difc_ray.data.pixels import PixelDomain
from difc_ray.errors import ConfigError

Cell = list[UInt8[np.ndarray, "H W _"]]


def cells_of(domain: Domain, augmentation: Augmentation | None, seed: int, most: int) -> list[Cell]:
    """For each class the first example of a domain, and the same as training would see it.

    Args:
        domain: the domain.
        augmentation: what training does to it; None: nothing.
        seed: seed of the run.
        most: classes, the first ones.

    Returns:
        A cell per class: empty where the domain has no example, else one picture, or two with an augmentation.
    """
    labels, cells = domain.labels, list[Cell]()
    for number in range(min(most, len(domain.class_names))):
        here = np.flatnonzero(labels == number)[:1]
        if len(here) == 0:
            cells.append([])
        elif isinstance(domain, PixelDomain):
            cell = [*domain.fitted(here)]
            if augmentation is not None:
                cell += [*domain.drawn_augmented(here, augmentation, seed, number).images.numpy()]
            cells.append([visible(each) for each in cell])
        else:
            cells.append([as_picture(domain.checked_images(here)[0])])
    return cells


def write_tree(domains: Sequence[Domain], folder: Path, limit: int | None) -> int:
    """Writes domains as ``folder/<domain>/<class>/<position>.png``.

    Pictures have the size of the images; those that are no bytes are stretched from their darkest to their brightest
    value, each for itself.

    Args:
        domains: at least one.
        folder: new or empty.
        limit: most pictures of a domain and class, the first ones; None: all.

    Returns:
        Number of pictures.

    Raises:
        ConfigError: the folder is in use or cannot be written, or a class cannot be the name of a folder.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"the folder must be new or empty, got `{folder}` (command line). Name another one.")
    wrong = [name for name in domains[0].class_names if "/" in name or "\0" in name or name in ("", ".", "..")]
    if wrong:
        raise ConfigError(f"a class must be able to name a folder, got `{wrong[0]}` (dataset). Rename the class.")
    count = 0
    try:
        for domain in domains:
            for number, kind in enumerate(domain.class_names):
                here = np.flatnonzero(domain.labels == number)[:limit]
                inside = folder / domain.name / kind
                if len(here):
                    inside.mkdir(parents=True)
                for position in here.tolist():
                    pixels = _pixels(domain, position)
                    kept = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
                    Image.fromarray(kept).save(inside / f"{position:06}.png")
                    count += 1
    except OSError as error:
        where = os.fspath(error.filename or folder)
        raise ConfigError(
            f"the folder must be writable, got {error.strerror or error} for `{where}` (command line). Name another."
        ) from error
    return count


def _pixels(domain: Domain, position: int) -> UInt8[np.ndarray, "H W _"]:
    at = np.array([position], dtype=np.int64)
    fitted: np.ndarray
    (fitted,) = domain.fitted(at) if isinstance(domain, PixelDomain) else map(as_picture, domain.checked_images(at))
    return visible(fitted)


def visible(pixels: UInt8[np.ndarray, "H W _"]) -> UInt8[np.ndarray, "H W _"]:
    """Pixels of two channels as red and green; others as they are."""
    return np.dstack([pixels, np.zeros_like(pixels[:, :, :1])]) if pixels.shape[2] == 2 else pixels


def as_picture(image: np.ndarray) -> UInt8[np.ndarray, "H W _"]:
    """A normalised image (C, H, W) as bytes from its darkest to its brightest value, one channel or three.

    >>> as_picture(np.array([[[-1.0, 0.0, 3.0]]], dtype=np.float32)).tolist()
    [[[0], [64], [255]]]
    """
    planes = image[:3] if len(image) >= 3 else image[:1]
    low, high = float(np.nanmin(planes)), float(np.nanmax(planes))
    scaled = (planes - low) * (255 / (high - low) if high > low else 0.0)
    return np.rint(np.nan_to_num(scaled)).astype(np.uint8).transpose(1, 2, 0)
