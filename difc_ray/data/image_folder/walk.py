"""Which pictures there are: a walk over the folders of a root, or what its lists or a manifest name.

Nothing is opened here: sizes and times come from the file system, so that 600,000 files take seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from difc_ray.data.errors import MalformedDataError
from difc_ray.data.image_folder.decoding import shown
from difc_ray.data.image_folder.listing import WHERE, Entry, find_lists, read_listing

EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings that make a file of a folder tree a picture, in any case; a list or manifest may name any file."""

_IGNORED: Final = ("__MACOSX",)


@dataclass
class Walk:
    """What a look at the disk found: (domain, class, path, split) with sizes and times, and the folders passed."""

    entries: list[Entry] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    folders: dict[str, int] = field(default_factory=dict)


def walk_root(top: str, manifest: Path | None, follow_links: bool) -> Walk:
    """Everything that the disk says now."""
    if not os.path.isdir(top):
        got = f"`{shown(top)}`, " + ("a file" if os.path.exists(top) else "which does not exist")
        raise MalformedDataError("`root` must be a folder", got, WHERE, "Correct the path of the dataset's files.")
    walk = Walk()
    lists = {} if manifest is not None else find_lists(top)
    texts = [str(manifest)] if manifest is not None else [path for pair in lists.values() for path in pair]
    for path in texts:
        walk.folders[path] = _mtime(path)
    entries = read_listing(top, manifest, lists)
    for entry in entries:
        walk.entries.append(entry)
        walk.listed.add(entry.domain)
        try:
            status = os.stat(os.path.join(top, entry.path))
            walk.stamps.append((status.st_size, status.st_mtime_ns))
        except (OSError, ValueError):
            walk.stamps.append((-1, 0))
    if manifest is None:
        _walk_domains(top, follow_links, walk)
    return walk


def _walk_domains(top: str, follow_links: bool, walk: Walk) -> None:
    """Folders of the root that no list speaks for: domains, with classes, with pictures at any depth."""
    real = os.path.realpath(top)
    for domain in _folders(top, real, follow_links, walk):
        if domain in walk.listed:
            continue
        for name in _folders(os.path.join(top, domain), real, follow_links, walk):
            for path, size, changed in _pictures(top, f"{domain}{os.sep}{name}", real, follow_links, walk):
                walk.entries.append(Entry(domain=domain, label=name, path=path, split=-1))
                walk.stamps.append((size, changed))


def _folders(path: str, real: str, follow_links: bool, walk: Walk) -> list[str]:
    walk.folders[path] = _mtime(path)
    with _scanned(path) as entries:
        return [entry.name for entry in entries if not _hidden(entry.name) and _is_folder(entry, real, follow_links)]


def _pictures(
    top: str, folder: str, real: str, follow_links: bool, walk: Walk, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of change of the pictures in a folder and below it."""
    path = os.path.join(top, folder)
    here = os.path.realpath(path)
    if any(f"{each}{os.sep}".startswith(f"{here}{os.sep}") for each in above):
        return  # a link to a folder that we are in: its pictures have places of their own
    above = (*above, here)
    walk.folders[path] = _mtime(path)
    below = []
    with _scanned(path) as entries:
        for entry in entries:
            if _hidden(entry.name):
                continue
            if entry.name.lower().endswith(EXTENSIONS) and _is_file(entry):
                yield (f"{folder}{os.sep}{entry.name}", *_size_and_time(entry))
            elif _is_folder(entry, real, follow_links):
                below.append(f"{folder}{os.sep}{entry.name}")
    for each in below:
        yield from _pictures(top, each, real, follow_links, walk, above)


def _scanned(path: str) -> os._ScandirIterator[str]:
    try:
        return os.scandir(path)
    except OSError as error:
        got = f"`{shown(path)}`: {error.strerror or error}"
        remedy = "Grant the permission, or move the folder out of `root`."
        raise MalformedDataError("every folder below `root` must be readable", got, WHERE, remedy) from error


def _size_and_time(entry: os.DirEntry[str]) -> tuple[int, int]:
    try:
        status = entry.stat()
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in _IGNORED


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A file, or a link to one or to nothing."""
    try:
        return entry.is_file() or (entry.is_symlink() and not entry.is_dir())
    except OSError:  # a link in a circle
        return True


def _is_folder(entry: os.DirEntry[str], real: str, follow_links: bool) -> bool:
    """Whether to go into it.

    Raises:
        MalformedDataError: it is a link to a folder outside, which nobody allowed.
    """
    try:
        if not entry.is_dir():
            return False
    except OSError:
        return False
    if entry.is_symlink() and not follow_links and not is_inside(entry.path, real):
        got = f"`{shown(entry.path)}`, which leads to `{shown(os.path.realpath(entry.path))}`"
        remedy = "Write `dataset_options.follow_links=true` if this is meant, or remove the link."
        raise MalformedDataError("a link to a folder must stay inside `root`", got, WHERE, remedy)
    return True


def is_inside(path: str, real_root: str) -> bool:
    """Whether what a path leads to, links followed, lies in a folder without links in its own path."""
    return f"{os.path.realpath(path)}{os.sep}".startswith(f"{real_root.rstrip(os.sep)}{os.sep}")


def times_of(folders: dict[str, int]) -> dict[str, int]:
    """When each folder last gained or lost an entry, now."""
    return {path: _mtime(path) for path in folders}


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1
