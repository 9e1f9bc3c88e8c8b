"""MNIST, FashionMNIST, USPS and SVHN, read where their files are; the last two, and what is fetched, by torchvision.

==========  =================================  ==================================================================
collection  files below `root`                 what is checked before use
==========  =================================  ==================================================================
mnist       ``MNIST/raw/*-ubyte[.gz]``         format, shape, one label for each picture; gzip's own checksum
fashion     ``FashionMNIST/raw/*-ubyte[.gz]``  likewise; the four files may also lie in `root` itself
usps        ``usps.bz2``, ``usps.t.bz2``       torchvision's checksum, format, shape
svhn        ``train_32x32.mat``, ``test_…``    likewise
==========  =================================  ==================================================================

Nothing is fetched unless it is asked for. torchvision's older ``processed/*.pt`` files are pickles and are not opened.
"""

from __future__ import annotations

import gzip
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from difc_ray.data.errors import MalformedDataError
from difc_ray.data.image_folder import shown
from difc_ray.data.published.collection import N_CLASSES, Collection

Pictures = UInt8[np.ndarray, "_ h w C"]
Labels = Int[np.ndarray, " _"]

IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
"""Names of MNIST's files, which FashionMNIST has too, when they are not packed."""


@dataclass(frozen=True, kw_only=True)
class Reader(ABC):
    """How one collection is found, fetched and read.

    Args:
        title: name of the class in ``torchvision.datasets``.
        side: height and width of its pictures.
    """

    title: str
    side: int

    @property
    def kind(self) -> Any:
        """The class in torchvision."""
        return getattr(importlib.import_module("torchvision.datasets"), self.title)

    @abstractmethod
    def files(self, root: Path) -> list[Path]:
        """Where each file lies, or should lie."""

    @abstractmethod
    def addresses(self) -> list[str]:
        """Where torchvision would fetch them from, by its own tables."""

    @abstractmethod
    def fetch(self, root: Path) -> None:
        """Lets torchvision download what is missing."""

    @abstractmethod
    def part(self, root: Path, *, train: bool) -> tuple[Pictures, Labels, Path]:
        """The publisher's train or test part as bytes with channels last, its labels, and the file it came from."""

    def missing(self, root: Path) -> list[Path]:
        """The files that are not there."""
        return [path for path in self.files(root) if not path.is_file()]

    def read(self, root: Path) -> Collection:
        """All of it; kept for the next domain as long as the files stay as they are.

        Raises:
            MalformedDataError: a file is damaged.
        """
        return _read(self, root, tuple(_stamp(path) for path in self.files(root)))


def _stamp(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)
def _read(reader: Reader, root: Path, stamps: tuple[tuple[int, int], ...]) -> Collection:
    parts = []
    for train in (True, False):
        pictures, labels, path = reader.part(root, train=train)
        fault = _fault(pictures, labels, reader.side)
        if fault:
            raise damaged(reader, path, fault)
        pictures.setflags(write=False)
        parts.append((pictures, labels))
    (train_pictures, train_labels), (test_pictures, test_labels) = parts
    return Collection(train=train_pictures, test=test_pictures, train_labels=train_labels, test_labels=test_labels)


def _fault(pictures: Pictures, labels: Labels, side: int) -> str:
    """What is wrong with a part; empty: nothing."""
    if pictures.shape[1:3] != (side, side) or len(pictures) == 0:
        height, width = pictures.shape[1:3]
        return f"{len(pictures)} pictures of {height}×{width} pixels in place of {side}×{side}"
    if labels.shape != pictures.shape[:1]:
        return f"{len(pictures)} pictures and {labels.size} labels"
    wrong = labels[(labels < 0) | (labels >= N_CLASSES)]
    return f"label {wrong[0]}, which is not in 0 to {N_CLASSES - 1}" if len(wrong) else ""


def damaged(reader: Reader, path: Path, reason: str) -> MalformedDataError:
    """The error of a file that is there and of no use."""
    what = f"a file of {reader.title} must be whole and in its publisher's format"
    remedy = "Delete it and fetch it again, such as with `dataset_options.download=true`."
    return MalformedDataError(what, f"`{shown(str(path))}`, {reason}", reader.title, remedy)


@contextmanager
def _blaming(reader: Reader, path: Path) -> Iterator[None]:
    """Whatever a reader stumbles over becomes an error with the path of the file."""
    try:
        yield
    except MalformedDataError:
        raise
    except Exception as error:  # torchvision asserts, unpacks and converts, and all of it may fail on a damaged file
        words = " ".join(str(getattr(error, "strerror", None) or error).split())[:160]
        raise damaged(reader, path, f"{type(error).__name__}{f': {words}' if words else ''}") from error


