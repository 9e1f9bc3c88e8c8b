"""What a checkpoint holds, in memory, and whether it fits a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from difc_ray.errors import CheckpointError

BUFFER_PREFIX = "buffer."
"""Names in ``named_weights`` that begin so are buffers; all others are parameters."""


@dataclass
class Snapshot:
    """The state of a run after a step, in plain tensors, JSON and text."""

    named_weights: dict[str, Tensor]
    """Parameters by name, and buffers under :data:`BUFFER_PREFIX` + name."""
    tensors: dict[str, Tensor]
    """The rest of the training state, by prefixed name: ``optimizer.exp_avg``, ``harmonizer.gram`` ..."""
    meta: dict[str, Any]
    """JSON values. ``step`` (int, number of steps taken) must be there; the rest is the caller's."""
    config_yaml: str
    """The resolved configuration as text; kept as it is, not parsed."""

    @property
    def step(self) -> int:
        """Number of steps taken."""
        return int(self.meta["step"])


def nonfinite_weight(named_weights: Mapping[str, Tensor]) -> str | None:
    """Name of the first weight with a NaN or an infinity, or None.

    A buffer may hold infinities (attention masks do), but no NaN.
    """
    for name, tensor in named_weights.items():
        if tensor.is_floating_point() and tensor.numel():
            lowest, highest = torch.aminmax(tensor.detach())  # carries a NaN through, and needs no memory
            bad = lowest.isnan() if name.startswith(BUFFER_PREFIX) else ~(lowest.isfinite() & highest.isfinite())
            if bool(bad):
                return name
    return None


def compare_layout(snapshot: Snapshot, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Checks that a checkpoint is of this model.

    Args:
        snapshot: the checkpoint.
        expected: name -> shape of every entry that the model has in ``named_weights``.

    Raises:
        CheckpointError: names or shapes differ; the message shows the first three with both shapes.
    """
    found = {name: tuple(tensor.shape) for name, tensor in snapshot.named_weights.items()}
    wanted = {name: tuple(shape) for name, shape in expected.items()}
    names = [*wanted, *(name for name in found if name not in wanted)]
    differing = [name for name in names if wanted.get(name) != found.get(name)]
    if differing:
        shown = "; ".join(
            f"`{name}` is {found.get(name, 'absent')} in the checkpoint and {wanted.get(name, 'absent')} in the model"
            for name in differing[:3]
        )
        more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise CheckpointError(
            f"a checkpoint must be of the same model, got {shown}{more} (checkpoint of step {snapshot.step}). "
            "Set `model` and its options as in the checkpoint's config.yaml, or start a new run."
        )
