"""Curvature over all parameters of a network by repeated reverse differentiation, itself differentiable.

Shape suffixes: M probes, P parameters.

With ``g(θ) = ∇L(θ)`` kept as a graph, ``H v = ∇⟨g, v⟩`` is one more backward pass, and the gradient of a penalty on it
is a third derivative: a backward pass through that. Reverse mode throughout, since forward mode nested in it is wrong
for normalisation layers; and those layers must be written out, see :mod:`difc_ray.objectives.curvature.primitives`.

Source: Pearlmutter 1994, "Fast Exact Multiplication by the Hessian", here by two reverse passes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from difc_ray.errors import ConfigError


class NetworkCurvature:
    """The loss of one batch as a function of all parameters.

    Args:
        loss: the mean loss of the batch, with its graph.
        parameters: the parameters, in the order of the flat vector.

    Attributes:
        gradients: the gradient by parameter, with its graph.
    """

    def __init__(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.gradients = torch.autograd.grad(
            loss, self.parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )

    @property
    def size(self) -> int:
        """P."""
        return sum(parameter.numel() for parameter in self.parameters)

    def gradient(self) -> Float[Tensor, " P"]:
        """Gradient of the mean loss with respect to all parameters."""
        return _flat(self.gradients)

    def hessian_diagonal(self) -> Float[Tensor, " P"]:
        """Not offered: it has no closed form beyond the head, and P products would be needed.

        Raises:
            ConfigError: always. The configuration refuses it for our objectives; one of a plug-in may ask nevertheless.
        """
        raise ConfigError(
            "an exact Hessian diagonal needs the head alone, got `alignment.scope=all` (objective). Write "
            "`alignment.scope=head`, or let the objective take `hutchinson_diagonal`."
        )

    def hessian_product(self, vectors: Float[Tensor, "*M P"], *, differentiable: bool = True) -> Float[Tensor, "*M P"]:
        """Products with one vector (P,), or with a batch of them (M, P) one after the other.

        Args:
            vectors: what is multiplied.
            differentiable: whether the products keep a graph; without it the loss's own graph is freed by a single one.
        """
        if vectors.dim() > 1:
            return torch.stack([self.hessian_product(vector, differentiable=differentiable) for vector in vectors])
        needed = [gradient for gradient in self.gradients if gradient.requires_grad]
        pieces = [piece for piece, g in zip(self._pieces(vectors), self.gradients, strict=True) if g.requires_grad]
        products = torch.autograd.grad(
            needed, self.parameters, pieces, create_graph=differentiable, allow_unused=True, materialize_grads=True
        )
        return _flat(products)

    def hutchinson_diagonal(self, probes_MS: Float[Tensor, "M P"]) -> Float[Tensor, " P"]:
        """Estimate ``(1/m) sum_s v_s ∘ H v_s`` of the Hessian diagonal from m Rademacher probes.

        Bias: none. ``E[v vᵀ] = I`` leaves the diagonal. Variance of entry i: ``(1/m) sum_{j≠i} H_ij²``.
        Cost: m further backward passes, whose graphs are kept for the penalty's own.
        """
        total_P = torch.zeros_like(probes_MS[0])
        for probe_P in probes_MS:
            total_P = total_P + probe_P * self.hessian_product(probe_P)
        return total_P / len(probes_MS)

    def _pieces(self, flat_P: Tensor) -> list[Tensor]:
        found, start = [], 0
        for parameter in self.parameters:
            found.append(flat_P[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
        return found


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
