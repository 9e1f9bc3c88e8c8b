"""Which pictures there are: a walk over the folder, or what lists and manifests say, as one numbered index.

Shape suffixes: M pictures of a domain.

A picture's place in its domain is decided by (class number, path), never by the order in which a disk lists folders.
Nothing is opened here: sizes and times come from the file system, so that 600,000 files take seconds.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int

from difc_ray.data.base import MalformedDataError
from difc_ray.data.image_folder.cache import load_index, store_index
from difc_ray.data.image_folder.decoding import shown
from difc_ray.data.image_folder.listing import Entry, find_lists, read_listing
from difc_ray.registry import did_you_mean

WHERE: Final = "dataset `image_folder`"
EXTENSIONS: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings that make a file of a folder tree a picture, in any case; a list or manifest may name any file."""

_KEPT_S: Final = 60.0
_IGNORED: Final = ("__MACOSX",)


@dataclass(frozen=True, kw_only=True)
class Part:
    """The pictures of one domain.

    Args:
        files: paths below the root, in order of position (absolute where a manifest says so).
        labels: (M,) int64 class numbers.
        sizes: (M,) int64 bytes, -1 where there is no such file.
        splits: (M,) int8, 0 train, 1 val, 2 test, -1 where nobody said.
        listed: whether a list or manifest named the files, rather than a walk over folders.
    """

    files: list[str]
    labels: Int[np.ndarray, " M"]
    sizes: Int[np.ndarray, " M"]
    splits: Int[np.ndarray, " M"]
    listed: bool


@dataclass(frozen=True, kw_only=True)
class Index:
    """All domains of a root.

    Args:
        root: absolute path.
        class_names: union over the domains, by number.
        parts: by domain, in natural order.
        fingerprint: SHA-256 of path, size and time of change of every file: what tells that a folder changed.
    """

    root: str
    class_names: tuple[str, ...]
    parts: dict[str, Part]
    fingerprint: str


@dataclass
class _Walk:
    """What a look at the disk found: (domain, class, path, split) with sizes and times, and the folders passed."""

    entries: list[Entry] = field(default_factory=list)
    stamps: list[tuple[int, int]] = field(default_factory=list)
    listed: set[str] = field(default_factory=set)
    folders: dict[str, int] = field(default_factory=dict)


_READ: dict[tuple[object, ...], tuple[float, dict[str, int], Index]] = {}


