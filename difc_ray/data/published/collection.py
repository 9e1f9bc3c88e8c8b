"""A published collection of small pictures in memory, with its publisher's train and test parts, and domains of it.

Shape suffixes: N pictures of a collection (a *row* each: those of train first, then those of test), h and w of a
picture, C its channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Int, UInt8

from difc_ray.data.pixels import PixelDomain
from difc_ray.data.published.shifts import Shift
from difc_ray.data.splits import Split

N_CLASSES: Final = 10
_CHUNK: Final = 2048


@dataclass(frozen=True, kw_only=True, eq=False)
class Collection:
    """Pictures and labels.

    Args:
        train: (n, h, w, C) bytes.
        test: likewise, of the same size.
        train_labels: (n,) class numbers.
        test_labels: likewise.
    """

    train: UInt8[np.ndarray, "_ h w C"]
    test: UInt8[np.ndarray, "_ h w C"]
    train_labels: Int[np.ndarray, " _"]
    test_labels: Int[np.ndarray, " _"]

    def __len__(self) -> int:
        return len(self.train) + len(self.test)

    @cached_property
    def labels_N(self) -> Int[np.ndarray, " N"]:
        """Class numbers by row."""
        return np.concatenate([self.train_labels, self.test_labels]).astype(np.int64)

    def is_train(self, rows: Int[np.ndarray, " M"]) -> Bool[np.ndarray, " M"]:
        """Which rows are of the publisher's train part."""
        return rows < len(self.train)

    def picture(self, row: int) -> UInt8[np.ndarray, "h w C"]:
        """One picture; nobody writes into it."""
        n = len(self.train)
        picture: UInt8[np.ndarray, "h w C"] = self.train[row] if row < n else self.test[row - n]
        return picture

    def name_of(self, row: int) -> str:
        """What a person calls a row."""
        n = len(self.train)
        return f"train picture {row}" if row < n else f"test picture {row - n}"

    def digest(self, rows: Int[np.ndarray, " M"]) -> str:
        """Hex SHA-256 of the pictures of sorted rows and of their labels, train and test apart."""
        digest = hashlib.sha256(self.labels_N[rows].astype("<i8").tobytes())
        for chunk in self._chunks(rows):
            digest.update(f"{chunk.shape}".encode())
            digest.update(np.ascontiguousarray(chunk).tobytes())
        return digest.hexdigest()

    def _chunks(self, rows: Int[np.ndarray, " M"]) -> Iterator[UInt8[np.ndarray, "_ h w C"]]:
        inside = self.is_train(rows)
        for part, chosen in ((self.train, rows[inside]), (self.test, rows[~inside] - len(self.train))):
            for start in range(0, len(chosen), _CHUNK):
                yield part[chosen[start : start + _CHUNK]]


class ShiftedDomain(PixelDomain):
    """Rows of a collection, each shifted when a batch asks for it; position i is the i-th of the rows.

    Args:
        name: unique in its dataset.
        class_names: names by class number.
        image_shape: (C, H, W) of the images.
        collection: where the pictures are from.
        rows: (M,) sorted rows of the collection.
        seed: seed of the run.
        shift: what is done to each picture.
        splits: sorted positions by split. Positions in none of them count for ``all`` only.
    """

    def __init__(
        self, name: str, class_names: Sequence[str], image_shape: tuple[int, int, int], collection: Collection,
        rows: Int[np.ndarray, " M"], seed: int, shift: Shift, splits: Mapping[Split, Int[np.ndarray, " _"]],
    ) -> None:  # fmt: skip
        super().__init__(name, class_names, image_shape, collection.labels_N[rows], seed, splits=splits)
        self.rows = rows
        self._collection, self._shift = collection, shift

    def pixels_at(self, position: int, enough: int | None = None) -> UInt8[np.ndarray, "h w C"]:
        """The shifted picture in the collection's size."""
        row, channels = int(self.rows[position]), self.image_shape[0]
        picture = self._shift.applied(self._collection.picture(row), row)
        return picture if picture.shape[2] == channels else np.repeat(picture, channels, axis=2)

    def path_of(self, position: int) -> str:
        """The number of a picture in its collection."""
        return self._collection.name_of(int(self.rows[position]))

    def fingerprint(self) -> str:
        """Hex SHA-256 of name, classes, shape, published pictures and labels, and of what the shift does to them.

        Differs from other datasets': the pictures are not shifted for it, which would take as long as an epoch.
        """
        digest = self.identity()
        digest.update(self.rows.astype("<i8").tobytes())
        digest.update(self._collection.digest(self.rows).encode())
        digest.update(self._shift.identity())
        return digest.hexdigest()
