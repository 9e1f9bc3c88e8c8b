"""What is found out about a run after its end, sent to its own run in MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difc_ray.tracking.folder import TrackingFolder
from difc_ray.tracking.journal import JournalWriter, Record, read_records
from difc_ray.tracking.names import clean_key
from difc_ray.tracking.syncing import SyncReport, sync

_LATER = ("metrics", "artifact")
"""Kinds of records that an addition leaves without an end, if it is cut off."""


def add_afterwards(
    run_dir: Path, points: Mapping[int, Mapping[str, float]], files: Sequence[Path], folder: str,
    *, patience_s: float = 10.0,
) -> SyncReport | None:  # fmt: skip
    """Appends to the journal of a run that is not at work any more, and sends it to the store where the run is.

    A point (metric, step, value) that the journal has is not recorded again, and a file replaces one of its name: the
    same findings twice leave MLflow as once. The run's status and the time of its end stay.

    Args:
        run_dir: the run's folder; nobody may train in it meanwhile (see :class:`difc_ray.runs.checkpoint.RunLock`).
        points: step -> metric -> value.
        files: of any place; those outside of the run's folder are copied into `artifacts/` there.
        folder: where the files are to be among the run's artifacts.
        patience_s: seconds of failures after which the rest is left to `difc-ray sync`.

    Returns:
        What was sent; None if the run was never recorded (`tracking.mode: off`).

    Raises:
        CheckpointError: a live process is at work on the journal.
        OSError: it cannot be written.
    """
    tracking = TrackingFolder(run_dir.absolute())
    records = list(read_records(tracking.journal)) if tracking.journal.exists() else []
    if not any(record.kind == "start" for record in records):
        return None
    known = _recorded(records)
    end = next((record for record in reversed(records) if record.kind not in _LATER), None)
    writer = JournalWriter(tracking.journal, max(record.seq for record in records))
    try:
        for step, values in sorted(points.items()):
            named = {clean_key(name): float(value) for name, value in values.items()}
            fresh = {name: value for name, value in named.items() if known.get((name, step)) != value}
            if fresh:
                writer.append("metrics", {"step": int(step), "values": fresh})
        for file in files:
            writer.append("artifact", {"path": _inside(run_dir.absolute(), file.absolute(), folder), "folder": folder})
        if end is not None and end.kind == "finish":  # the same end again, at its own time: the run stays closed
            writer.append("finish", {"ts": end.ts, "status": end.data["status"], "error": end.data["error"]})
    finally:
        writer.close()
    return sync(run_dir, patience_s=patience_s)


def _recorded(records: Sequence[Record]) -> dict[tuple[str, int], Any]:
    """The last value of every metric at every step."""
    return {
        (name, int(record.data["step"])): value
        for record in records
        if record.kind == "metrics"
        for name, value in record.data["values"].items()
    }


def _inside(run_dir: Path, file: Path, folder: str) -> str:
    """The path of a file relative to the run's folder, copied there if need be."""
    if not file.is_relative_to(run_dir):
        target = run_dir / "artifacts" / folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
        file = target
    return file.relative_to(run_dir).as_posix()
