"""A torch optimizer on one flat parameter vector, with a schedule that is a function of the step's index.

Shape suffix: P parameters.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from difc_ray.config import Config, OptimizerConfig
    from difc_ray.vectors import ParameterLayout


class FlatOptimizer:
    """``theta <- theta − lr · direction`` through `adam`, `adamw` or `sgd` (fused kernels: one pass over the vector).

    With `decay_norms_and_biases: false` torch's optimizer is given no weight decay, and the parameters that decay get
    it here as torch would give it: adamw shrinks them by ``lr · weight_decay`` before the update, adam and sgd add
    ``weight_decay · theta`` to the direction. The vector stays whole, so that the update stays one pass.

    Args:
        config: name, learning rate and the rest.
        steps: length of the run, for the cosine schedule.
        theta_P: the parameters; updated in place.
        tensors: the optimizer's state to continue from, or empty.
        layout: where the parameters lie; needed for `decay_norms_and_biases: false`.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        steps: int,
        theta_P: Tensor,
        tensors: dict[str, Tensor],
        layout: ParameterLayout | None = None,
    ) -> None:
        self.config = config
        self.steps = steps
        self.theta = torch.nn.Parameter(theta_P, requires_grad=False)
        self.decay = config.weight_decay
        self.spans: list[slice] = []
        if self.decay > 0 and not config.decay_norms_and_biases:
            assert layout is not None, "which parameters decay is told by the layout"
            self.decay, self.spans = 0.0, decayed_spans(layout)
        self._make(tensors)

    def step(self, direction_P: Tensor, step: int) -> float:
        """One update; returns the learning rate used. The direction may be changed in place."""
        lr = learning_rate(self.config, self.steps, step)
        for span in self.spans:
            if self.config.name == "adamw":
                self.theta[span].mul_(1 - lr * self.config.weight_decay)
            else:
                direction_P[span].add_(self.theta[span], alpha=self.config.weight_decay)
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
            self.optimizer = torch.optim.SGD(params, lr=c.lr, momentum=c.momentum, weight_decay=self.decay, fused=True)
        else:
            kind = torch.optim.Adam if c.name == "adam" else torch.optim.AdamW
            self.optimizer = kind(params, lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=self.decay, fused=True)
        if tensors:
            self.optimizer.state[self.theta] = dict(tensors)


def state_shapes(config: OptimizerConfig, size: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors that an optimizer keeps for `size` parameters, once it has updated them."""
    if config.name == "sgd":
        return {"momentum_buffer": (size,)} if config.momentum else {}
    return {"step": (), "exp_avg": (size,), "exp_avg_sq": (size,)}


def decayed_spans(layout: ParameterLayout) -> list[slice]:
    """The ranges of the flat vector with parameters of two dimensions or more, neighbours joined.

    >>> from difc_ray.vectors import ParameterLayout
    >>> decayed_spans(ParameterLayout(("a", "b", "scale", "c"), ((2, 3), (1, 4), (5,), (2, 2))))
    [slice(0, 10, None), slice(15, 19, None)]
    """
    spans: list[slice] = []
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        span = layout.slices[name]
        if len(shape) >= 2 and spans and spans[-1].stop == span.start:
            spans[-1] = slice(spans[-1].start, span.stop)
        elif len(shape) >= 2:
            spans.append(span)
    return spans


def learning_rate(config: OptimizerConfig, steps: int, step: int) -> float:
    """The learning rate at a step (from 0): linear warm-up, then constant, half a cosine to zero, or cut in steps."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * config.step_factor ** ((step - config.warmup_steps) // config.step_every)
    progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + math.cos(math.pi * progress))


def resets_at(config: Config, step: int) -> bool:
    """Whether the optimizer forgets its moments before a step: where the annealing of the penalty ends, if asked."""
    anneal = config.alignment.anneal
    return anneal.reset_optimizer and anneal.steps > 0 and step == anneal.steps
