"""The dataset family and its domains: pictures are decoded when a batch asks for them, and bad ones are dealt with.

Shape suffixes: B batch, h and w of a picture in its file, H = W = `image_size`, M pictures of a domain.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.data.base import DATASETS, DatasetFamily, MalformedDataError, OnBadImage
from difc_ray.data.image_folder.decoding import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_PIXELS,
    BadImage,
    decode,
    decode_fitted,
    shown,
)
from difc_ray.data.image_folder.index import WHERE, Index, Part, is_inside, read_index
from difc_ray.data.partition import validation_out_of
from difc_ray.data.pixels import PixelDomain
from difc_ray.data.splits import SPLITS, Split
from difc_ray.determinism import generator
from difc_ray.errors import ConfigError
from difc_ray.registry import check_option_names

log = logging.getLogger(__name__)

IMAGE_SIZE: Final = 224
"""Side in pixels where `image_size` is null: what the published backbones were trained on."""

OPTIONS: Final = ("classes", "follow_links", "manifest", "max_pixels")


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
        digest = hashlib.sha256(repr((self.name, self.class_names, self.image_shape)).encode())
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


@DATASETS.register("image_folder")
class ImageFolder(DatasetFamily):
    """Pictures on disk.

    ``root/<domain>/<class>/``, with files at any depth; or split lists ``root/<domain>_train.txt`` and ``_test.txt``;
    or a manifest. Hidden files and folders and ``__MACOSX`` are left out, and so are pictures outside a class folder.

    Args:
        options: ``manifest``: CSV or Parquet file with ``path,label,domain[,split]``; its paths are relative to `root`,
            or to its own folder without one. ``follow_links``: whether links may lead out of the root, default false.
            ``max_pixels``: largest width × height that is decoded, default Pillow's 89,478,485. ``classes``: the class
            names by number, where a manifest has numbers or another order than the natural one is wanted.
        root: the folder.
        seed: decides splits that nobody gave.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
        MalformedDataError: there is no `root`, or nothing usable in it.
    """

    description = "your own pictures: root=PATH with <domain>/<class>/ folders, split lists, or a manifest"

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        check_option_names("dataset `image_folder`", options, OPTIONS)
        super().__init__(options, root, seed)
        manifest = _text(options, "manifest")
        self._follow_links = _flag(options, "follow_links")
        self._max_pixels = _count(options, "max_pixels", MAX_PIXELS)
        file = None if manifest is None else _absolute(manifest)
        if root is None and file is None:
            remedy = "Write `root=PATH`; the layout is `PATH/<domain>/<class>/`."
            raise MalformedDataError("`root` must name the folder of the images", "null", WHERE, remedy)
        folder = Path(os.path.expanduser(root)) if root is not None else file.parent if file is not None else Path()
        self._index = read_index(folder, file, follow_links=self._follow_links, classes=_names(options, "classes"))
        self.class_names = self._index.class_names
        self.image_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
        self._on_bad_image: OnBadImage = "raise"

    @classmethod
    def absolute_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """With the absolute path of the manifest."""
        manifest = _text(options, "manifest")
        return dict(options) | ({} if manifest is None else {"manifest": str(_absolute(manifest))})

    def take_image_settings(self, image_size: int | None, on_bad_image: OnBadImage) -> None:
        """Any size will do."""
        side = image_size or IMAGE_SIZE
        self.image_shape, self._on_bad_image = (3, side, side), on_bad_image

    def domain_names(self) -> tuple[str, ...]:
        """The folders of the root with pictures in class folders, or what lists or the manifest name."""
        return tuple(self._index.parts)

    def load(self, domain_name: str) -> ImageDomain:
        """One domain; no file is opened yet."""
        self.check_domain(domain_name)
        return ImageDomain(
            domain_name, self._index, self.image_shape[1], self.seed,
            on_bad_image=self._on_bad_image, follow_links=self._follow_links, max_pixels=self._max_pixels,
        )  # fmt: skip


def _absolute(path: str) -> Path:
    return Path(os.path.expanduser(path)).absolute()


def _text(options: Mapping[str, Any], name: str) -> str | None:
    value = options.get(name)
    if value is None or (isinstance(value, str) and value.strip() and "\0" not in value):
        return value
    raise _wrong(name, "a path", value)


def _flag(options: Mapping[str, Any], name: str) -> bool:
    value = options.get(name, False)
    if not isinstance(value, bool):
        raise _wrong(name, "true or false", value)
    return value


def _count(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(name, "an integer >= 1", value)
    return value


def _names(options: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = options.get(name, ())
    texts = tuple(str(each) for each in value) if isinstance(value, list | tuple) else (None,)
    if name in options and (len(texts) < 2 or len(set(texts)) < len(texts)):
        raise _wrong(name, "a list of at least two different names", value)
    return tuple(text for text in texts if text is not None)


def _wrong(name: str, rule: str, value: object) -> ConfigError:
    return ConfigError(f"`dataset_options.{name}` must be {rule}, got {value!r} ({WHERE}). Correct it or leave it out.")
