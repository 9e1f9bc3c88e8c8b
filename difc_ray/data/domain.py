"""What a domain is: labelled examples, fixed splits, and batches as a pure function of (seed, domain, step).

Shape suffixes: B batch, C channels, H height, W width, M examples of a domain.

A dataset file implements :class:`Domain` (``images_at`` and the labels) and
:class:`~difc_ray.data.family.DatasetFamily` (which domains there are). Nothing here keeps the state of an iterator:
what is cached is the value of a pure function, so a domain that is rebuilt in another process gives the same batches.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from difc_ray.data.augmentation import Augmentation
from difc_ray.data.batch import Batch, RawBatch
from difc_ray.data.errors import AugmentationError, MalformedDataError
from difc_ray.data.order import NaturalOrder, Order
from difc_ray.data.splits import FRACTIONS, Split, stratified_splits
from difc_ray.determinism import generator

EvaluationSplit = Literal["train", "val", "test", "all"]
_HASH_CHUNK: Final = 512


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
    ) -> RawBatch:  # fmt: skip
        """The part of :meth:`batch` that another process may do; of some of its places, if they are given."""
        assert step >= 0, step
        assert batch_size >= 1, batch_size
        start, places = step * batch_size, part or slice(0, batch_size)
        indices = (order or self._natural_order(seed)).positions(start, start + batch_size)[places]
        start += places.start
        if augmentation is None:
            return self.drawn(indices)
        return self.drawn_augmented(indices, augmentation, seed, start)

    def drawn(self, indices: Int[np.ndarray, " B"]) -> RawBatch:
        """Examples at given positions."""
        return self._drawn(torch.from_numpy(self.checked_images(indices)), indices)

    def drawn_augmented(
        self, indices: Int[np.ndarray, " B"], augmentation: Augmentation, seed: int, first: int
    ) -> RawBatch:
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
            f"domain `{self.name}`",
            "Write `augment=none`, or make the domain a `difc_ray.data.PixelDomain`.",
        )

    def finished(self, drawn: RawBatch, device: torch.device | None = None) -> Batch:
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
        digest = self.identity()
        digest.update(self.labels.astype("<i8").tobytes())
        for start in range(0, len(self.labels), _HASH_CHUNK):
            indices = np.arange(start, min(start + _HASH_CHUNK, len(self.labels)), dtype=np.int64)
            digest.update(self.checked_images(indices).astype("<f4").tobytes())
        return digest.hexdigest()

    def identity(self) -> hashlib._Hash:
        """The beginning of every fingerprint: SHA-256 of name, classes and shape."""
        return hashlib.sha256(repr((self.name, self.class_names, self.image_shape)).encode())

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
        n_classes, fault = len(self.class_names), ""
        if labels.ndim != 1 or labels.dtype.kind not in "biuf":
            fault = f"an array of {labels.dtype} with the shape {labels.shape}"
        else:
            wrong = labels[~np.isin(labels, np.arange(n_classes))]
            fault = f"{wrong[0]} among them" if len(wrong) else ""
        if fault:
            raise MalformedDataError(
                f"labels must be one class number from 0 to {n_classes - 1} for each example", fault,
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

    def _drawn(self, images: Tensor, indices: Int[np.ndarray, " B"]) -> RawBatch:
        replaced = {int(at): self.replacements[int(at)] for at in indices if int(at) in self.replacements}
        labels = torch.from_numpy(self.labels[indices])
        return RawBatch(images=images, labels=labels, indices=indices, replacements=replaced)


def _moved(tensor: Tensor, device: torch.device | None) -> Tensor:
    return tensor if device is None else tensor.to(device, non_blocking=True)
