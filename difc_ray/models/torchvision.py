"""ResNet-18 and -50, ConvNeXt-Tiny and ViT-B/16 of torchvision, with its ImageNet weights.

`weights: imagenet` is torchvision's first set of weights (IMAGENET1K_V1), for ResNet-50 too, where a later set exists:
they are what DomainBed's results start from. Images must then be normalised as torchvision's are.

Source: He et al. 2016 (ResNet), Liu et al. 2022 (ConvNeXt), Dosovitskiy et al. 2021 (ViT), in torchvision's versions.
Differs from the source: the head has as many outputs as there are classes. A ViT is made for the size of the images;
position embeddings of weights for another size are interpolated (bicubic, by torchvision's own function).
"""

from __future__ import annotations

import importlib
import math
import pickle
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from difc_ray.errors import ConfigError, ended
from difc_ray.models.backbones import Backbone
from difc_ray.models.base import MODELS, ImageShape, Model
from difc_ray.models.weights import FEATURIZER, Shape, sha256

PATCH = 16
"""Side of a ViT's patches in pixels."""

POSITIONS = "encoder.pos_embedding"


class TorchvisionBackbone(Backbone):
    """A network of torchvision; options as for every :class:`Backbone`."""

    def network(self, image_shape: ImageShape, n_outputs: int) -> nn.Module:
        """The network for three channels; a ViT for square images of whole patches."""
        channels, height, width = image_shape
        if channels != 3:
            raise ConfigError(f"Images for {self.title} must have 3 channels. Found {channels}. Take another model.")
        options: dict[str, Any] = {"num_classes": n_outputs}
        if self.name.startswith("vit"):
            if height != width or height % PATCH:
                raise ConfigError(
                    f"Images for {self.title} must be square, with a side that is a multiple of {PATCH} pixels. Found "
                    f"{height}x{width}. Write for example `image_size={max(1, round(height / PATCH)) * PATCH}`."
                )
            options["image_size"] = height
        made: nn.Module = importlib.import_module("torchvision.models").get_model(self.name, weights=None, **options)
        return made

    def imagenet_url(self) -> str:
        """Where torchvision says that the weights are."""
        kinds = importlib.import_module("torchvision.models").get_model_weights(self.name)
        return str(kinds["IMAGENET1K_V1"].url)

    def imagenet_file(self, *, download: bool) -> Path:
        """The file in torch's cache, where `download` fetches it to.

        Raises:
            ConfigError: it is not there, and may not or cannot be fetched.
        """
        url = self.imagenet_url()
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
        if file.is_file():
            return file
        rule = f"The ImageNet weights of {self.title} must be in torch's cache"
        by_hand = f"fetch {url} yourself and put it into `{file.parent}` (TORCH_HOME sets the cache's folder)"
        if not download:
            raise ConfigError(
                f"{rule}. Found no `{file}`. Write `model_options.download=true` to fetch it, or {by_hand}."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), _hash_prefix(file), progress=False)
        except (OSError, RuntimeError) as error:  # URLError is an OSError; a wrong hash a RuntimeError
            raise ConfigError(
                f"{rule}, or come from the network. Found {url}: {ended(str(error))} Try again, or {by_hand}."
            ) from None
        return file

    def imagenet_tensors(self, file: Path, model: Model, image_shape: ImageShape) -> dict[str, Tensor]:
        """What torchvision's file holds; read without running any code of it."""
        digest = sha256(file)
        if not digest.startswith(_hash_prefix(file)):
            raise ConfigError(
                f"The ImageNet weights of {self.title} must have the hash in their name. Found {digest[:8]} for "
                f"`{file}`. Remove the file, and fetch it again."
            )
        try:
            held: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"The ImageNet weights of {self.title} must be readable. Found `{file}`: {ended(why)} Fetch it again."
            ) from None
        return held

    def resizable(self, name: str, found: Shape, expected: Shape) -> bool:
        """Position embeddings of another square number of patches."""
        return (
            name == FEATURIZER + POSITIONS
            and len(found) == len(expected) == 3
            and found != expected
            and (found[0], found[2]) == (expected[0], expected[2])
            and math.isqrt(found[1] - 1) ** 2 == found[1] - 1
        )

    def resized(self, name: str, tensor: Tensor, expected: Shape) -> Tensor:
        """Interpolated position embeddings."""
        side = math.isqrt(expected[1] - 1) * PATCH
        fit = importlib.import_module("torchvision.models.vision_transformer").interpolate_embeddings
        fitted: Tensor = fit(side, PATCH, {POSITIONS: tensor})[POSITIONS]
        return fitted


def _hash_prefix(file: Path) -> str:
    """The beginning of the file's sha256, which torchvision puts at the end of its name."""
    return file.stem.rpartition("-")[2]


for _name in ("resnet18", "resnet50", "convnext_tiny", "vit_b_16"):
    MODELS.register(_name)(TorchvisionBackbone(_name))
