"""A domain of pictures on disk: they are decoded when a batch asks for them, and bad ones are dealt with.

Shape suffixes: B batch, h and w of a picture in its file, H = W = `image_size`, M pictures of a domain.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.data.errors import MalformedDataError
from difc_ray.data.family import OnBadImage
from difc_ray.data.image_folder.decoding import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    BadImage,
    decode,
    decode_fitted,
    shown,
)
from difc_ray.data.image_folder.index import Index, Part
from difc_ray.data.image_folder.listing import WHERE
from difc_ray.data.image_folder.walk import is_inside
from difc_ray.data.partition import validation_out_of
from difc_ray.data.pixels import PixelDomain
from difc_ray.data.splits import SPLITS, Split
from difc_ray.determinism import generator

log = logging.getLogger(__name__)

Decoder = Callable[[int], UInt8[np.ndarray, "h w 3"]]
"""Position -> its picture; raises :class:`BadImage`."""


class ImageDomain(PixelDomain):
    """The pictures of one domain, decoded anew whenever they are asked for.

    A file that gives no picture is an error, or is replaced by the next picture of the same class in the same split
    (by position; after the last comes the first): a function of the position alone, so that runs, workers and
    replacements agree. Its label stays right.

    Args:
        name: name of the domain.
        index: all pictures of the root.
        side: height and width in pixels.
        seed: decides the splits where nobody gave them, and which pictures of a given train split are validation.
        on_bad_image: ``raise`` or ``skip``.
        follow_links: whether links may lead out of the root.
        max_pixels: largest width × height of a file.
    """

    reads_files = True

    def __init__(
        self, name: str, index: Index, side: int, seed: int, *,
        on_bad_image: OnBadImage = "raise", follow_links: bool = False, max_pixels: int = MAX_PIXELS,
    ) -> None:  # fmt: skip
        part = index.parts[name]
        splits = given_splits(part, generator(seed, "split", name))
        shape = (3, side, side)
        super().__init__(
            name, index.class_names, shape, part.labels, seed, splits=splits, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
        self._part, self._root, self._side = part, index.root, side
        self._real_root = os.path.realpath(index.root)
        self._on_bad_image, self._follow_links, self._max_pixels = on_bad_image, follow_links, max_pixels

    def pixels_at(self, position: int, enough: int | None = None) -> UInt8[np.ndarray, "h w 3"]:
        """The picture as :func:`decode` gives it; that of another position where its own is bad.

        Raises:
            MalformedDataError: a file gives no picture, and `on_bad_image` is ``raise``; or all of its class and split
                are bad.
        """
        return self._good(position, lambda at: decode(self._path(at), self._max_pixels, enough))

    def fitted(self, indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W 3"]:
        """Pictures resized while they are decoded, as :func:`decode_fitted` says.

        Raises:
            MalformedDataError: as :meth:`pixels_at`.
        """
        pictures = np.empty((len(indices), self._side, self._side, 3), dtype=np.uint8)
        for picture, position in zip(pictures, indices.tolist(), strict=True):
            picture[:] = self._good(position, self._fitted)
        return pictures

    def path_of(self, position: int) -> str:
        """Path of a picture below the root, escaped for people."""
        return shown(self._part.files[position])

    def fault(self, position: int) -> str:
        """Why the file at a position gives no picture; empty: it does."""
        try:
            self._fitted(position)
        except BadImage as bad:
            return bad.reason
        return ""

    def fingerprint(self) -> str:
        """Hex SHA-256 of name, classes, shape, and of every picture path, size in bytes, label and given split.

        Differs from other datasets': the pixels are not read, which would take as long as an epoch. A file that is
        overwritten by one of exactly the same size goes unnoticed.
        """
        digest = self.identity()
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self._part.sizes.astype("<i8").tobytes())
        digest.update(self._part.splits.astype("<i1").tobytes())
        digest.update(b"\0".join(os.fsencode(path) for path in self._part.files))
        return digest.hexdigest()

    def _good(self, position: int, decoded: Decoder) -> UInt8[np.ndarray, "h w 3"]:
        """The picture at a position, or the one that stands in for it."""
        if position in self.replacements:
            return decoded(self.replacements[position])
        try:
            return decoded(position)
        except BadImage as bad:
            if self._on_bad_image == "raise":
                what = "an image file must be one that can be read"
                got = f"`{self.path_of(position)}`, {bad.reason}"
                remedy = (
                    "Repair or remove it, or write `on_bad_image=skip`; `difc-ray data check` lists all such files."
                )
                raise MalformedDataError(what, got, f"{WHERE}, domain `{self.name}`", remedy) from bad
            return self._next_good(position, decoded, bad.reason)

    def _next_good(self, position: int, decoded: Decoder, reason: str) -> UInt8[np.ndarray, "h w 3"]:
        """The next good picture of the same class and split."""
        peers = self._peers(position)
        at = int(np.searchsorted(peers, position))
        for other in [*peers[at + 1 :].tolist(), *peers[:at].tolist()]:
            try:
                picture = decoded(other)
            except BadImage:
                continue
            if not self.replacements:
                log.warning(
                    "domain `%s` skips image files that cannot be read, the first is `%s`, %s; "
                    "`difc-ray data check` lists all", self.name, self.path_of(position), reason,
                    extra={"event": "bad images"},
                )  # fmt: skip
            self.replacements[position] = other
            return picture
        kind = self.class_names[self.labels[position]]
        what = "a class must have at least one readable image in each split that it occurs in"
        got = f"none of {len(peers)} of class `{kind}`, among them `{self.path_of(position)}`, {reason}"
        raise MalformedDataError(what, got, f"{WHERE}, domain `{self.name}`", "Repair or remove these files.")

    def _peers(self, position: int) -> Int[np.ndarray, " _"]:
        """Sorted positions of the same class and split, this one included."""
        mine = next(split for split in SPLITS if _holds(self.split_indices(split), position))
        inside = self.split_indices(mine)
        same = self.labels[inside] == self.labels[position]
        peers: Int[np.ndarray, " _"] = inside[same]
        return peers

    def _fitted(self, position: int) -> UInt8[np.ndarray, "H W 3"]:
        return decode_fitted(self._path(position), self._side, self._max_pixels)

    def _path(self, position: int) -> str:
        """The file at a position, if it may be opened."""
        path = os.path.join(self._root, self._part.files[position])
        if (
            not self._follow_links
            and (self._part.listed or os.path.islink(path))
            and not is_inside(path, self._real_root)
        ):
            if not os.path.exists(path):
                raise BadImage("a link to nothing" if os.path.islink(path) else "no such file")
            raise BadImage("a path out of `root`; `dataset_options.follow_links=true` allows it")
        return path


def given_splits(part: Part, rng: np.random.Generator) -> dict[Split, Int[np.ndarray, " _"]] | None:
    """The splits that a list or manifest gives; None: none.

    Where no validation is given it is taken out of train, in the usual proportion of the two and by class.
    """
    if len(part.splits) == 0 or part.splits[0] < 0:
        return None
    splits: dict[Split, Int[np.ndarray, " _"]] = {
        split: np.flatnonzero(part.splits == number).astype(np.int64) for number, split in enumerate(SPLITS)
    }
    if len(splits["val"]) == 0:
        splits["train"], splits["val"] = validation_out_of(part.labels, splits["train"], rng)
    return splits


def _holds(sorted_positions: Int[np.ndarray, " _"], position: int) -> bool:
    at = int(np.searchsorted(sorted_positions, position))
    return at < len(sorted_positions) and int(sorted_positions[at]) == position
