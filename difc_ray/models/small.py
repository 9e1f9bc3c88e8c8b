"""Small networks that are made here: a perceptron, and the network of the digits experiments."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from difc_ray.errors import ConfigError
from difc_ray.models.base import MODELS, ImageShape, Model
from difc_ray.options import Count, Decay, Rule


@dataclass(frozen=True, kw_only=True)
class MlpOptions:
    """Options of `model=mlp`."""

    hidden: Annotated[
        tuple[Count, ...], Field(min_length=1), Rule("a non-empty list of integers >= 1", "Try `hidden=256,256`.")
    ] = (256, 256)
    """Sizes of the hidden layers, each >= 1."""
    dropout: Decay = 0.0
    """Probability in [0, 1) of dropout after every hidden layer."""
    init: Literal["torch", "xavier_uniform"] = "torch"
    """Initial weights: torch's own default, or `xavier_uniform` with biases 0."""


@MODELS.register("mlp", options=MlpOptions)
def mlp(image_shape: ImageShape, n_outputs: int, options: MlpOptions) -> Model:
    """Fully connected layers with ReLU.

    Args:
        image_shape: (C, H, W).
        n_outputs: outputs of the head.
        options: see :class:`MlpOptions`.
    """
    sizes = [math.prod(image_shape), *options.hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(options.dropout)]
    model = Model(nn.Sequential(*layers), nn.Linear(sizes[-1], n_outputs))
    if options.init == "xavier_uniform":
        for layer in model.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    return model


@dataclass(frozen=True, kw_only=True)
class LenetOptions:
    """Options of `model=lenet`."""

    dropout: Decay = 0.0
    """Probability in [0, 1) of dropout after the second convolution and on the features."""


@MODELS.register("lenet", options=LenetOptions)
def lenet(image_shape: ImageShape, n_outputs: int, options: LenetOptions) -> Model:
    """The small convolutional network of the digits experiments: two 5×5 convolutions, 500 features.

    Args:
        image_shape: (C, H, W), H and W at least 16.
        n_outputs: outputs of the head.
        options: see :class:`LenetOptions`.

    Raises:
        ConfigError: the images are smaller than 16×16.

    Source: Long et al. 2018 (CDAN), their digits network.
    Differs from the source: dropout is 0 unless asked for (there 0.5), and the channels follow the images.
    """
    dropout, (channels, height, width) = options.dropout, image_shape
    if min(height, width) < 16:
        raise ConfigError(f"Model `lenet` needs images of at least 16x16. Found {height}x{width}. Take `model=mlp`.")
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (height, width))
    featurizer = nn.Sequential(
        nn.Conv2d(channels, 20, kernel_size=5), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(20, 50, kernel_size=5), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(50 * rows * columns, 500), nn.ReLU(), nn.Dropout(dropout),
    )  # fmt: skip
    return Model(featurizer, nn.Linear(500, n_outputs))
