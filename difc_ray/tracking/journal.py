"""The journal of a run, `metrics.jsonl`: all that it records, in order, one JSON line per record.

The file only grows: whoever sends it to MLflow remembers how far he is, and whoever draws a figure reads it. A record
is ``{"seq": 7, "time": <milliseconds since 1970>, "kind": "step", ...}``. Kinds and their fields:

==========  ==================================================================
start       run_name, experiment, store (null: tracked nowhere), params, tags, key, attempt, pid, started, host, parent
            (the key of the run that it is nested in)
step        step (updates taken), and all that is known of the last of them, see :mod:`difc_ray.tracking.points`
evaluation  step, the metrics by name, confusion
metrics     step, values: what is neither of the two
tags        tags
artifact    path, folder
model       path, step, register
rewound     step, evaluated: the run goes on from there, and what is above of later steps and evaluations holds no more
finish      status, error
==========  ==================================================================
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "metrics.jsonl"
"""The journal's name in a run's folder."""
_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "start": ("key",), "step": ("step",), "evaluation": ("step",), "metrics": ("step", "values"),
    "rewound": ("step", "evaluated"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the journal."""

    seq: int
    """Its number, from 1; 0 if it has none."""
    time: int
    """Wall clock in ms since 1970."""
    kind: str
    """One of the kinds above, or ``damaged`` for a line that cannot be read."""
    data: dict[str, Any]
    end: int
    """Offset in bytes of what follows the line."""


class JournalWriter:
    """Appends records; each is with the operating system when :meth:`append` returns, so that SIGKILL loses none.

    A line that a crash or a full disk cut short is closed by a newline, and readers skip it. Threads may share one.

    Args:
        path: the file, created if it does not exist.
        last_seq: number of the last record in it.
    """

    def __init__(self, path: Path, last_seq: int = 0) -> None:
        self.last_seq = last_seq
        self._lock = threading.Lock()
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._torn = not _ends_with_newline(path)

    def append(self, kind: str, content: Mapping[str, Any]) -> int:
        """Write one record.

        Args:
            kind: its kind.
            content: its other fields.

        Returns:
            Its number; numbers grow by one.

        Raises:
            OSError: the disk is full or gone; the record is lost, later ones are not.
        """
        with self._lock:
            head = {"seq": self.last_seq + 1, "time": time.time_ns() // 1_000_000, "kind": kind}
            line = json.dumps({**head, **content}, separators=(",", ":")).encode() + b"\n"
            whole = b"\n" + line if self._torn else line
            written = 0
            try:
                written = os.write(self._handle, whole)
            finally:
                self._torn = written != len(whole) and (self._torn or written > 0)
            if written != len(whole):
                raise OSError(f"The disk took {written} of {len(whole)} bytes of a journal record.")
            self.last_seq += 1
            return self.last_seq

    def flush_to_disk(self) -> None:
        """Survive a power failure too, up to here."""
        os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        with self._lock:
            if self._handle >= 0:
                os.close(self._handle)
                self._handle = -1


def read_records(path: Path, offset: int = 0, limit_bytes: int | None = None) -> Iterator[Record]:
    """The complete records from a byte offset on.

    Args:
        path: the journal; one that is not there has none.
        offset: where a record begins.
        limit_bytes: stop after about so many bytes; None: at the end of the file.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        position, rest = offset, b""
        while chunk := file.read(_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                position += len(line) + 1
                if line:
                    yield _parse(line, position)
            if limit_bytes is not None and position - offset >= limit_bytes:
                return


def entries(path: Path, *kinds: str) -> Iterator[dict[str, Any]]:
    """What the records of these kinds say, without their numbers and times, and without what was taken back later.

    Args:
        path: the journal; one that is not there has none.
        kinds: of records.
    """
    rewinds = _rewinds(path)
    limits = [(math.inf, math.inf)]  # of step and evaluation, behind each rewinding and, first, before all of them
    for rewind in reversed(rewinds):
        limits.insert(0, (min(rewind["step"], limits[0][0]), min(rewind["evaluated"], limits[0][1])))
    met = 0
    for record in read_records(path):
        if record.kind == "rewound":
            met += met < len(rewinds)  # a run at work may have added one
        elif record.kind in kinds:
            bounds = {"step": limits[met][0], "evaluation": limits[met][1]}
            if record.data.get("step", 0) <= bounds.get(record.kind, math.inf):
                yield {name: value for name, value in record.data.items() if name not in ("seq", "time")}


def _rewinds(path: Path) -> list[dict[str, Any]]:
    """What the ``rewound`` records say; other lines are not parsed, there may be millions."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        found = [_parse(line, 0) for line in file if b'"rewound"' in line]
    return [record.data for record in found if record.kind == "rewound"]


@dataclass
class JournalSurvey:
    """What a resumed run, an addition to it, or :func:`difc_ray.tracking.sync` has to know of a journal."""

    last_seq: int = 0
    last_time: int = 0
    attempts: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    """The last ``start`` record."""
    key: str | None = None
    """What marks this run in every store."""
    last: Record | None = None
    """The last record that is not of kinds that may be added after the end."""
    finished: bool = False
    """Whether the last record is ``finish``."""
    points: dict[tuple[str, int], float] = field(default_factory=dict)
    """(name, step) -> the last value of it in a ``metrics`` record."""


def survey(path: Path) -> JournalSurvey:
    """Read a journal through; an absent one is an empty one."""
    found = JournalSurvey()
    for record in read_records(path):
        found.last_seq, found.last_time = max(found.last_seq, record.seq), max(found.last_time, record.time)
        if record.kind == "damaged":
            continue
        found.finished = record.kind == "finish"
        if record.kind not in ("metrics", "artifact"):
            found.last = record
        if record.kind == "metrics":
            found.points |= {(name, int(record.data["step"])): value for name, value in record.data["values"].items()}
        elif record.kind == "start":
            found.attempts += 1
            found.start = record.data
            found.key = found.key or str(record.data["key"])
    return found


def ends_with_finish(path: Path) -> bool:
    """Whether the last record says that the run has ended."""
    return last_record(path).kind == "finish"


def last_record(path: Path) -> Record:
    """The last complete record that can be read, looked for from the end of the file; else one of number 0."""
    found = Record(seq=0, time=0, kind="none", data={}, end=0)
    if not path.exists():
        return found
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
        *lines, _ = file.read().split(b"\n")
    for line in reversed(lines):
        if line and (record := _parse(line, 0)).kind != "damaged":
            return record
    for record in read_records(path):  # all of it is damaged, or one line is longer than the tail
        found = found if record.kind == "damaged" else record
    return found


def _parse(line: bytes, end: int) -> Record:
    try:
        data = json.loads(line)
        kind = str(data["kind"])
        for name in _NEEDED.get(kind, ()):
            _ = int(data[name]) if name in ("step", "evaluated") else data[name]
        if kind == "metrics":
            _ = data["values"].items()
        return Record(seq=int(data.get("seq", 0)), time=int(data.get("time", 0)), kind=kind, data=data, end=end)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Record(seq=0, time=0, kind="damaged", data={"line": line[:200].decode("utf-8", "replace")}, end=end)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
