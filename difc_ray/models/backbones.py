"""Networks of a library as models: the last linear layer is the head, the network without it the featurizer.

State-dict names stay those of the library, under ``featurizer.``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from difc_ray.errors import ConfigError
from difc_ray.models.base import ImageShape, LoadedWeights, Model, dropout_of
from difc_ray.models.weights import (
    Shape,
    check_fit,
    copy_into,
    our_names,
    read_shapes,
    read_tensors,
    sha256,
    weights_choice,
)
from difc_ray.registry import check_option_names, did_you_mean


@dataclass(frozen=True)
class Backbone(ABC):
    """A factory of models; its options are `weights`, `download`, `head` and `dropout`.

    * `weights`: `none`, `imagenet` (the library's own), or a safetensors file;
    * `download`: whether `imagenet` may fetch a file that is not there yet, default false;
    * `head`: dotted name of the linear classifier, where it cannot be found;
    * `dropout`: probability in [0, 1) on the features, default 0.

    Args:
        name: what the library calls the network.
    """

    name: str

    OPTIONS: ClassVar[tuple[str, ...]] = ("weights", "download", "head", "dropout")

    @property
    def title(self) -> str:
        """The model as messages call it."""
        return f"model `{self.name}`"

    def __call__(self, image_shape: ImageShape, n_outputs: int, options: Mapping[str, Any]) -> Model:
        """The model at its library's initial values.

        On the meta device it is also tried on images of the shape.

        Raises:
            ConfigError: unknown option, wrong value, images that the network cannot take, or no linear head.
        """
        check_option_names(self.title, options, self.OPTIONS)
        weights_choice(options)
        may_download(options)
        model = split(self.network(image_shape, n_outputs), options.get("head"), dropout_of(options), self.title)
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

    def weights_path(self, options: Mapping[str, Any]) -> Path | None:
        """The user's own file of weights, if one is named."""
        choice = weights_choice(options)
        return choice if isinstance(choice, Path) else None

    def check_weights(self, model: Model, options: Mapping[str, Any]) -> None:
        """Whether the weights can be loaded; reads the header of a safetensors file, and fetches nothing.

        Raises:
            ConfigError: they cannot.
        """
        choice = weights_choice(options)
        if isinstance(choice, Path):
            found = read_shapes(choice)
            self._fits({ours: found[name] for name, ours in our_names(found, model.head_name).items()}, model, choice)
        elif choice == "imagenet" and not may_download(options):
            self.imagenet_file(download=False)

    def load_weights(self, model: Model, image_shape: ImageShape, options: Mapping[str, Any]) -> LoadedWeights | None:
        """Overwrites the model's parameters and buffers with those of the file; None: `weights` is `none`.

        Raises:
            ConfigError: the file is missing, damaged or of another model.
        """
        choice = weights_choice(options)
        if choice == "none":
            return None
        if isinstance(choice, Path):
            file, held = choice, read_tensors(choice)
        else:
            file = self.imagenet_file(download=may_download(options))
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


def may_download(options: Mapping[str, Any]) -> bool:
    """The option `download`, checked.

    Raises:
        ConfigError: it is neither true nor false.
    """
    value = options.get("download", False)
    if not isinstance(value, bool):
        raise ConfigError(f"`download` must be true or false. Found `download = {value!r}`.")
    return value


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
    if named is not None and (not isinstance(named, str) or named not in modules):
        hint = did_you_mean(str(named), linear[-5:]) if linear else ""
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
