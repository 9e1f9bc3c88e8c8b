"""The pictures of a root as one numbered index: domains, class names, and the place of every picture.

Shape suffixes: M pictures of a domain.

A picture's place in its domain is decided by (class number, path), never by the order in which a disk lists folders.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int

from difc_ray.data.errors import MalformedDataError
from difc_ray.data.image_folder.cache import load_index, store_index
from difc_ray.data.image_folder.decoding import shown
from difc_ray.data.image_folder.listing import WHERE, Entry
from difc_ray.data.image_folder.walk import EXTENSIONS, Walk, times_of, walk_root
from difc_ray.registry import did_you_mean

_KEPT_S: Final = 60.0


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
    if known is not None and time.monotonic() - known[0] < _KEPT_S and times_of(known[1]) == known[1]:
        return known[2]
    walk = walk_root(top, manifest, follow_links)
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


def _fingerprint(walk: Walk) -> str:
    """Independent of the order in which folders were listed."""
    lines = [
        f"{entry.domain}\0{entry.label}\0{entry.path}\0{entry.split}\0{size}\0{changed}"
        for entry, (size, changed) in zip(walk.entries, walk.stamps, strict=True)
    ]
    lines.sort()
    return hashlib.sha256("\0\0".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _numbered(top: str, walk: Walk, classes: Sequence[str], fingerprint: str) -> Index:
    """Class numbers, and the pictures of every domain in order."""
    if classes:
        walk.entries = [_named(entry, classes) for entry in walk.entries]
    labels = {entry.label for entry in walk.entries}
    names = tuple(classes) or tuple(sorted(labels, key=natural))
    _check_names(top, walk, labels, names)
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


def _check_names(top: str, walk: Walk, labels: Iterable[str], names: Sequence[str]) -> None:
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
    for kind, texts in (("domain", {entry.domain for entry in walk.entries}), ("class", set(labels))):
        for text in sorted(texts):
            if not text.isprintable() or not text.strip():
                remedy = "Rename it; letters, digits, spaces and signs of any script are fine."
                raise MalformedDataError(
                    f"the name of a {kind} must be printable text", f"`{shown(text)}`", WHERE, remedy
                )
    for text in sorted(set(labels).difference(names)):
        raise MalformedDataError(
            "every class must be one of `dataset_options.classes`", f"`{text}`", WHERE, did_you_mean(text, names)
        )


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
    cached = load_index(key, fingerprint)
    if cached is None:
        return None
    parts, start = {}, 0
    for domain, listed, count in zip(cached["domains"], cached["listed"], cached["counts"], strict=True):
        inside = slice(start, start + count)
        parts[domain] = Part(
            files=cached["files"][inside], labels=cached["labels"][inside], sizes=cached["sizes"][inside],
            splits=cached["splits"][inside], listed=listed,
        )  # fmt: skip
        start += count
    return Index(root=str(key[0]), class_names=tuple(cached["class_names"]), parts=parts, fingerprint=fingerprint)
