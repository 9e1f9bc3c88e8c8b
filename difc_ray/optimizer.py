"""A torch optimizer on one flat parameter vector, with a schedule that is a function of the step's index.

Shape suffix: P parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difc_ray.config import OptimizerConfig


class FlatOptimizer:
    """``theta <- theta − lr · direction`` through `adam`, `adamw` or `sgd` (fused kernels: one pass over the vector).

    Args:
        config: name, learning rate and the rest.
        steps: length of the run, for the cosine schedule.
        theta_P: the parameters; updated in place.
        tensors: the optimizer's state to continue from, or empty.
    """

    def __init__(self, config: OptimizerConfig, steps: int, theta_P: Tensor, tensors: dict[str, Tensor]) -> None:
        self.config = config
        self.steps = steps
        self.theta = torch.nn.Parameter(theta_P, requires_grad=False)
        self._make(tensors)

    def step(self, direction_P: Tensor, step: int) -> float:
        """One update; returns the learning rate used."""
        lr = learning_rate(self.config, self.steps, step)
        self.optimizer.param_groups[0]["lr"] = lr
        self.theta.grad = direction_P
        self.optimizer.step()
        self.theta.grad = None
        return lr

    def tensors(self) -> dict[str, Tensor]:
        """The optimizer's state by name, over its own memory."""
        state = self.optimizer.state[self.theta]
        return {name: value for name, value in state.items() if isinstance(value, Tensor)}

    def reset(self) -> None:
        """Forgets all moments, as a freshly made optimizer."""
        self._make({})

    def _make(self, tensors: dict[str, Tensor]) -> None:
        c, params = self.config, [self.theta]
        self.optimizer: torch.optim.Optimizer
        if c.name == "sgd":
            self.optimizer = torch.optim.SGD(
                params, lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay, fused=True
            )
        else:
            kind = torch.optim.Adam if c.name == "adam" else torch.optim.AdamW
            self.optimizer = kind(params, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, fused=True)
        if tensors:
            self.optimizer.state[self.theta] = dict(tensors)


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """The learning rate at a step (from 0): linear warm-up, then constant or half a cosine down to zero."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))
