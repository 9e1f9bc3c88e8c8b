"""Digits drawn with matplotlib's TrueType fonts, each under a small random affine map.

Shape suffix: M digits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from difc_ray.data.shipped import shipped
from difc_ray.determinism import generator

SIDE: Final = 28
DIGITS: Final = tuple("0123456789")
FONT_DIGITS: Final = 2000
MAX_ROTATION_DEG: Final = 12.0
MAX_SHEAR: Final = 0.15
SCALES: Final = (0.85, 1.1)
MAX_SHIFT_PX: Final = 2.0
"""The random affine map of a drawn digit, each uniform in its range."""

_GLYPH_PX: Final = 20  # height of a drawn digit, that of MNIST's box
_MEASURING_PX: Final = 100.0  # font size at which glyphs are measured
_OVERSAMPLING: Final = 2  # glyphs are mapped at twice the size and then averaged, so that edges are smooth


def drawn_digits(content_seed: int) -> tuple[UInt8[np.ndarray, "M 28 28 1"], Int[np.ndarray, " M"]]:
    """2,000 digits, 200 of each class, in fonts with ordinary digits, each under a small random affine map."""
    glyphs = [_glyphs(path) for path in digit_fonts(shipped("matplotlib", "mpl-data", "fonts", "ttf"))]
    if not glyphs:
        raise OSError("no TrueType font with ordinary digits in matplotlib's folder")
    rng = generator(content_seed, "glyph", "fonts")
    labels = np.arange(FONT_DIGITS, dtype=np.int64) % 10
    drawn = [np.asarray(_mapped(glyphs[rng.integers(len(glyphs))][label], rng)) for label in labels]
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
    inks = [_ink(_font(path, _MEASURING_PX), digit) for digit in DIGITS]
    tops, bottoms = (np.array([box[side] for _, box in inks]) for side in (1, 3))
    visible = bool((bottoms > tops).all())
    different = len({(image.size, image.tobytes()) for image, _ in inks}) == len(inks)
    return visible and different and bool(np.ptp(tops) + np.ptp(bottoms) < 0.35 * (bottoms - tops).max())


def _glyphs(path: Path) -> list[Image.Image]:
    """The ten digits of a font, in the middle of an oversampled image; the tallest is as tall as MNIST's box."""
    tallest = max(box[3] - box[1] for _, box in (_ink(_font(path, _MEASURING_PX), digit) for digit in DIGITS))
    font = _font(path, _MEASURING_PX * _GLYPH_PX * _OVERSAMPLING / tallest)
    glyphs = []
    for digit in DIGITS:
        ink, _ = _ink(font, digit)
        glyph = Image.new("L", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING))
        glyph.paste(ink, ((glyph.width - ink.width) // 2, (glyph.height - ink.height) // 2))
        glyphs.append(glyph)
    return glyphs


def _mapped(glyph: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The glyph rotated, sheared, scaled and shifted at random about its middle, at 28×28."""
    angle = math.radians(rng.uniform(-MAX_ROTATION_DEG, MAX_ROTATION_DEG))
    shear, scale = rng.uniform(-MAX_SHEAR, MAX_SHEAR), rng.uniform(*SCALES)
    shift = rng.uniform(-MAX_SHIFT_PX, MAX_SHIFT_PX, size=2) * _OVERSAMPLING
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    inverse = rotation @ np.array([[1.0, shear], [0.0, 1.0]]) / scale  # Pillow asks where each output pixel comes from
    middle = np.array([glyph.width, glyph.height]) / 2
    offset = middle - inverse @ (middle + shift)
    data = (*inverse[0], offset[0], *inverse[1], offset[1])
    mapped = glyph.transform(glyph.size, Image.Transform.AFFINE, data, resample=Image.Resampling.BILINEAR)
    return mapped.reduce(_OVERSAMPLING)


def _ink(font: ImageFont.FreeTypeFont, text: str) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """The ink of a text, cropped, and its box (left, top, right, bottom); a box of zeros where there is none."""
    page = Image.new("L", (round(4 * font.size), round(6 * font.size)))
    ImageDraw.Draw(page).text((font.size, 3 * font.size), text, fill=255, font=font, anchor="ls")
    box = page.getbbox() or (0, 0, 0, 0)
    return page.crop(box), box


def _font(path: Path, size: float) -> ImageFont.FreeTypeFont:
    """The font without complex layout, which some builds of Pillow have and some have not."""
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
