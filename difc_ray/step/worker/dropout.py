"""Dropout drawn by sample: the same masks whether one worker has a batch or several divide it.

Shape suffix: B examples of the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from difc_ray.errors import ConfigError
from difc_ray.models import Model, train_mode

_FEATURES = (functional.dropout1d, functional.dropout2d, functional.dropout3d)
"""Kinds that drop whole channels."""

EXAMPLES = 11
"""A part of a batch for the check: few sizes of tensors without samples are a multiple of it."""


class SeededDropout:
    """Context: torch's generators of a device seeded, and put back on the way out.

    Args:
        seed: of the step.
        device: where the model computes.
        part: this worker's places in the batch.
        size: B, examples in the whole batch.
    """

    def __init__(self, seed: int, device: torch.device, part: slice, size: int) -> None:
        self.seed = seed
        self.fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        whole = part == slice(0, size)
        self.mode = None if whole else _PartOfTheMask(part, size)

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)
        if self.mode is not None:
            self.mode.__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *exc: object) -> None:
        if self.mode is not None:
            self.mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        self.fork.__exit__(None, None, None)


def check_divisible(model: Model, image_shape: tuple[int, ...], *, frozen: bool) -> None:
    """Passes examples through a model as if they were a part of a larger batch.

    Args:
        model: in memory; its buffers stay as they are.
        image_shape: of one example.
        frozen: whether BatchNorm keeps to its running statistics.

    Raises:
        ConfigError: a dropout of the model cannot be divided.
    """
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    train_mode(model, frozen=frozen)
    with torch.no_grad(), SeededDropout(0, torch.device("cpu"), slice(0, EXAMPLES), 2 * EXAMPLES):
        model.head(model.features(torch.zeros(EXAMPLES, *image_shape)))
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])


class _PartOfTheMask(TorchFunctionMode):
    """Draws every mask for the whole batch and uses the part of this worker.

    The masks are those that torch draws on a CPU for the whole batch, bit for bit; its kernels for GPUs draw others.
    """

    def __init__(self, part: slice, size: int) -> None:
        super().__init__()
        self.part, self.size = part, size

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        named = dict(kwargs or {})
        if func is functional.dropout or func in _FEATURES:
            return self._dropped(func in _FEATURES, *args, **named)
        if func is Tensor.bernoulli_:  # stochastic depth is written with it
            return args[0].copy_(self._drawn(args[0], tuple(args[0].shape), *args[1:], **named))
        if func is functional.scaled_dot_product_attention and named.get("dropout_p", 0.0) > 0:
            raise ConfigError(  # fused kernels draw their own mask, of which nobody else can have a part
                "dropout of attention weights must be 0 where a batch is divided, got "
                f"{named['dropout_p']:g} (cluster.replicas, alignment.micro_batches). Set it to 0 in the model, or "
                "write 1 for both."
            )
        return func(*args, **named)

    def _dropped(
        self, channels: bool, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        """What ``functional.dropout`` returns; the names of the arguments are torch's."""
        if not training or p == 0:
            return input
        shape = tuple(input.shape[:2]) + (1,) * (input.dim() - 2) if channels else tuple(input.shape)
        mask = self._drawn(input, shape, 1 - p).div_(1 - p)
        return input.mul_(mask) if inplace else input * mask

    def _drawn(self, like: Tensor, shape: tuple[int, ...], keep: float | Tensor = 0.5) -> Tensor:
        """This worker's part of a Bernoulli mask of the whole batch."""
        count = self.part.stop - self.part.start
        if not shape or shape[0] % count:
            raise ConfigError(  # whose places in the batch its entries are, nobody can tell
                f"dropout needs the {count} examples in front where a batch is divided, got a tensor of shape "
                f"{tuple(like.shape)} (cluster.replicas, alignment.micro_batches). Reshape it in the model, or write 1 "
                "for both."
            )
        each = shape[0] // count
        whole = torch.empty(self.size * each, *shape[1:], dtype=like.dtype, device=like.device).bernoulli_(keep)
        return whole[self.part.start * each : self.part.stop * each]
