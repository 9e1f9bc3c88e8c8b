"""The journal: what a run recorded, in order, one JSON line per record.

A record is ``{"seq": 7, "ts": <milliseconds>, "kind": "metrics", ...}``. Kinds and their fields:

=========  ==================================================================
start      run_name, experiment, params, tags, key, attempt, store, pid, host, parent (the key of the run it is part of)
metrics    step, values (a value that is not finite is a string: "nan", "inf")
tags       tags
artifact   path, folder
model      path, step, register
finish     status, error
=========  ==================================================================
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the journal."""

    seq: int
    ts: int
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
            head = {"seq": self.last_seq + 1, "ts": time.time_ns() // 1_000_000, "kind": kind}
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
        path: the journal.
        offset: where a record begins.
        limit_bytes: stop after about so many bytes; None: at the end of the file.
    """
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


@dataclass
class JournalSurvey:
    """What a resumed run, or :func:`difc_ray.tracking.sync`, has to know of a journal."""

    last_seq: int = 0
    last_ts: int = 0
    attempts: int = 0
    start: dict[str, Any] = field(default_factory=dict)
    """The last ``start`` record."""
    key: str | None = None
    """What marks this run in every store."""
    finished: bool = False
    """Whether the last record is ``finish``."""
    last_steps: dict[str, int] = field(default_factory=dict)
    """Per metric, the last step that was recorded."""


def survey(path: Path) -> JournalSurvey:
    """Read a journal through; an absent one is an empty one."""
    found = JournalSurvey()
    if not path.exists():
        return found
    for record in read_records(path):
        found.last_seq, found.last_ts = max(found.last_seq, record.seq), max(found.last_ts, record.ts)
        if record.kind == "damaged":
            continue
        found.finished = record.kind == "finish"
        if record.kind == "metrics":
            step = int(record.data["step"])
            for name in record.data["values"]:
                found.last_steps[name] = max(found.last_steps.get(name, step), step)
        elif record.kind == "start":
            found.attempts += 1
            found.start = record.data
            found.key = found.key or str(record.data["key"])
    return found


def ends_with_finish(path: Path) -> bool:
    """Whether the last record says that the run has ended."""
    lines = _tail(path).rstrip(b"\n").split(b"\n")
    return _parse(lines[-1], 0).kind == "finish"


def last_seq(path: Path) -> int:
    """Number of the last record, read from the end of the file; 0 for an absent or empty journal."""
    *whole, _ = _tail(path).split(b"\n")
    found = max((_parse(line, 0).seq for line in whole[-3:] if line), default=0)
    return found or survey(path).last_seq  # what is damaged, or longer than the tail


def _tail(path: Path) -> bytes:
    """The last 64 KiB of a file, nothing of one that is not there."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return file.read()
    except OSError:
        return b""


def _parse(line: bytes, end: int) -> Record:
    try:
        data = json.loads(line)
        if data["kind"] == "metrics":
            _ = int(data["step"]), data["values"].items()
        elif data["kind"] == "start":
            _ = data["key"]
        return Record(seq=int(data["seq"]), ts=int(data["ts"]), kind=str(data["kind"]), data=data, end=end)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Record(seq=0, ts=0, kind="damaged", data={"line": line[:200].decode("utf-8", "replace")}, end=end)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
