"""Finding the files of a collection, fetching them if that was asked for, and saying what is missing otherwise."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from difc_ray.data.errors import FilesMissingError, MalformedDataError
from difc_ray.data.image_folder import shown
from difc_ray.data.published.collection import Collection
from difc_ray.data.published.readers import Reader

FETCH: Final = "Write `dataset_options.download=true`, and"


def open_collection(reader: Reader, root: Path, where: str, *, download: bool, remedy: str = FETCH) -> Collection:
    """The collection below a root.

    Args:
        reader: of the collection.
        root: the folder.
        where: dataset, for messages.
        download: whether torchvision may fetch what is missing.
        remedy: how missing files get there, as a sentence goes on with "torchvision fetches them from".

    Raises:
        FilesMissingError: files are missing, and may not be fetched.
        MalformedDataError: they cannot be fetched, or one is damaged.
    """
    if download and reader.missing(root):
        _fetch(reader, root, where)
    if absent := reader.missing(root):
        raise _missing(reader, root, absent, where, remedy)
    try:
        return reader.read(root)
    except MalformedDataError as error:
        raise error.at(where) from error


def _missing(reader: Reader, root: Path, absent: list[Path], where: str, remedy: str) -> FilesMissingError:
    """Names of the files, the folder, the key that fetches them, and where from."""
    names = ", ".join(f"`{path.name}`" for path in absent)
    addresses = " ".join(reader.addresses())
    fetched = f"torchvision fetches them from {addresses}; or put them there yourself."
    return FilesMissingError(
        f"the files of {reader.title} must be in their folder", f"no {names} in `{shown(str(absent[0].parent))}`",
        where, f"{remedy} {fetched}",
    )  # fmt: skip


def _fetch(reader: Reader, root: Path, where: str) -> None:
    """One process of a machine at a time; the second finds what the first has fetched."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _alone(root):
            if reader.missing(root):
                reader.fetch(root)
    except MalformedDataError:
        raise
    except Exception as error:  # the network, the disk, a checksum
        words = " ".join(str(error).split())[:300]
        raise MalformedDataError(
            f"the download of {reader.title} into `{shown(str(root))}` must succeed",
            f"{type(error).__name__}{f': {words}' if words else ''}", where,
            f"Try again, or fetch {' '.join(reader.addresses())} elsewhere and put the files there.",
        ) from error  # fmt: skip


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds a lock on a folder, without a file of its own."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
