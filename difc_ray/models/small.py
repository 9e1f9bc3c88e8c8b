"""Small networks that are made here: a perceptron, and the network of the digits experiments."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from difc_ray.errors import ConfigError
from difc_ray.models.base import MODELS, Model, dropout_of
from difc_ray.registry import check_option_names


@MODELS.register("mlp")
def mlp(image_shape: tuple[int, int, int], n_outputs: int, options: Mapping[str, Any]) -> Model:
    """Fully connected layers with ReLU.

    Args:
        image_shape: (C, H, W).
        n_outputs: outputs of the head.
        options: ``hidden``: sizes of the hidden layers, a non-empty list of integers >= 1, default [256, 256].
            ``dropout``: probability in [0, 1) after every hidden layer, default 0. ``init``: `torch` (its own default)
            or `xavier_uniform`, with biases 0, default `torch`.
    """
    check_option_names("model `mlp`", options, ("hidden", "dropout", "init"))
    hidden, dropout = _hidden(options.get("hidden", (256, 256))), dropout_of(options)
    sizes = [math.prod(image_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(dropout)]
    model = Model(nn.Sequential(*layers), nn.Linear(sizes[-1], n_outputs))
    init = options.get("init", "torch")
    if init not in ("torch", "xavier_uniform"):
        raise ConfigError(f"`init` must be `torch` or `xavier_uniform`, got {init!r} (model `mlp`). Correct it.")
    if init == "xavier_uniform":
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return model


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
    dropout, (channels, height, width) = dropout_of(options), image_shape
    if min(height, width) < 16:
        raise ConfigError(f"Model `lenet` needs images of at least 16x16. Found {height}x{width}. Take `model=mlp`.")
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    featurizer = nn.Sequential(
        nn.Conv2d(channels, 20, kernel_size=5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(20, 50, kernel_size=5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(50 * rows * columns, 500), nn.ReLU(), nn.Dropout(dropout),
    )  # fmt: skip
    return Model(featurizer, nn.Linear(500, n_outputs))


def _hidden(value: object) -> tuple[int, ...]:
    """The option ``hidden``, checked."""
    sizes = tuple(value) if isinstance(value, list | tuple) else ()
    if not sizes or not all(isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in sizes):
        raise ConfigError(
            f"`hidden` must be a non-empty list of integers >= 1. Found `hidden = {value!r}`. Try `hidden=256,256`."
        )
    return sizes