def read_index(
    root: Path, manifest: Path | None = None, *, follow_links: bool = False, classes: Sequence[str] = ()
) -> Index:
    """The index of a folder tree, of its lists, or of a manifest.

    Within a process an index is taken as it was for a minute, as long as no folder of the tree gained or lost an entry;
    a run asks for it several times. Between processes it comes from the cache, which is used only if path, size and
    time of change of every file are as they were.

    Args:
        root: the folder that paths are relative to.
        manifest: CSV or Parquet file with ``path,label,domain[,split]``; None: lists, or else folders.
        follow_links: whether links may lead out of the root.
        classes: the class names in the order of their numbers; empty: those that are found, in natural order.

    Raises:
        MalformedDataError: there are no pictures, fewer than two classes, or a list is wrong.
    """
    top = os.path.abspath(root)
    key = (top, None if manifest is None else os.path.abspath(manifest), follow_links, tuple(classes))
    known = _READ.get(key)
    if known is not None and time.monotonic() - known[0] < _KEPT_S and _times(known[1]) == known[1]:
        return known[2]
    walk = _looked(top, manifest, follow_links)
    fingerprint = _fingerprint(walk)
    index = _restored(key, fingerprint)
    if index is None:
        index = _numbered(top, walk, classes, fingerprint)
        store_index(key, _packed(index))
    _READ[key] = (time.monotonic(), walk.folders, index)
    return index


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Key of natural text order: numbers inside a name count as numbers, case does not matter unless all else is equal.

    >>> sorted(["class10", "Class2", "class1"], key=natural)
    ['class1', 'Class2', 'class10']
    """
    parts = re.split(r"([0-9]+)", text)
    folded = [(0, int(each), "") if each.isdecimal() else (1, 0, each.casefold()) for each in parts if each]
    return (*folded, (-1, 0, ""), (1, 0, text))


def _looked(top: str, manifest: Path | None, follow_links: bool) -> _Walk:
    """Everything that the disk says now."""
    if not os.path.isdir(top):
        got = f"`{shown(top)}`, " + ("a file" if os.path.exists(top) else "which does not exist")
        raise MalformedDataError("`root` must be a folder", got, WHERE, "Correct the path of the dataset's files.")
    walk = _Walk()
    lists = {} if manifest is not None else find_lists(top)
    texts = [str(manifest)] if manifest is not None else [path for pair in lists.values() for path in pair]
    for path in texts:
        walk.folders[path] = _mtime(path)
    entries = read_listing(top, manifest, lists)
    for entry in entries:
        walk.entries.append(entry)
        walk.listed.add(entry.domain)
        try:
            found = os.stat(os.path.join(top, entry.path))
            walk.stamps.append((found.st_size, found.st_mtime_ns))
        except (OSError, ValueError):
            walk.stamps.append((-1, 0))
    if manifest is None:
        _walk_domains(top, follow_links, walk)
    return walk


def _walk_domains(top: str, follow_links: bool, walk: _Walk) -> None:
    """Folders of the root that no list speaks for: domains, with classes, with pictures at any depth."""
    real = os.path.realpath(top)
    for domain in _folders(top, real, follow_links, walk):
        if domain in walk.listed:
            continue
        for name in _folders(os.path.join(top, domain), real, follow_links, walk):
            for path, size, changed in _pictures(top, f"{domain}{os.sep}{name}", real, follow_links, walk):
                walk.entries.append(Entry(domain=domain, label=name, path=path, split=-1))
                walk.stamps.append((size, changed))


def _folders(path: str, real: str, follow_links: bool, walk: _Walk) -> list[str]:
    walk.folders[path] = _mtime(path)
    with _scanned(path) as entries:
        return [entry.name for entry in entries if not _hidden(entry.name) and _is_folder(entry, real, follow_links)]


def _pictures(
    top: str, folder: str, real: str, follow_links: bool, walk: _Walk, above: tuple[str, ...] = ()
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
        found = entry.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


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


def _fingerprint(walk: _Walk) -> str:
    """Independent of the order in which folders were listed."""
    lines = [
        f"{entry.domain}\0{entry.label}\0{entry.path}\0{entry.split}\0{size}\0{changed}"
        for entry, (size, changed) in zip(walk.entries, walk.stamps, strict=True)
    ]
    lines.sort()
    return hashlib.sha256("\0\0".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _numbered(top: str, walk: _Walk, classes: Sequence[str], fingerprint: str) -> Index:
    """Class numbers, and the pictures of every domain in order."""
    if classes:
        walk.entries = [_named(entry, classes) for entry in walk.entries]
    found = {entry.label for entry in walk.entries}
    names = tuple(classes) or tuple(sorted(found, key=natural))
    _check_names(top, walk, found, names)
    number = {name: i for i, name in enumerate(names)}
    rows: dict[str, list[tuple[int, str, int, int]]] = {}
    for entry, (size, _) in zip(walk.entries, walk.stamps, strict=True):
        rows.setdefault(entry.domain, []).append((number[entry.label], entry.path, size, entry.split))
    parts = {}
    for domain in sorted(rows, key=natural):
        ordered = sorted(rows[domain])
        parts[domain] = Part(
            files=[row[1] for row in ordered],
            labels=np.array([row[0] for row in ordered], dtype=np.int64),
            sizes=np.array([row[2] for row in ordered], dtype=np.int64),
            splits=np.array([row[3] for row in ordered], dtype=np.int8),
            listed=domain in walk.listed,
        )
    return Index(root=top, class_names=names, parts=parts, fingerprint=fingerprint)


def _named(entry: Entry, classes: Sequence[str]) -> Entry:
    """The entry with the name of its class in place of its number.

    Raises:
        MalformedDataError: there is no class of that number.
    """
    if entry.label in classes or not entry.label.isdecimal():
        return entry
    number = int(entry.label)
    if number >= len(classes):
        what = f"a label must be a number from 0 to {len(classes) - 1} or a name of `dataset_options.classes`"
        remedy = "Correct the label, or name more classes."
        raise MalformedDataError(what, f"{number} for `{shown(entry.path)}`", WHERE, remedy)
    return entry._replace(label=classes[number])


def _check_names(top: str, walk: _Walk, found: Iterable[str], names: Sequence[str]) -> None:
    """Refuses a root without pictures, a single class, classes nobody declared, and names that cannot be printed."""
    layout = "The layout is `root/<domain>/<class>/` with files ending in " + ", ".join(EXTENSIONS) + "."
    if not walk.entries:
        got = f"none in `{shown(top)}`"
        if any(path.suffix.lower() in EXTENSIONS for path in Path(top).glob("*/*")):
            got += ", whose own folders have some, as those of a single domain do"
            layout = f"Write `root={shown(os.path.dirname(top))}`. {layout}"
        raise MalformedDataError("`root` must hold pictures", got, WHERE, layout)
    if len(names) < 2:
        got = f"one, `{shown(names[0])}`, in `{shown(top)}`"
        raise MalformedDataError("there must be at least two classes", got, WHERE, layout)
    for kind, texts in (("domain", {entry.domain for entry in walk.entries}), ("class", set(found))):
        for text in sorted(texts):
            if not text.isprintable() or not text.strip():
                remedy = "Rename it; letters, digits, spaces and signs of any script are fine."
                raise MalformedDataError(
                    f"the name of a {kind} must be printable text", f"`{shown(text)}`", WHERE, remedy
                )
    for text in sorted(set(found).difference(names)):
        raise MalformedDataError(
            "every class must be one of `dataset_options.classes`", f"`{text}`", WHERE, did_you_mean(text, names)
        )


def _times(folders: dict[str, int]) -> dict[str, int]:
    return {path: _mtime(path) for path in folders}


def _mtime(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1


def _packed(index: Index) -> dict[str, object]:
    parts = index.parts.values()
    return {
        "fingerprint": index.fingerprint,
        "class_names": list(index.class_names),
        "domains": list(index.parts),
        "listed": [part.listed for part in parts],
        "counts": [len(part.files) for part in parts],
        "files": [path for part in parts for path in part.files],
        "labels": np.concatenate([part.labels for part in parts]),
        "sizes": np.concatenate([part.sizes for part in parts]),
        "splits": np.concatenate([part.splits for part in parts]),
    }


def _restored(key: tuple[object, ...], fingerprint: str) -> Index | None:
    """The cached index, if it is of the same files."""
    held = load_index(key, fingerprint)
    if held is None:
        return None
    parts, start = {}, 0
    for domain, listed, count in zip(held["domains"], held["listed"], held["counts"], strict=True):
        inside = slice(start, start + count)
        parts[domain] = Part(
            files=held["files"][inside], labels=held["labels"][inside], sizes=held["sizes"][inside],
            splits=held["splits"][inside], listed=listed,
        )  # fmt: skip
        start += count
    return Index(root=str(key[0]), class_names=tuple(held["class_names"]), parts=parts, fingerprint=fingerprint)
