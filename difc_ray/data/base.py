"""What a domain is: labelled examples, fixed splits, and batches as a pure function of (seed, domain, step).

Shape suffixes: B batch, C channels, H height, W width, M examples of a domain.

A dataset file implements :class:`Domain` (``images_at`` and the labels) and :class:`DatasetFamily` (which domains
there are), and registers the family in :data:`DATASETS`. Nothing here keeps the state of an iterator: what is cached is
the value of a pure function, so a domain that is rebuilt in another process gives the same batches.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from difc_ray.data.augmentation import Augmentation, AugmentationError
from difc_ray.data.order import NaturalOrder, Order
from difc_ray.data.splits import FRACTIONS, Split, stratified_splits
from difc_ray.determinism import generator
from difc_ray.errors import ConfigError, DataError
from difc_ray.registry import Registry, did_you_mean

EvaluationSplit = Literal["train", "val", "test", "all"]
OnBadImage = Literal["raise", "skip"]

_HASH_CHUNK: Final = 512


class MalformedDataError(DataError):
    """A dataset that is not made as datasets must be.

    Args:
        what: the rule that is broken.
        got: what was found.
        where: dataset and domain.
        remedy: how to fix it.
    """

    def __init__(self, what: str, got: str, where: str, remedy: str) -> None:
        super().__init__(f"{what}, got {got} ({where}). {remedy}")
        self.parts = (what, got, where, remedy)

    def __reduce__(self) -> tuple[type[MalformedDataError], tuple[str, str, str, str]]:
        return type(self), self.parts

    def at(self, where: str) -> MalformedDataError:
        """The same, with a place that says more."""
        what, got, _, remedy = self.parts
        return MalformedDataError(what, got, where, remedy)


class ImageSizeError(ConfigError):
    """A dataset does not make images of the size that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some examples of one domain.

    Args:
        images: (B, C, H, W) float32, normalised.
        labels: (B,) int64 class numbers.
        indices: (B,) int64 positions in the domain.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]
    indices: Int[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Some examples on their way from where they are made, perhaps another process, to a :class:`Batch`.

    Args:
        images: (B, C, H, W) float32, normalised; or (B, H, W, C) bytes, where :meth:`Domain.finished` normalises.
        labels: (B,) int64 class numbers.
        indices: (B,) int64 positions in the domain.
        replacements: bad examples met on the way, position -> position of the one in its place.
    """

    images: Tensor
    labels: Int[Tensor, " B"]
    indices: Int[np.ndarray, " B"]
    replacements: Mapping[int, int]


class Domain(ABC):
    """A labelled set of examples with one distribution.

    Args:
        name: unique in its dataset.
        class_names: names by class number, the same for all domains of a dataset.
        image_shape: (C, H, W).
        labels: (M,) class numbers of all examples.
        seed: decides the splits (not the content).
        fractions: shares of train, val and test, sum 1.
        splits: sorted positions by split, where the dataset brings its own; None: drawn, every class with its share.

    Raises:
        DataError: the labels are not class numbers.
    """

    reads_files: ClassVar[bool] = False
    """Whether images are read from disk when they are asked for; such domains are checked by several processes."""

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        image_shape: tuple[int, int, int],
        labels: npt.ArrayLike,
        seed: int,
        fractions: Sequence[float] = FRACTIONS,
        splits: Mapping[Split, Int[np.ndarray, " _"]] | None = None,
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.image_shape = image_shape
        self.labels = self._class_numbers(np.asarray(labels))
        if splits is None:
            splits = stratified_splits(self.labels, fractions, generator(seed, "split", name))
        self._splits = dict(splits)
        self._natural: dict[int, NaturalOrder] = {}
        self.replacements: dict[int, int] = {}

    @abstractmethod
    def images_at(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B C H W"]:
        """Normalised float32 images at positions of the domain; a pure function, a fresh array each time."""

    def path_of(self, position: int) -> str:
        """What a person calls the example at a position: its file, or its number."""
        return f"example {position}"

    def fault(self, position: int) -> str:
        """Why the example at a position cannot be used, as it goes on after its name; empty: it can.

        Raises:
            DataError: the domain is not made as domains must be.
        """
        image = self.checked_images(np.array([position], dtype=np.int64))
        return "" if np.isfinite(image).all() else "numbers that are not finite"

    def replaced(self, split: EvaluationSplit) -> int:
        """How many examples of a split were met so far that others had to stand in for."""
        return int(np.isin(self.split_indices(split), list(self.replacements)).sum())

    def split_indices(self, split: EvaluationSplit) -> Int[np.ndarray, " _"]:
        """Sorted positions that belong to a split (``all``: every position)."""
        return np.arange(len(self.labels), dtype=np.int64) if split == "all" else self._splits[split]

    def size(self, split: EvaluationSplit = "all") -> int:
        """Number of examples in a split."""
        return len(self.labels) if split == "all" else len(self._splits[split])

    def class_counts(self, split: EvaluationSplit = "all") -> Int[np.ndarray, " _"]:
        """Number of examples of each class in a split, (n_classes,) int64."""
        return np.bincount(self.labels[self.split_indices(split)], minlength=len(self.class_names))

    def batch(
        self, seed: int, step: int, batch_size: int, order: Order | None = None,
        augmentation: Augmentation | None = None,
    ) -> Batch:  # fmt: skip
        """The training batch of a step: a pure function of the domain and the arguments.

        The order is a sequence of positions without an end, and step t takes those from t·B to (t + 1)·B.

        Args:
            seed: seed of the run.
            step: >= 0.
            batch_size: B >= 1.
            order: the sequence; None: one random permutation of the train split per epoch, end to end, so that every
                example is seen once per epoch.
            augmentation: what is done to each picture; None: nothing.
        """
        return self.finished(self.draw(seed, step, batch_size, order, augmentation))

    def draw(
        self, seed: int, step: int, batch_size: int, order: Order | None = None,
        augmentation: Augmentation | None = None, part: slice | None = None,
    ) -> Drawn:  # fmt: skip
        """The part of :meth:`batch` that another process may do; of some of its places, if they are given."""
        assert step >= 0, step
        assert batch_size >= 1, batch_size
        start, places = step * batch_size, part or slice(0, batch_size)
        indices = (order or self._natural_order(seed)).positions(start, start + batch_size)[places]
        start += places.start
        if augmentation is None:
            return self.drawn(indices)
        return self.drawn_augmented(indices, augmentation, seed, start)

    def drawn(self, indices: Int[np.ndarray, " B"]) -> Drawn:
        """Examples at given positions."""
        return self._drawn(torch.from_numpy(self.checked_images(indices)), indices)

    def drawn_augmented(
        self, indices: Int[np.ndarray, " B"], augmentation: Augmentation, seed: int, first: int
    ) -> Drawn:
        """The same with augmented images.

        Args:
            indices: positions.
            augmentation: what is done to each picture.
            seed: seed of the run.
            first: number of the first of them in the order; with the seed and the domain it decides the random numbers
                of an image, so that an example that comes twice is not altered twice in the same way.

        Raises:
            AugmentationError: the domain gives no pixels, or the pipeline does not suit a picture.
        """
        raise AugmentationError(
            "`augment` needs a dataset of pictures",
            f"one that gives numbers, a `{type(self).__qualname__}`",
            "Write `augment=none`, or make the domain a `difc_ray.data.PixelDomain`.",
            f"domain `{self.name}`",
        )

    def finished(self, drawn: Drawn, device: torch.device | None = None) -> Batch:
        """What was drawn as a batch on a device; remembers what had to be replaced."""
        self.replacements.update(drawn.replacements)
        return Batch(
            images=self._normalised(_moved(drawn.images, device)),
            labels=_moved(drawn.labels, device),
            indices=drawn.indices,
        )

    def evaluation_batches(self, split: EvaluationSplit, batch_size: int = 256) -> Iterator[Batch]:
        """The examples of a split in order of position, each once, never augmented; the last batch may be smaller."""
        indices = self.split_indices(split)
        for start in range(0, len(indices), batch_size):
            yield self.finished(self.drawn(indices[start : start + batch_size]))

    def fingerprint(self) -> str:
        """Hex SHA-256 of the content: name, classes, shape, labels and normalised images (splits excluded)."""
        digest = hashlib.sha256(repr((self.name, self.class_names, self.image_shape)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        for start in range(0, len(self.labels), _HASH_CHUNK):
            indices = np.arange(start, min(start + _HASH_CHUNK, len(self.labels)), dtype=np.int64)
            digest.update(self.checked_images(indices).astype("<f4").tobytes())
        return digest.hexdigest()

    def checked_images(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B C H W"]:
        """What :meth:`images_at` returns, if it is what it must be.

        Raises:
            DataError: it is no float32 array of the right shape.
        """
        images, expected = self.images_at(indices), (len(indices), *self.image_shape)
        dtype, shape = getattr(images, "dtype", None), tuple(getattr(images, "shape", ()))
        if isinstance(images, np.ndarray) and dtype == np.float32 and shape == expected:
            return images
        kind = "an array" if isinstance(images, np.ndarray) else f"a {type(images).__qualname__}"
        raise MalformedDataError(
            f"`images_at` must return a float32 array of NumPy with the shape (number of indices, channels, height, "
            f"width), here {expected}",
            f"{kind} of {dtype} with the shape {shape}",
            f"domain `{self.name}`",
            "Turn the images into that, such as by `.transpose(0, 3, 1, 2).astype(np.float32) / 255` from bytes with "
            "channels last.",
        )

    def _class_numbers(self, labels: np.ndarray) -> Int[np.ndarray, " M"]:
        """The labels as int64."""
        n_classes, found = len(self.class_names), ""
        if labels.ndim != 1 or labels.dtype.kind not in "biuf":
            found = f"an array of {labels.dtype} with the shape {labels.shape}"
        else:
            wrong = labels[~np.isin(labels, np.arange(n_classes))]
            found = f"{wrong[0]} among them" if len(wrong) else ""
        if found:
            raise MalformedDataError(
                f"labels must be one class number from 0 to {n_classes - 1} for each example", found,
                f"domain `{self.name}`", "Number the classes in the order of `class_names`, from 0.",
            )  # fmt: skip
        return np.ascontiguousarray(labels, dtype=np.int64)

    def _natural_order(self, seed: int) -> NaturalOrder:
        """The natural order of the train split; that of the latest seed is kept."""
        if seed not in self._natural:
            self._natural = {seed: NaturalOrder(self._splits["train"], seed, self.name)}
        return self._natural[seed]

    def _normalised(self, images: Tensor) -> Float[Tensor, "B C H W"]:
        """What was drawn as normalised float32."""
        return images

    def _drawn(self, images: Tensor, indices: Int[np.ndarray, " B"]) -> Drawn:
        met = {int(at): self.replacements[int(at)] for at in indices if int(at) in self.replacements}
        return Drawn(images=images, labels=torch.from_numpy(self.labels[indices]), indices=indices, replacements=met)


def _moved(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor if device is None else tensor.to(device, non_blocking=True)


class DatasetFamily(ABC):
    """The domains of one dataset.

    Args:
        options: the dataset's own options from the configuration.
        root: folder with the files, None where the dataset needs none.
        seed: seed of the run; decides the splits, never the content.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """

    description: str = ""
    """One line for ``difc-ray domains``; may stay empty."""
    class_names: tuple[str, ...]
    """The classes by number, from 0."""
    image_shape: tuple[int, int, int]
    """Channels, height and width."""

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        self.options = dict(options)
        self.root = root
        self.seed = seed

    @classmethod
    def absolute_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with paths from the root of the file system: workers may run in another folder."""
        return dict(options)

    def take_image_settings(self, image_size: int | None, on_bad_image: OnBadImage) -> None:
        """Takes over the keys `image_size` and `on_bad_image`; called once, after the constructor.

        A family that can make images of any size, or that reads files, overrides this; the others have one size.

        Args:
            image_size: side in pixels; None: as the dataset likes.
            on_bad_image: what to do with an example that cannot be read.

        Raises:
            ImageSizeError: the dataset does not make images of that size.
        """
        height, width = self.image_shape[1:]
        if image_size is not None and (height, width) != (image_size, image_size):
            raise ImageSizeError(f"Its images are {height}×{width}. Leave `image_size` out.")

    @abstractmethod
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in a fixed order."""

    @abstractmethod
    def load(self, domain_name: str) -> Domain:
        """One domain.

        Raises:
            ConfigError: there is no domain of that name.
            DataError: its files are missing or unusable.
        """

    def check_domain(self, domain_name: str) -> None:
        """Refuses a name that is not among :meth:`domain_names`."""
        if domain_name not in self.domain_names():
            raise ConfigError(f"Unknown domain `{domain_name}`. {did_you_mean(domain_name, self.domain_names())}")


DATASETS: Registry[type[DatasetFamily]] = Registry("dataset")
"""Dataset families by name; :func:`difc_ray.data.open_family` makes one."""
