"""The `torchvision_digits` dataset: MNIST, USPS and SVHN in full, and what others made of MNIST, with one class map.

============================  ==========  ===========================================================================
domain                        examples    made of
============================  ==========  ===========================================================================
mnist                         70,000      MNIST, bright on black
usps                          9,298       USPS, 16×16, enlarged
svhn                          99,289      SVHN, 32×32 in colour, resized (its `extra` part is left out)
mnistm                        70,000      all of MNIST, ``|photo patch − digit|``
rotated_0, _15, … _75         11,667      a sixth of MNIST each, turned counter-clockwise by so many degrees
colored_90, _80, _10          23,333      a third of MNIST each, in ink of ten colours; see below
============================  ==========  ===========================================================================

*colored_P*: every digit has a colour of its own; an example is drawn in its digit's colour with probability P %, and
else in one of the nine others, all equally likely. So with 90 and 80 colour tells the digit almost as well as shape
does, and with 10 it tells nothing. (The binary Colored MNIST of the literature, with flipped labels, is
`colored_mnist`.)

Test is the publisher's; validation is taken out of train by class. A digit of MNIST is in the same split in every
domain that has it. `mnist` and `mnistm` share all digits; the rotated domains are disjoint, and so are the colored
ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.data.digits import CLASS_NAMES
from difc_ray.data.family import DATASETS
from difc_ray.data.partition import subset, validation_out_of
from difc_ray.data.photos import random_places
from difc_ray.data.published.collection import N_CLASSES, Collection, ShiftedDomain
from difc_ray.data.published.family import SIDE, PublishedFamily, PublishedOptions
from difc_ray.data.published.files import open_collection
from difc_ray.data.published.readers import READERS
from difc_ray.data.published.shifts import AsPublished, Inked, PhotoDifference, Shift, Turned
from difc_ray.data.splits import Split
from difc_ray.determinism import generator

CONTENT_SEED: Final = 4
"""Seed of everything that decides content; a constant, so that the dataset is one and the same."""

ANGLES_DEG: Final = (0, 15, 30, 45, 60, 75)
PERCENTS: Final = (90, 80, 10)
COLOURS: Final = (
    (255, 0, 0), (0, 255, 0), (64, 96, 255), (255, 255, 0), (255, 0, 255),
    (0, 255, 255), (255, 128, 0), (160, 64, 255), (255, 160, 160), (255, 255, 255),
)  # fmt: skip
"""Ink of each digit in the colored domains: red, green, blue."""

ROTATED: Final = {f"rotated_{angle}": angle for angle in ANGLES_DEG}
COLORED: Final = {f"colored_{percent}": percent for percent in PERCENTS}
DOMAINS: Final = ("mnist", "usps", "svhn", "mnistm", *ROTATED, *COLORED)


@DATASETS.register("torchvision_digits", options=PublishedOptions)
class TorchvisionDigits(PublishedFamily):
    """Ten digits in thirteen domains.

    Args:
        options: :class:`PublishedOptions`.
        root: folder with the files as torchvision lays them out; only those of the domains in use are needed.
        seed: decides which examples of train are validation.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
        MalformedDataError: there is no `root`.

    Source: mnistm Ganin & Lempitsky 2015, section 4; rotated_* DomainBed's RotatedMNIST (Ghifary et al. 2015);
        colored_* after Arjovsky et al. 2019.
    Differs from the source: patches of mnistm come from two photographs. The rotated domains keep MNIST's own test
        part, where DomainBed draws one. The colored domains have ten classes and colours, and labels without noise.
    """

    description = "MNIST, USPS and SVHN in full, photo-blended, rotated and coloured: root=PATH as torchvision has it"
    class_names = CLASS_NAMES
    domains = DOMAINS

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        super().__init__(options, root, seed)
        self._folder = self.needed_root("the files", "Write `root=PATH`; it is that of torchvision.")

    def load(self, domain_name: str) -> ShiftedDomain:
        """One domain; a collection is read once in a process.

        Raises:
            MalformedDataError: its files are missing or damaged.
        """
        self.check_domain(domain_name)
        source = domain_name if domain_name in READERS else "mnist"
        collection = open_collection(READERS[source], self._folder, self.where, download=self.options.download)
        rows = rows_of(collection, domain_name)
        if limit := self.options.limit:
            rows = rows[subset(collection.labels_N[rows], limit, generator(CONTENT_SEED, "limit", source))]
        shift, splits = shift_of(domain_name, collection), splits_of(collection, rows, source, self.seed)
        return ShiftedDomain(
            domain_name, CLASS_NAMES, self.image_shape, collection, rows, self.seed, shift, splits
        )  # fmt: skip


def rows_of(collection: Collection, name: str) -> Int[np.ndarray, " M"]:
    """Sorted rows of a domain: all, or every k-th in a random order, as DomainBed deals them."""
    group = next((group for group in (ROTATED, COLORED) if name in group), None)
    if group is None:
        return np.arange(len(collection), dtype=np.int64)
    shuffled = generator(CONTENT_SEED, f"parts-{len(group)}").permutation(len(collection))
    return np.sort(shuffled[list(group).index(name) :: len(group)]).astype(np.int64)


def splits_of(
    collection: Collection, rows: Int[np.ndarray, " M"], source: str, seed: int
) -> dict[Split, Int[np.ndarray, " _"]]:
    """Positions by split. Validation is drawn among all of the collection, so that its domains agree on it."""
    every = np.arange(len(collection.train), dtype=np.int64)
    _, val = validation_out_of(collection.labels_N, every, generator(seed, "split", source))
    is_val, is_train = np.isin(rows, val), collection.is_train(rows)
    chosen = {"train": is_train & ~is_val, "val": is_val, "test": ~is_train}
    return {split: np.flatnonzero(chosen[split]).astype(np.int64) for split in ("train", "val", "test")}


def shift_of(name: str, collection: Collection) -> Shift:
    """What a domain does to its digits."""
    rng = generator(CONTENT_SEED, "shift", name)
    if name == "mnistm":
        return PhotoDifference(places_N3=random_places(rng, len(collection), SIDE))
    if name in ROTATED:
        return Turned(degrees_N=np.full(len(collection), float(ROTATED[name])))
    if name in COLORED:
        return Inked(colours_N3=drawn_colours(collection.labels_N, COLORED[name] / 100, rng))
    return AsPublished()


def drawn_colours(
    labels_N: Int[np.ndarray, " N"], probability: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "N 3"]:
    """A colour for each label: its own with a probability, else one of the others, all equally likely."""
    others = (labels_N + rng.integers(1, N_CLASSES, size=len(labels_N))) % N_CLASSES
    own = rng.random(len(labels_N)) < probability
    return np.array(COLOURS, dtype=np.uint8)[np.where(own, labels_N, others)]
