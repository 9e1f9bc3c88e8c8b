"""Small files in the formats of MNIST, FashionMNIST, USPS and SVHN, and the real FashionMNIST where it is installed."""

from __future__ import annotations

import bz2
import functools
import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets

from difc_ray.data.published.fashion import PACKAGE, PACKAGE_FOLDER
from difc_ray.data.published.pools import COUNTS, MEAN

REQUIRED = "DIFC_RAY_FASHION_TESTS"

Part = tuple[np.ndarray, np.ndarray]
"""Grey pictures (n, 28, 28) and their labels."""


def part(count: int, seed: int, side: int = 28) -> Part:
    """Noise with a bright block whose place tells the label; every class `count` times."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(10 * count) % 10)
    pictures = rng.integers(0, 40, size=(10 * count, side, side), dtype=np.uint8)
    pictures[:, :2] = 0
    for picture, label in zip(pictures, labels.tolist(), strict=True):
        picture[4 + label : 8 + label, 3 : 3 + label + 2] = rng.integers(180, 256)
    return pictures, labels


def as_large_as_mnist() -> tuple[Part, Part]:
    """Noise of MNIST's brightness; the first pixel row tells the number of the picture, below 2^24 by three bytes."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(10), COUNTS))

    def pictures(n: int) -> np.ndarray:
        found = (rng.random((n, 28, 28), dtype=np.float32) < MEAN).astype(np.uint8) * 255
        for byte in range(3):
            found[:, 0, 2 * byte] = (np.arange(n) >> 8 * byte) & 255
        return found

    return (pictures(60_000), labels), (pictures(10_000), rng.integers(0, 10, 10_000))


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zeros, type 8 (bytes), the number of axes, their lengths big-endian, the bytes."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder: Path, train: Part, test: Part, *, packed: bool = False) -> None:
    """Four files as MNIST and FashionMNIST have them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (pictures, labels) in (("train", train), ("t10k", test)):
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            content = idx(array)
            path = folder / f"{name}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content, mtime=0) if packed else content)


def write_usps(root: Path, train: Part, test: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsvm lines, labels 1 to 10 and values in [-1, 1]; torchvision's table gets the checksums of these files."""
    files = {}
    for split, name, (pictures, labels) in (("train", "usps.bz2", train), ("test", "usps.t.bz2", test)):
        values = pictures.reshape(len(pictures), -1) / 255 * 2 - 1
        lines = [
            " ".join([str(label + 1), *(f"{i}:{value:.6f}" for i, value in enumerate(row, start=1))])
            for row, label in zip(values, labels.tolist(), strict=True)
        ]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))
        files[split] = name
    _own_checksums(torchvision.datasets.USPS, root, files, monkeypatch)


def write_svhn(root: Path, train: Part, test: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """MATLAB files, X (32, 32, 3, n) and y (n, 1) where 10 is the digit 0."""
    files = {}
    for split, name, (pictures, labels) in (("train", "train_32x32.mat", train), ("test", "test_32x32.mat", test)):
        numbers = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(str(root / name), {"X": pictures.transpose(1, 2, 3, 0), "y": numbers})
        files[split] = name
    _own_checksums(torchvision.datasets.SVHN, root, files, monkeypatch)


def _own_checksums(kind: type, root: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        split: [(root / name).as_uri(), name, hashlib.md5((root / name).read_bytes()).hexdigest()]
        for split, name in files.items()
    }
    monkeypatch.setattr(kind, "split_list", table)


@functools.cache
def needs_fashion() -> pytest.MarkDecorator:
    """Skips a test where Debian's package is missing; on CI, which must have it, the test fails instead."""
    absent = not PACKAGE_FOLDER.is_dir() and os.environ.get(REQUIRED) != "1"
    return pytest.mark.skipif(absent, reason=f"{PACKAGE} is not installed, and {REQUIRED}=1 does not require it")
