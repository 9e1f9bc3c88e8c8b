"""A domain made of some rows of a published collection by a shift."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.data.pixels import PixelDomain
from difc_ray.data.published.collection import Collection
from difc_ray.data.published.shifts import Shift
from difc_ray.data.splits import Split


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
        digest = hashlib.sha256(repr((self.name, self.class_names, self.image_shape)).encode())
        digest.update(self.rows.astype("<i8").tobytes())
        digest.update(self._collection.digest(self.rows).encode())
        digest.update(self._shift.identity())
        return digest.hexdigest()
