"""Pictures that a text names: DomainNet's split lists, or a CSV or Parquet manifest.

A list ``<domain>_train.txt`` or ``<domain>_test.txt`` has a line ``path label`` per picture, the path relative to the
root. A label that is a number stands for the class folder in the path (``real/dog/1.jpg 3`` is a ``dog``), and must
stand for the same one everywhere; where there is no such folder the label itself is the name of the class.

A manifest has the columns ``path, label, domain`` and, if it likes, ``split`` (train, val or test).
"""

from __future__ import annotations

import csv
import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from difc_ray.data.errors import MalformedDataError
from difc_ray.data.image_folder.decoding import shown
from difc_ray.data.splits import SPLITS
from difc_ray.registry import did_you_mean

WHERE: Final = "dataset `image_folder`"
COLUMNS: Final = ("path", "label", "domain")
_NUMBERS: Final[dict[str, int]] = {split: number for number, split in enumerate(SPLITS)}


class Entry(NamedTuple):
    """One picture: its domain, the name of its class, its path, and its split (number, -1: nobody said)."""

    domain: str
    label: str
    path: str
    split: int


def find_lists(root: str) -> dict[str, tuple[str, str]]:
    """Domain -> its train list and its test list, as far as the root has any.

    Raises:
        MalformedDataError: a domain has one of them only.
    """
    names = {each for each in os.listdir(root) if not each.startswith(".")}
    ends = ("_train.txt", "_test.txt")
    domains = sorted({each.removesuffix(end) for each in names for end in ends if each.endswith(end)})
    for domain in domains:
        for end in ends:
            if f"{domain}{end}" not in names:
                there = next(f"{domain}{other}" for other in ends if other != end)
                raise MalformedDataError(
                    "a domain with split lists must have one for train and one for test",
                    f"`{shown(there)}` without `{shown(domain + end)}`", WHERE,
                    "Add the other list, or move this one out of `root` to split at random.",
                )  # fmt: skip
    return {domain: (os.path.join(root, domain + ends[0]), os.path.join(root, domain + ends[1])) for domain in domains}


def read_listing(root: str, manifest: Path | None, lists: Mapping[str, Sequence[str]]) -> list[Entry]:
    """Everything that the manifest, or else the lists, name; each picture once in its domain.

    Raises:
        MalformedDataError: a line cannot be understood, or contradicts another.
    """
    entries = list(_manifest_entries(manifest)) if manifest is not None else _list_entries(lists)
    seen: set[tuple[str, str]] = set()
    for entry in entries:
        place = (entry.domain, os.path.normpath(entry.path))
        if place in seen:
            what = "a picture must be listed once in its domain, or it would be in two splits"
            got = f"`{shown(entry.path)}` twice in domain `{shown(entry.domain)}`"
            raise MalformedDataError(what, got, WHERE, "Remove one of the lines.")
        seen.add(place)
    return entries


def _list_entries(lists: Mapping[str, Sequence[str]]) -> list[Entry]:
    entries: list[Entry] = []
    names: dict[str, str] = {}
    for domain, (train, test) in lists.items():
        for path, split in ((train, 0), (test, 2)):
            for number, line in enumerate(_lines(path), start=1):
                if not line.strip():
                    continue
                file, _, label = line.strip().replace("\t", " ").rpartition(" ")
                if not file.strip():
                    what, remedy = "a line of a split list must read `path label`", "Correct the line."
                    raise MalformedDataError(what, f"`{shown(line.strip())}`", _line_of(path, number), remedy)
                entries.append(Entry(domain, _class_of(file.strip(), domain, label, names, path, number), file, split))
    return [entry._replace(path=entry.path.strip()) for entry in entries]


def _class_of(file: str, domain: str, label: str, names: dict[str, str], path: str, number: int) -> str:
    """The class folder that a numbered label stands for, or the label."""
    parts = os.path.normpath(file).split(os.sep)
    folder = parts[1] if len(parts) >= 3 and parts[0] == domain else ""
    name = folder if label.isdecimal() and folder else label
    if names.setdefault(label, name) != name:
        what = f"label `{label}` must stand for one class in all lists"
        got = f"`{shown(name)}` after `{shown(names[label])}`"
        raise MalformedDataError(what, got, _line_of(path, number), "Correct the label or the path.")
    return name


