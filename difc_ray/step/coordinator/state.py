"""Everything that training carries from one step to the next, and how many steps may be skipped.

Shape suffix: P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from difc_ray.errors import NumericError
from difc_ray.objectives.losses import LossState
from difc_ray.step.worker import ModelState

SKIPS_IN_A_ROW = 5
"""A run of this many non-finite steps ends training."""

SKIPS_IN_WINDOW, SKIP_WINDOW = 10, 1_000
"""More non-finite steps than this among the last ``SKIP_WINDOW`` end training too."""

THETA = "theta"
"""Name of the parameters among the tensors of a state."""

GROUPS = {
    "buffer": "buffers",
    "optimizer": "optimizer",
    "harmonizer": "harmonizer",
    "curvature": "curvature",
    "loss": "loss",
}
"""What begins the names of a state's tensors, and the field that has them."""

_ARRAYS = ("harmonizer", "loss")


@dataclass
class TrainState:
    """Everything that training carries from one step to the next: what a checkpoint holds.

    Args:
        step: number of steps taken, skipped ones included.
        theta_P: (P,) float32 parameters.
        buffers: the model's buffers by name; with `batch_norm: per_domain` also every source's own.
        optimizer: the optimizer's tensors by name.
        harmonizer: the rule's arrays by name.
        curvature: what is known of the curvature, by name, for the rules that ask for it.
        loss: what the loss carries, by name, where it has a memory.
        skipped: the steps skipped as non-finite within the last ``SKIP_WINDOW``.
    """

    step: int
    theta_P: Tensor
    buffers: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    harmonizer: dict[str, np.ndarray] = field(default_factory=dict)
    curvature: dict[str, Tensor] = field(default_factory=dict)
    loss: LossState = field(default_factory=dict)
    skipped: list[int] = field(default_factory=list)

    def named(self) -> dict[str, Tensor]:
        """All tensors and arrays by name, over the same memory: `theta`, `buffer.NAME`, `optimizer.NAME` and so on.

        With `step` and `skipped` they are the state; :meth:`from_named` is the inverse.
        """
        named = {THETA: self.theta_P}
        for group, attribute in GROUPS.items():
            for name, value in getattr(self, attribute).items():
                named[f"{group}.{name}"] = torch.as_tensor(value)
        return named

    @classmethod
    def from_named(cls, named: Mapping[str, Tensor], *, step: int, skipped: Sequence[int]) -> TrainState:
        """The state of such tensors, over their memory."""
        state = cls(step=step, theta_P=named[THETA], skipped=list(skipped))
        for full_name, value in named.items():
            group, _, name = full_name.partition(".")
            if group in GROUPS:
                getattr(state, GROUPS[group])[name] = value.numpy() if group in _ARRAYS else value
        return state

    def model_state(self, loss: Mapping[str, np.ndarray] | None = None) -> ModelState:
        """The part that workers need, over the same memory, and what they are told of the loss."""
        return ModelState(
            theta_P=self.theta_P.numpy(),
            buffers={name: buffer.numpy() for name, buffer in self.buffers.items()},
            loss=dict(loss or {}),
        )

    def skip(self, reason: str) -> None:
        """Leaves weights and optimizer as they are and moves on: batches and schedule go by the step's index.

        Raises:
            NumericError: it was one step too many.
        """
        step = self.step
        self.skipped = [s for s in self.skipped if s > step - SKIP_WINDOW] + [step]
        self.step += 1
        in_a_row = set(range(step - SKIPS_IN_A_ROW + 1, step + 1))
        if in_a_row <= set(self.skipped) or len(self.skipped) > SKIPS_IN_WINDOW:
            raise NumericError(
                f"Step {step}: {reason}. {len(self.skipped)} of the last {SKIP_WINDOW} steps were not finite, "
                f"and {SKIPS_IN_A_ROW} in a row or more than {SKIPS_IN_WINDOW} end the run. Lower `optimizer.lr` or "
                "`alignment.alpha` / `alignment.beta`, and look at the data of that domain."
            )
