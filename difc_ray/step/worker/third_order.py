"""Whether scope `all` can be had: third derivatives against finite differences, before a run.

A layer whose kernel treats part of its history as constant gives a wrong gradient of a penalty on Hessians, without a
word. What :mod:`difc_ray.objectives.curvature.primitives` writes out is known; a plug-in's own layer is not.

Shape suffix: P parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from difc_ray.config import Config
from difc_ray.determinism import derive_seed
from difc_ray.errors import ConfigError
from difc_ray.models import Model, train_mode
from difc_ray.objectives.curvature import NetworkCurvature, WrittenOut, rademacher
from difc_ray.objectives.losses import Loss
from difc_ray.step.worker.dropout import SeededDropout
from difc_ray.vectors import ParameterLayout, write_theta

EXAMPLES, STEP, TOLERANCE = 2, 1e-6, 1e-3
"""Size of the random batch, length of the difference relative to θ, and what counts as right."""

TRIES = 3
"""Directions that are tried, until one agrees: across a kink of a ReLU the difference jumps, and says nothing."""


def check_third_order(config: Config, model: Model, loss: Loss, image_shape: tuple[int, ...], n_classes: int) -> None:
    """Compares the gradient of ``⟨c, D̂(θ) + g(θ)⟩`` with central differences, in float64 on a few random images.

    Args:
        config: the run's configuration.
        model: at the weights where the run starts; changed to float64 and back.
        loss: the classification loss.
        image_shape: of one example.
        n_classes: number of classes.

    Raises:
        ConfigError: they differ, or the model cannot be differentiated three times.
    """
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "third-order"))
    images = torch.randn(EXAMPLES, *image_shape, generator=generator, dtype=torch.float64)
    labels = torch.arange(EXAMPLES) % n_classes
    model.double()
    try:
        differences = [_compare(config, model, loss, images, labels, generator)]
        while differences[-1] > TOLERANCE and len(differences) < TRIES:
            differences.append(_compare(config, model, loss, images, labels, generator))
    except (NotImplementedError, RuntimeError) as error:  # torch's own, or that of fused attention
        raise ConfigError(
            f"`alignment.scope=all` differentiates the model three times, and `{config.model}` cannot be: "
            f"{' '.join(str(error).split())[:300]}. Write `alignment.scope=head`."
        ) from error
    finally:
        model.float()
    if min(differences) > TOLERANCE:
        raise ConfigError(
            f"third derivatives of model `{config.model}` must agree with finite differences for "
            f"`alignment.scope=all`, got a relative difference of {min(differences):.2g} at best "
            f"(limit {TOLERANCE:g}). One of its layers is not differentiated in full. Write `alignment.scope=head`, or "
            "write that layer with elementary operations."
        )


def _compare(
    config: Config, model: Model, loss: Loss, images: Tensor, labels: Tensor, generator: torch.Generator
) -> float:
    """Relative difference between the slope by differentiation and the one by differences, in a random direction."""
    parameters = list(model.parameters())
    size = ParameterLayout.of(model).size
    cotangent_P, direction_P = torch.randn(2, size, generator=generator, dtype=torch.float64)
    probes = rademacher(1, size, derive_seed(config.seed, "third-order-probes"), torch.float64)
    theta_P = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def penalty(at_P: Tensor) -> Tensor:
        """``⟨c, D̂ + g⟩`` at a point; what a forward pass moves is put back."""
        write_theta(at_P, parameters)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
        train_mode(model, frozen=config.batch_norm == "freeze")
        with SeededDropout(0, torch.device("cpu"), slice(0, EXAMPLES), EXAMPLES), WrittenOut():
            curvature = NetworkCurvature(loss.value(model.head(model.features(images)), labels), parameters)
        value: Tensor = cotangent_P @ (curvature.hutchinson_diagonal(probes) + curvature.gradient())
        return value

    gradients = torch.autograd.grad(penalty(theta_P), parameters, allow_unused=True, materialize_grads=True)
    slope = float(torch.cat([gradient.reshape(-1) for gradient in gradients]) @ direction_P)
    step = STEP * float(theta_P.norm() / direction_P.norm())
    ahead, behind = (float(penalty(theta_P + sign * step * direction_P).detach()) for sign in (1, -1))
    penalty(theta_P)  # leaves parameters and buffers as they were
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    expected = (ahead - behind) / (2 * step)
    if not math.isfinite(expected) or not math.isfinite(slope):
        return math.inf
    return abs(slope - expected) / max(abs(expected), abs(slope), 1e-12)