def _manifest_entries(manifest: Path) -> Iterator[Entry]:
    rows = _parquet_rows(manifest) if manifest.suffix.lower() in (".parquet", ".pq") else _csv_rows(manifest)
    given: dict[str, bool] = {}
    for number, row in rows:
        where = _line_of(str(manifest), number)
        for column in COLUMNS:
            if not row.get(column):
                what = f"every row of a manifest must have a `{column}`"
                raise MalformedDataError(what, "nothing", where, "Fill it in, or remove the row.")
        domain, split = row["domain"], row.get("split", "")
        if split and split not in SPLITS:
            what = "the `split` of a row must be train, val or test"
            raise MalformedDataError(what, f"`{shown(split)}`", where, did_you_mean(split, SPLITS))
        if given.setdefault(domain, bool(split)) != bool(split):
            what = "all rows of a domain must have a `split`, or none"
            got = f"domain `{shown(domain)}` with both"
            raise MalformedDataError(what, got, where, "Fill the column in, or leave it empty for the whole domain.")
        yield Entry(domain, row["label"], row["path"], _NUMBERS[split] if split else -1)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Row numbers as an editor counts lines, and the cells without blanks around them."""
    reader = csv.reader(_lines(str(path), keep_ends=True), strict=True)
    try:
        header = [each.strip() for each in next(reader, [])]
        _check_columns(path, header)
        for row in reader:
            if not row:
                continue
            if len(row) > len(header):
                what = "a row must not have more cells than the heading"
                remedy = 'Put a text with commas in quotes, as in `"a, b.jpg"`.'
                raise MalformedDataError(what, f"{len(row)} cells", _line_of(str(path), reader.line_num), remedy)
            cells = [*(each.strip() for each in row), *[""] * (len(header) - len(row))]
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        where = _line_of(str(path), reader.line_num)
        raise MalformedDataError("a manifest must be a CSV file", f"this: {error}", where, "Correct it.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    parquet: Any = importlib.import_module("pyarrow.parquet")  # no stubs; it takes a second to import
    try:
        header = list(parquet.read_schema(str(path)).names)
        _check_columns(path, header)
        columns = [each for each in (*COLUMNS, "split") if each in header]
        table = parquet.read_table(str(path), columns=columns).to_pydict()
    except MalformedDataError:
        raise
    except Exception as error:  # pyarrow has many kinds
        got = f"`{shown(str(path))}`: {' '.join(str(error).split())[:200]}"
        raise MalformedDataError("a manifest must be a readable Parquet file", got, WHERE, "Write it anew.") from error
    for number, cells in enumerate(zip(*table.values(), strict=True), start=1):
        cells = tuple(os.fsdecode(cell) if isinstance(cell, bytes) else cell for cell in cells)
        texts = ("" if cell is None else str(cell).strip() for cell in cells)
        yield number, dict(zip(table, texts, strict=True))


def _check_columns(path: Path, header: Sequence[str]) -> None:
    missing = [each for each in COLUMNS if each not in header]
    if missing:
        what = "a manifest must have the columns path, label, domain and perhaps split"
        got = ", ".join(f"`{shown(each)}`" for each in header[:12]) or "an empty file"
        remedy = f"Add {' and '.join(f'`{each}`' for each in missing)} to the first line."
        raise MalformedDataError(what, got, f"{WHERE}, `{shown(str(path))}`", remedy)


def _lines(path: str, *, keep_ends: bool = False) -> Iterator[str]:
    """Lines of a text; bytes that are no UTF-8 stay as they are, as they may be part of a file's name."""
    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for line in file:
                yield line if keep_ends else line.rstrip("\r\n")
    except OSError as error:
        got = f"`{shown(path)}`: {error.strerror or error}"
        raise MalformedDataError("a list of pictures must be readable", got, WHERE, "Correct the path.") from error


def _line_of(path: str, number: int) -> str:
    return f"{WHERE}, `{shown(os.path.basename(path))}`, line {number}"
