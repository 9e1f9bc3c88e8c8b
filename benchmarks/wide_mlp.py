"""A plug-in with a model of about 11 M parameters and little compute: what is measured is the exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from difc_ray.models import MODELS, Model

PARAMETERS = 11_000_000


@MODELS.register("wide_mlp")
def wide_mlp(image_shape: tuple[int, int, int], n_outputs: int, options: Mapping[str, Any]) -> Model:
    """One hidden layer, as wide as makes 11 M parameters."""
    inputs = image_shape[0] * image_shape[1] * image_shape[2]
    hidden = PARAMETERS // (inputs + n_outputs + 1)
    featurizer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(inputs, hidden), torch.nn.ReLU())
    return Model(featurizer, torch.nn.Linear(hidden, n_outputs))
