"""Classifiers as a featurizer and a linear head, and their registry.

A model of your own: a function ``(image_shape, n_outputs, options) -> Model`` registered in :data:`MODELS`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difc_ray.determinism import derive_seed
from difc_ray.errors import ConfigError
from difc_ray.registry import Registry, check_option_names


class Model(nn.Module):
    """``logits = head(featurizer(images))``.

    The head is registered last, so that its parameters are the end of the flat vector, a contiguous range.

    Args:
        featurizer: (N, C, H, W) images to (N, F) features.
        head: the classifier, F features to outputs.
    """

    def __init__(self, featurizer: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.head = head

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N O"]:
        """The logits."""
        logits: Tensor = self.head(self.featurizer(images))
        return logits


ModelFactory = Callable[[tuple[int, int, int], int, Mapping[str, Any]], Model]

MODELS: Registry[ModelFactory] = Registry("model")
"""Model factories by name; ``MODELS.get(name)(image_shape, n_outputs, options)``."""


def build_model(
    name: str, image_shape: tuple[int, int, int], n_outputs: int, options: Mapping[str, Any], seed: int
) -> Model:
    """A model with initial weights drawn from ``derive_seed(seed, "init")``; torch's own generator stays as it was.

    Args:
        name: a registered model.
        image_shape: (C, H, W).
        n_outputs: outputs of the head, >= 1.
        options: the model's own options.
        seed: seed of the run.

    Raises:
        ConfigError: unknown model or option, a wrong value, images that the model cannot take, or a model (from a
            plug-in) that does not end in its linear head.
    """
    factory = MODELS.get(name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))  # torch.manual_seed would reseed GPUs as well
        model = factory(image_shape, n_outputs, options)
    names = [parameter for parameter, _ in model.named_parameters()]
    if not isinstance(model.head, nn.Linear) or names[-1] not in ("head.weight", "head.bias"):
        raise ConfigError(
            f"A model must be a featurizer and, registered after it, a linear head. Found `{names[-1]}` as the last "
            f"parameter of model `{name}`. Return `Model(featurizer, nn.Linear(...))`."
        )
    return model


@MODELS.register("mlp")
def mlp(image_shape: tuple[int, int, int], n_outputs: int, options: Mapping[str, Any]) -> Model:
    """Fully connected layers with ReLU.

    Args:
        image_shape: (C, H, W).
        n_outputs: outputs of the head.
        options: ``hidden``: sizes of the hidden layers, a non-empty list of integers >= 1, default [256, 256].
            ``dropout``: probability in [0, 1) after every hidden layer, default 0.
    """
    check_option_names("model `mlp`", options, ("hidden", "dropout"))
    hidden, dropout = _hidden(options.get("hidden", (256, 256))), _dropout(options)
    sizes = [math.prod(image_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
    return Model(nn.Sequential(*layers), nn.Linear(sizes[-1], n_outputs))


@MODELS.register("lenet")
def lenet(image_shape: tuple[int, int, int], n_outputs: int, options: Mapping[str, Any]) -> Model:
    """The small convolutional network of the digits experiments: two 5×5 convolutions, 500 features.

    Args:
        image_shape: (C, H, W), H and W at least 16.
        n_outputs: outputs of the head.
        options: ``dropout``: probability in [0, 1), after the second convolution and on the features, default 0.

    Raises:
        ConfigError: the images are smaller than 16×16.

    Source: Long et al. 2018 (CDAN), their digits network.
    Differs from the source: dropout is 0 unless asked for (there 0.5), and the channels follow the images.
    """
    check_option_names("model `lenet`", options, ("dropout",))
    dropout, (channels, height, width) = _dropout(options), image_shape
    if min(height, width) < 16:
        raise ConfigError(f"Model `lenet` needs images of at least 16x16. Found {height}x{width}. Take `model=mlp`.")
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    featurizer = nn.Sequential(
        nn.Conv2d(channels, 20, kernel_size=5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(20, 50, kernel_size=5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(50 * rows * columns, 500), nn.ReLU(), nn.Dropout(dropout),
    )  # fmt: skip
    return Model(featurizer, nn.Linear(500, n_outputs))


def _dropout(options: Mapping[str, Any]) -> float:
    """The option ``dropout``, checked."""
    value = options.get("dropout", 0.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"`dropout` must be a number in [0, 1). Found `dropout = {value!r}`.")
    return float(value)


def _hidden(value: object) -> tuple[int, ...]:
    """The option ``hidden``, checked."""
    sizes = tuple(value) if isinstance(value, list | tuple) else ()
    if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
        raise ConfigError(
            f"`hidden` must be a non-empty list of integers >= 1. Found `hidden = {value!r}`. Try `hidden=256,256`."
        )
    return sizes
