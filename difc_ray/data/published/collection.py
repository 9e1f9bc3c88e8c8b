"""A published collection of small pictures in memory, with the train and test parts that its publisher gave it.

Shape suffixes: N pictures of a collection (a *row* each: those of train first, then those of test), h and w of a
picture, C its channels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from jaxtyping import Bool, Int, UInt8

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
        found: UInt8[np.ndarray, "h w C"] = self.train[row] if row < n else self.test[row - n]
        return found

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
