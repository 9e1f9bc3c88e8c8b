"""A classifier as a featurizer and a linear head, the registry of classifiers, and how one is made.

A model of your own: a function ``(image_shape, n_outputs, options) -> Model`` registered in :data:`MODELS`, with the
dataclass of its options: ``@MODELS.register("mine", options=MineOptions)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difc_ray.determinism import derive_seed
from difc_ray.errors import ConfigError
from difc_ray.options import absolute_options, make_options, option_type
from difc_ray.registry import Registry

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Where a model's initial weights came from.

    Args:
        source: the file.
        sha256: hex digest of its content.
        head: whether the head came from there too; otherwise it has the initial values of the seed.
    """

    source: str
    sha256: str
    head: bool


class Model(nn.Module):
    """``logits = head(featurizer(images))``.

    The head is registered last, so that its parameters are the end of the flat vector, a contiguous range.

    Args:
        featurizer: (N, C, H, W) images to (N, F) features.
        head: the classifier, F features to outputs.
    """

    precision: Literal["float32", "bf16"] = "float32"
    """What the featurizer computes in; the head, and all that is derived from it, stays in its own precision."""
    head_name: str = "head"
    """What the head is called in the network that the model was made of."""
    loaded: LoadedWeights | None = None
    """Where the initial weights came from; None: from the seed."""
    companion: nn.Module | None
    """What an objective trains with the model and no prediction needs; None: nothing. Exported models are without."""

    def __init__(self, featurizer: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.featurizer = featurizer
        self.register_module("companion", None)  # its place is before the head, whenever it comes
        self.head = head

    def features(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        """The head's inputs: with `bf16` under torch's autocast, and back in the head's precision afterwards."""
        if self.precision == "float32":
            plain: Tensor = self.featurizer(images)
            return plain
        with torch.autocast(images.device.type, torch.bfloat16):
            rounded: Tensor = self.featurizer(images)
        return rounded.to(self.head.weight.dtype)

    def forward(self, images: Float[Tensor, "N C H W"]) -> Float[Tensor, "N O"]:
        """The logits."""
        logits: Tensor = self.head(self.features(images))
        return logits


ModelFactory = Callable[[ImageShape, int, Any], Model]
"""(image shape, outputs of the head, options) -> model; the options are an instance of its ``option_type``."""

MODELS: Registry[ModelFactory] = Registry("model")
"""Model factories by name; :func:`build_model` calls one."""


@runtime_checkable
class Pretrained(Protocol):
    """What a factory has besides being called, if its models may begin with weights from a file.

    Such a factory knows the options `weights` and `download`; it reads no file when it is called.
    """

    def check_weights(self, model: Model, options: Any) -> None:
        """Whether the file is there and of this model, by the names and shapes of its tensors.

        Args:
            model: made by the factory; may lie on the meta device.
            options: the model's own options.

        Raises:
            ConfigError: it is not.
        """

    def load_weights(self, model: Model, image_shape: ImageShape, options: Any) -> LoadedWeights | None:
        """Overwrites the model's parameters and buffers with those of the file; None: there is no file to load.

        Raises:
            ConfigError: the file is missing, damaged or of another model.
        """


def build_model(
    name: str,
    image_shape: ImageShape,
    n_outputs: int,
    options: Mapping[str, Any],
    seed: int,
    *,
    load_weights: bool = True,
) -> Model:
    """A model with initial weights drawn from ``derive_seed(seed, "init")``; torch's own generator stays as it was.

    Args:
        name: a registered model.
        image_shape: (C, H, W).
        n_outputs: outputs of the head, >= 1.
        options: the model's own options.
        seed: seed of the run.
        load_weights: whether a file that the options name is loaded; not where the weights are overwritten anyway.
            On the meta device nothing is loaded.

    Raises:
        ConfigError: unknown model or option, a wrong value, images that the model cannot take, weights that cannot be
            loaded, or a model (from a plug-in) that does not end in its linear head.
    """
    factory, chosen = MODELS.get(name), _options(name, options)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(seed, "init"))  # torch.manual_seed would reseed GPUs as well
        model = factory(image_shape, n_outputs, chosen)
    names = [parameter for parameter, _ in model.named_parameters()]
    if not isinstance(model.head, nn.Linear) or names[-1] not in ("head.weight", "head.bias"):
        raise ConfigError(
            f"A model must be a featurizer and, registered after it, a linear head. Found `{names[-1]}` as the last "
            f"parameter of model `{name}`. Return `Model(featurizer, nn.Linear(...))`."
        )
    if load_weights and isinstance(factory, Pretrained) and not model.head.weight.is_meta:
        model.loaded = factory.load_weights(model, image_shape, chosen)
    return model


def _options(name: str, given: Mapping[str, Any]) -> Any:
    """The options of a registered model."""
    return make_options(option_type(MODELS.get(name)), given, f"model `{name}`", "model_options")


def absolute_model_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration gives as the model's options, with absolute paths.

    Raises:
        ConfigError: the model or an option is unknown, or a value is wrong.
    """
    return absolute_options(option_type(MODELS.get(name)), given, f"model `{name}`", "model_options")


def check_weights(name: str, model: Model, options: Mapping[str, Any]) -> None:
    """Whether the weights that a model's options name can be loaded into it; reads no tensor.

    Args:
        name: a registered model.
        model: what :func:`build_model` made of the same name and options; may lie on the meta device.
        options: the model's own options.

    Raises:
        ConfigError: they cannot.
    """
    factory = MODELS.get(name)
    if isinstance(factory, Pretrained):
        factory.check_weights(model, _options(name, options))


def named_weights(options: Mapping[str, Any]) -> str | None:
    """The initial weights that a model's options name: `imagenet` or a path; None: those of the seed."""
    named = options.get("weights")
    return None if named in (None, "none") else str(named)


def without_weights(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that make the same model, without those that name its initial weights."""
    pretrained = isinstance(MODELS.get(name), Pretrained)
    return {key: value for key, value in options.items() if not (pretrained and key in ("weights", "download"))}