def _idx(path: Path, dimensions: int) -> UInt8[np.ndarray, "..."]:
    """The bytes of an IDX file, packed or not: two zeros, 8 for bytes, the number of dimensions, each size, the bytes.

    Raises:
        ValueError: the file is another one, or not whole.
    """
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(f"it must begin as an IDX file of {dimensions} dimension(s) does, not with {content[:4]!r}")
    sizes = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + sizes.nbytes).reshape(sizes.tolist())


@dataclass(frozen=True, kw_only=True)
class IdxReader(Reader):
    """Four IDX files, packed by gzip or not.

    Args:
        title: name of the class in torchvision.
        side: height and width.
        folders: below the root, in which the files may lie.
        mirrors: where torchvision would fetch them from; as here, no question for a file waits for its import.
    """

    folders: tuple[str, ...]
    mirrors: tuple[str, ...]

    def files(self, root: Path) -> list[Path]:
        """Train images and labels, test images and labels, in the first folder that has all; else in the first."""
        candidates = [[_packed_or_not(root / folder / name) for name in IDX_FILES] for folder in self.folders]
        return next((paths for paths in candidates if all(path.is_file() for path in paths)), candidates[0])

    def addresses(self) -> list[str]:
        """Its mirrors."""
        return list(self.mirrors)

    def fetch(self, root: Path) -> None:
        """All four files into ``root/<class>/raw``."""
        self.kind(str(root), download=True)

    def part(self, root: Path, *, train: bool) -> tuple[Pictures, Labels, Path]:
        """Grey pictures as one channel."""
        images, labels = self.files(root)[:2] if train else self.files(root)[2:]
        with _blaming(self, images):
            pixels = _idx(images, 3)[..., None]
        with _blaming(self, labels):
            numbers = _idx(labels, 1).astype(np.int64)
        return pixels, numbers, labels


def _packed_or_not(path: Path) -> Path:
    packed = path.with_name(f"{path.name}.gz")
    return packed if packed.is_file() and not path.is_file() else path


@dataclass(frozen=True, kw_only=True)
class ListedReader(Reader):
    """A file for train and one for test, with checksums in torchvision's table; USPS and SVHN."""

    def files(self, root: Path) -> list[Path]:
        """The two, in the root itself."""
        return [root / self.kind.split_list[split][1] for split in ("train", "test")]

    def addresses(self) -> list[str]:
        """From torchvision's table."""
        return [self.kind.split_list[split][0] for split in ("train", "test")]

    def fetch(self, root: Path) -> None:
        """Both files."""
        for train in (True, False):
            self._opened(root, train=train, download=True)

    def part(self, root: Path, *, train: bool) -> tuple[Pictures, Labels, Path]:
        """By torchvision's class, once the checksum is right."""
        path = self.files(root)[0 if train else 1]
        checksum = self.kind.split_list["train" if train else "test"][2]
        with _blaming(self, path):
            if not importlib.import_module("torchvision.datasets.utils").check_integrity(str(path), checksum):
                raise damaged(self, path, f"another MD5 checksum than {checksum}")
            read = self._opened(root, train=train, download=False)
            pixels = read.data[..., None] if read.data.ndim == 3 else read.data.transpose(0, 2, 3, 1)
            labels = np.asarray(read.labels if hasattr(read, "labels") else read.targets, dtype=np.int64)
            return pixels, labels, path

    def _opened(self, root: Path, *, train: bool, download: bool) -> Any:
        named = {"train": train} if self.title == "USPS" else {"split": "train" if train else "test"}
        return self.kind(str(root), download=download, **named)


OF_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
OF_FASHION = ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",)

READERS = {
    "mnist": IdxReader(title="MNIST", side=28, folders=("MNIST/raw",), mirrors=OF_MNIST),
    "fashion": IdxReader(title="FashionMNIST", side=28, folders=("FashionMNIST/raw", "."), mirrors=OF_FASHION),
    "fashion-package": IdxReader(title="FashionMNIST", side=28, folders=(".",), mirrors=OF_FASHION),
    "usps": ListedReader(title="USPS", side=16),
    "svhn": ListedReader(title="SVHN", side=32),
}
"""By the name of the collection; ``fashion-package`` is FashionMNIST as Debian lays it out."""
