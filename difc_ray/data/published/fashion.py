"""The `fashion` dataset: 70,000 articles of clothing in four domains, long-tailed on purpose, offline.

==========  ==================================================================================================
domain      each article, 28×28
==========  ==================================================================================================
plain       as FashionMNIST has it: bright on black
photo       in front of a photo patch
rotated     turned by an angle of its own, uniform in ±75°
sketch      its edges, dark on white
==========  ==================================================================================================

FashionMNIST's 70,000 articles are dealt to the domains, 17,500 each, 1,750 of every class; no article is in two of
them. Of these, 2,500 are of the publisher's test part and are our test; validation is taken out of the others by class.
Then the train split, and nothing else, is thinned to a long tail: class c keeps n·imbalance^(rank_c / 9) of its n
articles. What is thinned away belongs to no split, but still to the domain as a whole, on which a held-out domain is
evaluated: so a target is balanced whatever the tail of the sources. The ranks are the same in all domains.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int

from difc_ray.data.family import DATASETS
from difc_ray.data.partition import equal_parts, long_tailed, subset, validation_out_of
from difc_ray.data.photos import random_places
from difc_ray.data.published.collection import N_CLASSES, Collection, ShiftedDomain
from difc_ray.data.published.family import SIDE, PublishedFamily, PublishedOptions
from difc_ray.data.published.files import open_collection
from difc_ray.data.published.readers import READERS
from difc_ray.data.published.shifts import AsPublished, BeforePhoto, Shift, Sketched, Turned
from difc_ray.data.splits import Split
from difc_ray.determinism import generator
from difc_ray.errors import ConfigError
from difc_ray.options import Share

PACKAGE: Final = "dataset-fashion-mnist"
PACKAGE_FOLDER: Final = Path("/usr/share/datasets/fashion-mnist")
"""Debian's package of FashionMNIST, and where it puts the files."""

CLASS_NAMES: Final = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
DOMAINS: Final = ("plain", "photo", "rotated", "sketch")
CONTENT_SEED: Final = 3
"""Seed of everything that decides content; a constant, so that the dataset is one and the same."""

MAX_TURN_DEG: Final = 75.0


@dataclass(frozen=True, kw_only=True)
class FashionOptions(PublishedOptions):
    """Options of `fashion`."""

    imbalance: Share = 0.1
    """Articles of the rarest class per article of the most frequent one in a train split, in (0, 1]; 1: balanced."""


@DATASETS.register("fashion", options=FashionOptions)
class Fashion(PublishedFamily):
    """Articles of clothing.

    Args:
        options: :class:`FashionOptions`.
        root: folder with the four files, packed or not, or with torchvision's ``FashionMNIST/raw``; None: where
            Debian's package `dataset-fashion-mnist` puts them.
        seed: decides validation, and which articles of a class the tail keeps.

    Raises:
        ConfigError: an option is unknown or has a wrong value.

    Source: Xiao et al. 2017 (FashionMNIST); the profile of the tail is that of Cao et al. 2019 (LDAM).
    """

    description = "articles of clothing: plain, before photos, rotated, as sketches; train splits are long-tailed"
    class_names = CLASS_NAMES
    options: FashionOptions
    domains = DOMAINS

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        super().__init__(options, root, seed)
        if self.options.download and root is None:
            raise ConfigError(
                f"`dataset_options.download` needs a folder, got no `root` ({self.where}). Write `root=PATH`."
            )

    def load(self, domain_name: str) -> ShiftedDomain:
        """One domain; the articles are read once in a process.

        Raises:
            MalformedDataError: the files are missing or damaged.
        """
        self.check_domain(domain_name)
        articles = self._articles()
        rows = rows_of(articles, domain_name, self.options.limit)
        shift = shift_of(domain_name, len(articles))
        splits = self._splits(domain_name, articles.labels_N[rows], articles.is_train(rows))
        return ShiftedDomain(
            domain_name, CLASS_NAMES, self.image_shape, articles, rows, self.seed, shift, splits
        )  # fmt: skip

    def _articles(self) -> Collection:
        if self.root is not None:
            reader, folder = READERS["fashion"], self.root.expanduser()
            return open_collection(reader, folder, self.where, download=self.options.download)
        remedy = f"`apt-get install {PACKAGE}` puts them there. Or name their folder, `root=PATH`. Or write "
        remedy += "`root=PATH dataset_options.download=true`, and"
        return open_collection(READERS["fashion-package"], PACKAGE_FOLDER, self.where, download=False, remedy=remedy)

    def _splits(
        self, name: str, labels_M: Int[np.ndarray, " M"], is_train_M: Bool[np.ndarray, " M"]
    ) -> dict[Split, Int[np.ndarray, " _"]]:
        """Validation out of the publisher's train part, then the tail."""
        given = np.flatnonzero(is_train_M).astype(np.int64)
        train, val = validation_out_of(labels_M, given, generator(self.seed, "split", name))
        kept = long_tailed(labels_M, train, self.options.imbalance, ranks(), generator(self.seed, "tail", name))
        return {"train": kept, "val": val, "test": np.flatnonzero(~is_train_M).astype(np.int64)}


def rows_of(articles: Collection, name: str, limit: int | None) -> Int[np.ndarray, " M"]:
    """Sorted rows of a domain: its part of the publisher's train and its part of the test, thinned in proportion."""
    n_train = len(articles.train)
    parts = []
    for start, labels in ((0, articles.train_labels), (n_train, articles.test_labels)):
        dealt = equal_parts(labels, len(DOMAINS), generator(CONTENT_SEED, f"part-{start}"))
        rows = dealt[DOMAINS.index(name)]
        if limit is not None:
            share = limit * len(labels) / len(articles)
            rows = rows[subset(labels[rows], round(share), generator(CONTENT_SEED, f"limit-{start}", name))]
        parts.append(rows + start)
    return np.concatenate(parts)


def shift_of(name: str, count: int) -> Shift:
    """What a domain does to its articles.

    Args:
        name: of the domain.
        count: rows of the collection.
    """
    rng = generator(CONTENT_SEED, "shift", name)
    if name == "photo":
        return BeforePhoto(places_N3=random_places(rng, count, SIDE))
    if name == "rotated":
        return Turned(degrees_N=rng.uniform(-MAX_TURN_DEG, MAX_TURN_DEG, size=count))
    return Sketched() if name == "sketch" else AsPublished()


def ranks() -> Int[np.ndarray, " 10"]:
    """Rank of each class in the tail, 0 the most frequent: one permutation for all domains."""
    return generator(CONTENT_SEED, "ranks").permutation(N_CLASSES).astype(np.int64)
