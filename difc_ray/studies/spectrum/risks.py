"""The mean loss of one domain as a function of a scope's parameters: value, gradient, products with its Hessian.

Shape suffixes: S parameters of the scope, N examples, C outputs.

The network is in evaluation mode: BatchNorm normalises with its running statistics, which are constants here, and
nothing is dropped. So the loss is a function of the parameters alone, the mean over the examples, and its Hessian that
of the model that one would deploy. It is the classification loss of the run as it was told at the checkpoint (margins
and class weights included), without alignment penalty and without `optimizer.l2`.

Products are made in the precision that is asked for, losses always in float64: the differences that bounds are compared
with are small beside the losses.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from difc_ray.models import Model, inference
from difc_ray.objectives.curvature import HeadCurvature, NetworkCurvature
from difc_ray.objectives.losses import Loss, LossState
from difc_ray.step.worker import ModelState, domain_buffer, head_curvature
from difc_ray.vectors import as_tensor, write_theta

CHUNK, GRAPH_BYTES = 64, 256 * 2**20
"""Most examples that are passed through the network at once, and the most bytes that their graph may take."""

GRAPHS = 4
"""The graph of a product, in graphs of a forward pass: forward, backward, and the backward pass of both."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The examples of a domain that are looked at.

    Args:
        name: the domain.
        images: float32, as the domain gives them.
        labels: class numbers.
    """

    name: str
    images: Float[Tensor, "N C H W"]
    labels: Int[Tensor, " N"]

    def parts(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels, so many at a time, in order."""
        for start in range(0, len(self.labels), size):
            yield self.images[start : start + size], self.labels[start : start + size]


