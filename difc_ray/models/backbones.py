"""Networks of a library as models: the last linear layer is the head, the network without it the featurizer.

State-dict names stay those of the library, under ``featurizer.``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from difc_ray.errors import ConfigError
from difc_ray.models.base import ImageShape, LoadedWeights, Model
from difc_ray.models.weights import (
    Shape,
    check_fit,
    check_weights_name,
    copy_into,
    our_names,
    read_shapes,
    read_tensors,
    sha256,
)
from difc_ray.options import Decay, FilePath, Rule
from difc_ray.registry import did_you_mean


@dataclass(frozen=True, kw_only=True)
class BackboneOptions:
    """Options of every network of a library."""

    weights: Annotated[
        Literal["none", "imagenet"] | FilePath | None, Rule("none, imagenet or the path of a .safetensors file")
    ] = "none"
    """Initial weights: `none`, `imagenet` (the library's own), or a safetensors file."""
    download: bool = False
    """Whether `weights=imagenet` may fetch a file that is not there yet."""
    head: str | None = None
    """Dotted name of the linear classifier, where it cannot be found; null: the last module with parameters."""
    dropout: Decay = 0.0
    """Probability in [0, 1) that a feature is dropped."""

    def __post_init__(self) -> None:
        if isinstance(self.weights, Path):
            check_weights_name(self.weights)


@dataclass(frozen=True)
class Backbone(ABC):
    """A factory of models, with :class:`BackboneOptions`.

    Args:
        name: what the library calls the network.
    """

    name: str

    option_type: ClassVar = BackboneOptions

    @property
    def title(self) -> str:
        """The model as messages call it."""
        return f"model `{self.name}`"

    def __call__(self, image_shape: ImageShape, n_outputs: int, options: BackboneOptions) -> Model:
        """The model at its library's initial values.

        On the meta device it is also tried on images of the shape.

        Raises:
            ConfigError: images that the network cannot take, or no linear head.
        """
        model = split(self.network(image_shape, n_outputs), options.head, options.dropout, self.title)
        if model.head.weight.is_meta:
            check_forward(model, image_shape, n_outputs, self.title)
        return model

    @abstractmethod
    def network(self, image_shape: ImageShape, n_outputs: int) -> nn.Module:
        """The library's network with its initial values, drawn from torch's generator.

        Raises:
            ConfigError: the library has it not, or not for such images.
        """

    @abstractmethod
    def imagenet_file(self, *, download: bool) -> Path:
        """The library's own file of ImageNet weights.

        Raises:
            ConfigError: it is not there, and may not or cannot be fetched.
        """

    @abstractmethod
    def imagenet_tensors(self, file: Path, model: Model, image_shape: ImageShape) -> dict[str, Tensor]:
        """What that file holds for a model of these images, by the library's names.

        Raises:
            ConfigError: it is damaged.
        """

    def resizable(self, name: str, found: Shape, expected: Shape) -> bool:
        """Whether a tensor of another shape can be fitted by :meth:`resized`; none by default."""
        return False

    def resized(self, name: str, tensor: Tensor, expected: Shape) -> Tensor:
        """A tensor in the shape that the model has."""
        return tensor

    def check_weights(self, model: Model, options: BackboneOptions) -> None:
        """Whether the weights can be loaded; reads the header of a safetensors file, and fetches nothing.

        Raises:
            ConfigError: they cannot.
        """
        if isinstance(file := options.weights, Path):
            found = read_shapes(file)
            self._fits({ours: found[name] for name, ours in our_names(found, model.head_name).items()}, model, file)
        elif file == "imagenet" and not options.download:
            self.imagenet_file(download=False)

    def load_weights(self, model: Model, image_shape: ImageShape, options: BackboneOptions) -> LoadedWeights | None:
        """Overwrites the model's parameters and buffers with those of the file; None: `weights` is `none`.

        Raises:
            ConfigError: the file is missing, damaged or of another model.
        """
        if options.weights in (None, "none"):
            return None
        if isinstance(options.weights, Path):
            file, held = options.weights, read_tensors(options.weights)
        else:
            file = self.imagenet_file(download=options.download)
            held = self.imagenet_tensors(file, model, image_shape)
        tensors = {ours: held[name] for name, ours in our_names(held, model.head_name).items()}
        head = self._fits({name: tuple(tensor.shape) for name, tensor in tensors.items()}, model, file)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        for name, tensor in tensors.items():
            if self.resizable(name, tuple(tensor.shape), shapes.get(name, ())):
                tensors[name] = self.resized(name, tensor, shapes[name])
        copy_into(model, tensors, file, head=head)
        return LoadedWeights(source=str(file), sha256=sha256(file), head=head)

    def _fits(self, found: Mapping[str, Shape], model: Model, file: Path) -> bool:
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return check_fit(found, expected, self.title, file, self.resizable)


def split(network: nn.Module, named: str | None, dropout: float, what: str) -> Model:
    """A network as featurizer and head: its last layer, or the one that is named.

    In the place of the head the network keeps an identity, or dropout, so that no other name changes.

    Args:
        network: taken apart in place.
        named: dotted name of the head; None: the last module that has parameters.
        dropout: probability on the features.
        what: the network, for messages.

    Raises:
        ConfigError: there is no such module, or it is not linear.
    """
    modules = dict(network.named_modules())
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if named is not None and named not in modules:
        hint = did_you_mean(named, linear[-5:]) if linear else ""
        raise ConfigError(f"`head` must name a module of {what}. Found `head = {named!r}`. {hint}")
    name = named or [n for n, m in modules.items() if next(m.parameters(recurse=False), None) is not None][-1]
    head = modules[name]
    if not isinstance(head, nn.Linear):
        found = "named" if named else "found last"
        raise ConfigError(
            f"The head of {what} must be a linear layer, for its Hessian has a closed form. The module {found}, "
            f"`{name}`, is {type(head).__name__}. {_name_another(linear)}"
        )
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Dropout(dropout) if dropout else nn.Identity())
    model = Model(network, head)
    model.head_name = name
    return model


def _name_another(linear: Sequence[str]) -> str:
    """The remedy: the linear layers that there are, the last ones first."""
    if not linear:
        return "The network has no linear layer; take another one."
    names = ", ".join(f"`{name}`" for name in reversed(linear[-3:]))
    return f"Name the classifier with `model_options.head=NAME`; linear layers are {names}."


def check_forward(model: Model, image_shape: ImageShape, n_outputs: int, what: str) -> None:
    """Tries a model on the meta device, where only shapes are computed.

    Raises:
        ConfigError: it cannot take such images, or the head is not its last layer.
    """
    size = "x".join(map(str, image_shape))
    was_training = model.training
    try:
        with torch.no_grad():
            features = model.eval().featurizer(torch.empty(2, *image_shape, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        why = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ConfigError(
            f"Images must suit {what}. Found {size} (channels, height, width): {why}. Choose another `image_size`, or "
            "another model."
        ) from None
    finally:
        model.train(was_training)
    head = model.head
    if tuple(features.shape) != (2, head.in_features) or head.out_features != n_outputs:
        raise ConfigError(
            f"The head of {what} must be its last layer. Found `{model.head_name}`, from {head.in_features} features "
            f"to {head.out_features} outputs, in a network whose other layers end in {tuple(features.shape)[1:]}. Name "
            "the classifier with `model_options.head=NAME`."
        )
