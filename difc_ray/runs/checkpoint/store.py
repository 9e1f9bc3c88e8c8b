"""The folder of a run's checkpoints: save atomically, find the newest valid one, prune.

A checkpoint is written under a temporary name, flushed file by file, and renamed; whoever is killed at any
moment leaves the earlier checkpoints as they were. One process at a time may save (see :func:`run_lock`); any number
may read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from difc_ray.errors import CheckpointError
from difc_ray.files import UNFINISHED, Lock, flush, private_name, process_alive, replace
from difc_ray.runs.checkpoint.folder import (
    MANIFEST,
    DamagedCheckpointError,
    read_folder,
    size_on_disk,
    write_folder,
)
from difc_ray.runs.checkpoint.snapshot import Snapshot, nonfinite_weight

LATEST, BEST = "latest", "best.json"

_NAME = re.compile(r"step-(\d{8,})")
_REPLACED = ".old-"
_FOREIGN_LEFTOVER_S = 86_400.0
"""Leftovers of another host are removed by readers only after a day: nobody here can tell if it still writes."""


def run_lock(run_dir: Path) -> Lock:
    """The lock of a run folder, held by the process that trains in it."""
    return Lock(
        run_dir / ".lock",
        rule="one process at a time may train in a run folder",
        remedy="Stop that one or choose another `name`.",
    )


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that was passed over."""

    path: Path
    reason: str


