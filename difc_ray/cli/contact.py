"""The pictures of a contact sheet: one example of each class, before and after augmentation."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from difc_ray.domains import Augmentation, Domain, PixelDomain

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
            cells.append(cell)
        else:
            cells.append([as_picture(domain.checked_images(here)[0])])
    return cells


def as_picture(image: np.ndarray) -> UInt8[np.ndarray, "H W _"]:
    """A normalised image (C, H, W) as bytes from its darkest to its brightest value, one channel or three.

    >>> as_picture(np.array([[[-1.0, 0.0, 3.0]]], dtype=np.float32)).tolist()
    [[[0], [64], [255]]]
    """
    planes = image[:3] if len(image) >= 3 else image[:1]
    low, high = float(np.nanmin(planes)), float(np.nanmax(planes))
    scaled = (planes - low) * (255 / (high - low) if high > low else 0.0)
    return np.rint(np.nan_to_num(scaled)).astype(np.uint8).transpose(1, 2, 0)