@runtime_checkable
class Risk(Protocol):
    """A loss as a function of S parameters, at a point θ."""

    @property
    def size(self) -> int:
        """S."""

    def value(self, offset_S: Float[Tensor, " S"] | None = None) -> float:
        """The loss at θ, or at θ + offset."""

    def gradient(self) -> Float[Tensor, " S"]:
        """Its gradient at θ."""

    def product(self, vector_S: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """Its Hessian at θ times a vector."""


class Network:
    """A model at a checkpoint, twice: in the precision of the products, and in float64 for losses.

    Args:
        model: of the run's layout; taken over and overwritten.
        loss: the loss as it was told.
        state: parameters and buffers; a domain may have buffers of its own.
        dtype: precision of the products.
    """

    def __init__(self, model: Model, loss: Loss, state: ModelState, dtype: torch.dtype) -> None:
        self.loss, self.state, self.dtype = loss, state, dtype
        self.exact = copy.deepcopy(model).to(torch.float64).eval()
        self.model = model.to(dtype).eval()
        assert state.theta_P is not None
        self.theta_P = as_tensor(state.theta_P).to(torch.float64)
        self.parameters = list(self.model.parameters())
        write_theta(self.theta_P, self.parameters)

    def wear(self, domain: str) -> None:
        """Both models take a domain's buffers."""
        for model in (self.model, self.exact):
            for name, buffer in model.named_buffers():
                own = self.state.buffers.get(domain_buffer(domain, name))
                buffer.copy_(as_tensor(self.state.buffers[name] if own is None else own))


class NetworkRisk:
    """The loss of one domain as a function of all parameters.

    Args:
        network: the model.
        examples: of the domain.
        chunk: examples whose graph is held at once.
    """

    def __init__(self, network: Network, examples: Examples, chunk: int) -> None:
        self.network, self.examples, self.chunk = network, examples, chunk
        self._here: float | None = None

    @property
    def size(self) -> int:
        """P."""
        return len(self.network.theta_P)

    def value(self, offset_S: Float[Tensor, " P"] | None = None) -> float:
        """The loss at θ, or at θ + offset; in float64."""
        if offset_S is not None:
            return self._value(self.network.theta_P + offset_S.to(torch.float64))
        if self._here is None:
            self._here = self._value(self.network.theta_P)
        return self._here

    def _value(self, at_P: Tensor) -> float:
        network, total = self.network, 0.0
        network.wear(self.examples.name)
        write_theta(at_P, network.exact.parameters())
        with torch.no_grad():
            for images, labels in self.examples.parts(self.chunk):
                total += len(labels) * float(network.loss.value(network.exact(images.double()), labels))
        return total / len(self.examples.labels)

    def gradient(self) -> Float[Tensor, " P"]:
        """The mean gradient."""
        return self._mean(lambda curvature: curvature.gradient().detach())

    def product(self, vector_S: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        """The mean product, chunk by chunk, so that memory does not grow with the number of examples."""
        return self._mean(lambda curvature: curvature.hessian_product(vector_S, differentiable=False))

    def _mean(self, of: Callable[[NetworkCurvature], Tensor]) -> Tensor:
        self.network.wear(self.examples.name)
        total_P = torch.zeros(self.size, dtype=self.network.dtype)
        with _differentiable():
            for images, labels in self.examples.parts(self.chunk):
                logits = self.network.model(images.to(self.network.dtype))
                curvature = NetworkCurvature(self.network.loss.value(logits, labels), self.network.parameters)
                total_P.add_(of(curvature), alpha=len(labels) / len(self.examples.labels))
        return total_P


class HeadRisk:
    """The loss of one domain as a function of the linear head, in closed form; features are computed once.

    Args:
        network: the model.
        examples: of the domain.
        chunk: examples per forward pass.
    """

    def __init__(self, network: Network, examples: Examples, chunk: int) -> None:
        self.network, self.examples = network, examples
        network.wear(examples.name)
        write_theta(network.theta_P, network.exact.parameters())
        with torch.no_grad():
            parts = [network.exact.features(images.double()) for images, _ in examples.parts(chunk)]
            self.features_ND = torch.cat(parts)
        self.head = held_head(network.loss, network.model, self.features_ND.to(network.dtype), examples.labels)

    @property
    def size(self) -> int:
        """S."""
        return self.head.size

    def value(self, offset_S: Float[Tensor, " S"] | None = None) -> float:
        """The loss at θ, or with the head moved by an offset; in float64."""
        model = self.network.exact
        at_P = self.network.theta_P.clone()
        if offset_S is not None:
            at_P[-self.size :] += offset_S.to(torch.float64)
        write_theta(at_P, model.parameters())
        with torch.no_grad():
            return float(self.network.loss.value(model.head(self.features_ND), self.examples.labels))

    def gradient(self) -> Float[Tensor, " S"]:
        """The mean gradient."""
        return self.head.gradient()

    def product(self, vector_S: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """The mean product."""
        return self.head.hessian_product(vector_S)


@dataclass(frozen=True)
class Combined:
    """A sum of risks with weights: a mean of domains, or the difference of two.

    Args:
        risks: of the same parameters.
        weights: one for each.
    """

    risks: Sequence[Risk]
    weights: Sequence[float]

    @property
    def size(self) -> int:
        """S."""
        return self.risks[0].size

    def value(self, offset_S: Float[Tensor, " S"] | None = None) -> float:
        """The sum of the losses."""
        return sum(w * risk.value(offset_S) for w, risk in zip(self.weights, self.risks, strict=True))

    def gradient(self) -> Float[Tensor, " S"]:
        """The sum of the gradients."""
        return self._sum([risk.gradient() for risk in self.risks])

    def product(self, vector_S: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
        """The sum of the products."""
        return self._sum([risk.product(vector_S) for risk in self.risks])

    def _sum(self, vectors: Sequence[Tensor]) -> Tensor:
        total_S = vectors[0] * self.weights[0]
        for weight, vector_S in zip(self.weights[1:], vectors[1:], strict=True):
            total_S = total_S.add(vector_S, alpha=weight)
        return total_S


def difference(one: Risk, other: Risk) -> Combined:
    """The first risk without the second."""
    return Combined((one, other), (1.0, -1.0))


def held_head(loss: Loss, model: Model, features: Tensor, labels: Tensor) -> HeadCurvature:
    """The closed forms of the head on all examples of a domain, without a graph."""
    with inference(model):
        return head_curvature(loss, model, features, model.head(features), labels)


def kept_numbers(model: Model, loss: Loss, image: Tensor) -> int:
    """Numbers besides the parameters that the forward pass of one example keeps for the backward pass.

    Args:
        model: the network.
        loss: the loss.
        image: one example, (1, C, H, W).
    """
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if tensor.data_ptr() in own else tensor.numel()
        return tensor

    model.eval()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss.value(model(image), torch.zeros(1, dtype=torch.int64))
    return kept


def chunk_of(bytes_per_example: int) -> int:
    """Examples that are passed at once: a power of two, so that the sums' bits depend on the model alone.

    >>> chunk_of(1000), chunk_of(50 * 2**20), chunk_of(2**40)
    (64, 4, 1)
    """
    size = CHUNK
    while size > 1 and size * bytes_per_example > GRAPH_BYTES:
        size //= 2
    return size


@contextmanager
def _differentiable() -> Iterator[None]:
    """A graph, even where a caller wants none, and attention written with products, which has second derivatives."""
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def tell(loss: Loss, state: LossState, step: int) -> Loss:
    """The loss with what workers were told at a step."""
    vectors = loss.vectors(state, step)
    return loss.with_vectors({name: torch.from_numpy(vector.copy()) for name, vector in vectors.items()})
