"""Any network of the timm library as ``timm:NAME``, with the extra `timm`.

`weights: imagenet` is timm's own pretrained set of the name (whatever it was trained on); its file comes from the
Hugging Face hub's cache, and only as safetensors.
"""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from difc_ray.errors import ConfigError, ended
from difc_ray.models.backbones import Backbone
from difc_ray.models.base import MODELS, ImageShape, Model

FILE = "model.safetensors"
"""What the hub calls weights that are not pickled."""


class TimmBackbone(Backbone):
    """A network of timm; options as for every :class:`Backbone`."""

    @property
    def title(self) -> str:
        """The model as messages call it."""
        return f"model `timm:{self.name}`"

    def network(self, image_shape: ImageShape, n_outputs: int) -> nn.Module:
        """The network for images of any number of channels; one of a fixed size is made for theirs."""
        made: nn.Module = self._library().create_model(self.name, **self._arguments(image_shape, n_outputs))
        return made

    def imagenet_file(self, *, download: bool) -> Path:
        """The file in the hub's cache, where `download` fetches it to.

        Raises:
            ConfigError: timm knows no such file, it is not there, or it may not or cannot be fetched.
        """
        known = self._library().get_pretrained_cfg(self.name)
        repository = getattr(known, "hf_hub_id", None)
        if not repository:
            raise ConfigError(
                f"`weights=imagenet` needs weights on the hub. Found none of {self.title} in timm. Name a file of "
                "yours, `weights=PATH.safetensors`."
            )
        hub = importlib.import_module("huggingface_hub")
        try:
            return Path(hub.hf_hub_download(repository, FILE, local_files_only=not download))
        except (OSError, ValueError) as error:  # the hub's errors are of these kinds
            cache = hub.constants.HF_HUB_CACHE
            why = "" if not download else f" ({ended(str(error).splitlines()[0])})"
            remedy = "Try again" if download else "Write `model_options.download=true` to fetch it"
            raise ConfigError(
                f"The weights of {self.title} must be in the hub's cache. Found no `{FILE}` of `{repository}` in "
                f"`{cache}`{why}. {remedy}, or `huggingface-cli download {repository} {FILE}` where there is a "
                "network (HF_HOME sets the cache's folder)."
            ) from None

    def imagenet_tensors(self, file: Path, model: Model, image_shape: ImageShape) -> dict[str, Tensor]:
        """What timm makes of the file for this network: position embeddings and first layers fitted as timm does."""
        library, n_outputs = self._library(), model.head.out_features
        arguments = self._arguments(image_shape, n_outputs)
        try:
            network = library.create_model(
                self.name, pretrained=True, pretrained_cfg_overlay={"file": str(file)}, **arguments
            )
        except (RuntimeError, ValueError, OSError) as error:  # a damaged or foreign file
            why = str(error).splitlines()[0]
            raise ConfigError(
                f"The weights of {self.title} must be timm's. Found `{file}`: {ended(why)} Fetch the file again."
            ) from None
        held: dict[str, Tensor] = network.state_dict()
        foreign = library.get_pretrained_cfg(self.name).num_classes != n_outputs  # timm has left its head out
        return {name: held[name] for name in held if not (foreign and name.startswith(f"{model.head_name}."))}

    def _arguments(self, image_shape: ImageShape, n_outputs: int) -> dict[str, Any]:
        arguments: dict[str, Any] = {"num_classes": n_outputs, "in_chans": image_shape[0]}
        known = self._library().get_pretrained_cfg(self.name)
        if known is not None and known.fixed_input_size:
            arguments["img_size"] = image_shape[1:]
        return arguments

    def _library(self) -> Any:
        """The library, which must know the name.

        Raises:
            ConfigError: it is not installed, or does not.
        """
        try:
            library = importlib.import_module("timm")
        except ModuleNotFoundError:
            raise ConfigError(
                f"{self.title} needs the library timm. Found none. Run `pip install 'difc-ray[timm]'`."
            ) from None
        if not library.is_model(self.name):
            near = difflib.get_close_matches(self.name, library.list_models(), n=3, cutoff=0.6)
            hint = f"Did you mean {' or '.join(f'`timm:{name}`' for name in near)}?" if near else ""
            raise ConfigError(f"Unknown {self.title}. {hint or 'All names: `timm.list_models()`.'}")
        return library


@MODELS.adapter("timm")
def timm_backbone(name: str) -> TimmBackbone:
    """The network that timm knows under a name; the library is imported when it is made."""
    return TimmBackbone(name)
