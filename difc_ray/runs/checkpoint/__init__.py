"""Checkpoints: training state <-> a directory, whole or not at all, verified by sha256, never pickle.

<run>/checkpoints/
    step-00000900/      weights.safetensors  state.safetensors  state.json  config.yaml  manifest.json
    latest              name of the checkpoint written last (for people and scripts; we look ourselves)
    best.json           the checkpoint with the best validation score so far
"""

from __future__ import annotations

from difc_ray.runs.checkpoint.folder import DamagedCheckpointError
from difc_ray.runs.checkpoint.snapshot import BUFFER_PREFIX, Snapshot, compare_layout
from difc_ray.runs.checkpoint.store import (
    Rejected,
    UnreadableCheckpointError,
    best,
    find_newest_run,
    listed,
    load,
    newest_valid,
    run_lock,
    save,
)

__all__ = [
    "BUFFER_PREFIX",
    "DamagedCheckpointError",
    "Rejected",
    "Snapshot",
    "UnreadableCheckpointError",
    "best",
    "compare_layout",
    "find_newest_run",
    "listed",
    "load",
    "newest_valid",
    "run_lock",
    "save",
]
