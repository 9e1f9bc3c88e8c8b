"""Training and evaluation mode, and batch normalisation in each.

A BatchNorm module in training mode normalises with the statistics of its batch and moves its running statistics; in
evaluation mode it normalises with the running statistics and moves nothing. What becomes of the buffers that several
domains have moved is decided where the domains meet (`difc_ray.step.coordinator`).

Source: for `freeze`, DomainBed (Gulrajani & Lopez-Paz 2021), which keeps BatchNorm of its pretrained networks in
evaluation mode; scale and shift are trained there as here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model normalises over the batch."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def train_mode(model: nn.Module, *, frozen: bool) -> None:
    """Training mode, in which dropout is drawn; BatchNorm modules stay in evaluation mode if frozen.

    Frozen modules normalise with their running statistics and move none; their scale and shift still get gradients.
    """
    model.train()
    if frozen:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no graph inside; module by module the earlier mode afterwards (some may be frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