def save(root: Path, snapshot: Snapshot, *, keep: int, best: bool) -> Path:
    """Writes a checkpoint, whole or not at all, and removes old ones.

    Saving a step again replaces it. Checkpoints of later steps belong to a future that the run, resumed from
    before them, has left; they are removed unless they are the best.

    Args:
        root: the run's folder of checkpoints; created if missing.
        snapshot: what to write.
        keep: how many of the newest checkpoints to keep, at least 1; the best is kept besides.
        best: whether this is the best so far.

    Returns:
        The directory ``root/step-%08d``.

    Raises:
        CheckpointError: non-finite weights, or the disk is full or refuses; earlier checkpoints are intact.
    """
    assert keep >= 1, keep
    if name := nonfinite_weight(snapshot.named_weights):
        raise CheckpointError(
            f"a checkpoint must have finite weights, got non-finite values in `{name}` at step {snapshot.step} "
            f"(`{root}`). Nothing was written; continue from an earlier checkpoint with a smaller learning rate."
        )
    target = root / f"step-{snapshot.step:08d}"
    temporary = root / private_name(UNFINISHED, target.name)
    try:
        if not root.is_dir():
            root.mkdir(parents=True)
            flush(root.parent)
        _remove_leftovers(root, of_anyone=True)
        _check_space(root, size_on_disk(snapshot))
        temporary.mkdir()
        write_folder(temporary, snapshot)
        _put_in_place(temporary, target)
        replace(root / LATEST, target.name + "\n", durable=True)
        if best:
            pointer = {"checkpoint": target.name, "step": snapshot.step}
            replace(root / BEST, json.dumps(pointer) + "\n", durable=True)
    except (OSError, SafetensorError) as error:
        raise _not_written(root, snapshot, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(root, snapshot.step, keep)
    return target


class UnreadableCheckpointError(CheckpointError):
    """The storage does not give a checkpoint. That says nothing about what is in it, so it is not passed over."""

    def __init__(self, path: Path, error: OSError) -> None:
        cause = error.strerror or str(error)
        super().__init__(
            f"a run's checkpoints must be readable, got {cause} (`{error.filename or path}`). Nothing was changed: try "
            "again when the storage answers, or move that checkpoint out of the run folder to go on from an older one."
        )


Check = Callable[[Snapshot], str | None]
"""What is wrong with a content that is read as it was written, as the end of a sentence; None: nothing."""


def load(path: Path, check: Check = lambda snapshot: None) -> Snapshot:
    """The content of one checkpoint directory, after every check.

    Args:
        path: the directory.
        check: what a state must be like, beyond what holds for every checkpoint.

    Raises:
        DamagedCheckpointError: it cannot be used; each kind of damage has its own sentence.
        UnreadableCheckpointError: the storage refuses.
    """
    try:
        snapshot = read_folder(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpointError(path, f"it cannot be read ({error})") from error
    except OSError as error:
        raise UnreadableCheckpointError(path, error) from error
    if reason := check(snapshot):
        raise DamagedCheckpointError(path, reason)
    return snapshot


def newest_valid(root: Path, check: Check = lambda snapshot: None) -> tuple[Path, Snapshot, list[Rejected]]:
    """The checkpoint of the latest step that passes every check.

    Args:
        root: the run's folder of checkpoints.
        check: as for :func:`load`.

    Returns:
        Its directory, its content, and the newer ones that were rejected, newest first.

    Raises:
        UnreadableCheckpointError: the storage refuses.
        CheckpointError: there is none, or all are damaged (each is listed with its reason).
    """
    try:
        if root.is_dir():
            _remove_leftovers(root, of_anyone=False)
        found = _checkpoints(root)
    except OSError as error:
        raise UnreadableCheckpointError(root, error) from error
    rejected: list[Rejected] = []
    for path in reversed(found):
        try:
            return path, load(path, check), rejected
        except DamagedCheckpointError as error:
            rejected.append(Rejected(path, error.reason))
    if not rejected:
        raise CheckpointError(
            f"a run must have a checkpoint, got none (`{root}`). Name another run folder, or start a new run."
        )
    reasons = "; ".join(f"{each.path.name}: {each.reason}" for each in rejected)
    raise CheckpointError(
        f"at least one checkpoint must be valid, got none (`{root}`: {reasons}). "
        "Restore one from a backup, or start a new run under another `name`."
    )


def listed(root: Path) -> dict[int, Path]:
    """Step -> directory of every checkpoint in a run's folder of them, ascending; whether it is valid is not asked."""
    return {_step(path): path for path in _checkpoints(root)}


def best(root: Path) -> Path | None:
    """The directory of the best checkpoint so far; None if there is none (any more)."""
    try:
        name = json.loads((root / BEST).read_text("utf-8"))["checkpoint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    valid = isinstance(name, str) and _NAME.fullmatch(name) and (root / name).is_dir()
    return root / name if valid else None


def find_newest_run(output: Path) -> Path | None:
    """The run folder under ``output`` with the checkpoint written last; None if no run has one.

    Damaged checkpoints count: to pass over a run because of them is not for us to decide.
    """
    newest: tuple[float, Path] | None = None
    for root in sorted(output.glob("*/checkpoints")):
        times = [_written_at(path) for path in _checkpoints(root)]
        if times and (newest is None or max(times) > newest[0]):
            newest = max(times), root.parent
    return newest[1] if newest else None


def _written_at(path: Path) -> float:
    """When a checkpoint was written, seconds since the epoch."""
    manifest = path / MANIFEST
    return (manifest if manifest.exists() else path).stat().st_mtime


def _checkpoints(root: Path) -> list[Path]:
    """Checkpoint directories by step, oldest first; whether they are valid is not asked."""
    entries = list(root.iterdir()) if root.is_dir() else []
    return sorted((path for path in entries if _NAME.fullmatch(path.name) and path.is_dir()), key=_step)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _put_in_place(temporary: Path, target: Path) -> None:
    """Renames the finished directory to its name; one that has the name already steps aside first."""
    replaced = target.parent / private_name(_REPLACED, target.name)
    if target.exists():
        target.rename(replaced)
    temporary.rename(target)
    flush(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _prune(root: Path, step: int, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints up to this step, and the best."""
    kept = {*[path for path in _checkpoints(root) if _step(path) <= step][-keep:], best(root)}
    for path in _checkpoints(root):
        if path not in kept:
            doomed = root / private_name(UNFINISHED, path.name)
            path.rename(doomed)  # so that a half-removed one is never taken for a damaged one
            shutil.rmtree(doomed, ignore_errors=True)


def _remove_leftovers(root: Path, *, of_anyone: bool) -> None:
    """Removes what a killed process left; a checkpoint that was to be replaced and was not goes back to its name.

    Args:
        root: the folder of checkpoints.
        of_anyone: also those whose owner may still be alive: for the one process that may save.
    """
    for entry in root.iterdir():
        if not entry.name.startswith((UNFINISHED, _REPLACED)) or not (of_anyone or _is_orphan(entry)):
            continue
        target = root / entry.name.removeprefix(_REPLACED).partition("@")[0]
        if entry.name.startswith(_REPLACED) and not target.exists():
            entry.rename(target)
        elif entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _is_orphan(entry: Path) -> bool:
    """Whether the process that made a leftover is gone, as far as can be told from here."""
    _, _, owner = entry.name.partition("@")
    host, _, pid = owner.rpartition("@")
    if host == socket.gethostname() and pid.isdigit():
        return not process_alive(int(pid), None, host)
    return time.time() - entry.stat().st_mtime > _FOREIGN_LEFTOVER_S


def _check_space(root: Path, needed: int) -> None:
    """Refuses before a byte is written if the disk has no room."""
    if shutil.disk_usage(root).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _not_written(root: Path, snapshot: Snapshot, error: Exception) -> CheckpointError:
    """The message for a disk that does not take the checkpoint."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"os error (\d+)", str(error))):
        number = int(match[1])
    cause = os.strerror(number) if number else str(error)
    if number == errno.EFBIG:
        cause += ", the limit of `ulimit -f`"
    existing = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    needed, free = size_on_disk(snapshot), shutil.disk_usage(existing).free
    return CheckpointError(
        f"a checkpoint must fit on the disk, got {cause} for step {snapshot.step} (`{root}`: "
        f"it needs {needed / 1e6:.1f} MB ({needed} bytes), {free / 1e6:.1f} MB ({free} bytes) are free). "
        "Make room or choose another `output`; earlier checkpoints are intact."
    )
