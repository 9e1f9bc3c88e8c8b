"""Normalisation layers written out, so that they can be differentiated three times.

The fused kernels of LayerNorm, BatchNorm in training mode and InstanceNorm keep mean and standard deviation without
their history: the first two derivatives are right, the third is silently wrong or raises. Written with elementary
operations all are right. Fused attention has no second derivative at all.

Shape suffixes: none; tensors have the shapes that torch gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

FUSED = (nn.MultiheadAttention, nn.RNNBase)
"""Modules whose kernels cannot be differentiated three times, and that cannot be written out here."""


def fused_layers(model: nn.Module) -> list[str]:
    """Names of the layers that scope `all` cannot serve."""
    return [name for name, module in model.named_modules() if isinstance(module, FUSED)]


class WrittenOut(TorchFunctionMode):
    """Context: normalisation of modules and functions inside is done with elementary operations."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        told = dict(kwargs or {})
        written = _WRITTEN.get(func)
        if written is not None:
            return written(*args, **told)
        if func in (functional.scaled_dot_product_attention, functional.multi_head_attention_forward):
            # the check of third derivatives before a run hears this, and makes an error of the configuration of it
            raise NotImplementedError("fused attention cannot be differentiated twice; write `alignment.scope=head`")
        return func(*args, **told)


def layer_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As ``functional.layer_norm``; the names of the arguments are torch's, here and below."""
    dims = tuple(range(-len(normalized_shape), 0))
    found = _normalised(input, dims, eps)
    found = found if weight is None else found * weight
    return found if bias is None else found + bias


def batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As ``functional.batch_norm``; in evaluation mode torch's own, which is right."""
    if not training:
        return functional.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    dims = (0, *range(2, input.dim()))
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            count = input.numel() // input.shape[1]
            running_mean.lerp_(input.mean(dims), momentum)
            running_var.lerp_(input.var(dims, unbiased=False) * (count / max(1, count - 1)), momentum)
    return _scaled(_normalised(input, dims, eps), weight, bias)


def instance_norm(
    input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:  # fmt: skip
    """As ``functional.instance_norm``; with running statistics torch's own."""
    if not use_input_stats or running_mean is not None:
        return functional.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    return _scaled(_normalised(input, tuple(range(2, input.dim())), eps), weight, bias)


_WRITTEN: dict[Callable[..., Any], Callable[..., Tensor]] = {
    functional.layer_norm: layer_norm,
    functional.batch_norm: batch_norm,
    functional.instance_norm: instance_norm,
}


def _normalised(input: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centred = input - input.mean(dims, keepdim=True)
    return centred * (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _scaled(input: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift of each channel."""
    shape = (1, -1, *(1,) * (input.dim() - 2))
    found = input if weight is None else input * weight.view(shape)
    return found if bias is None else found + bias.view(shape)
