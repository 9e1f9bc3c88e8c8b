"""What an objective may ask of the curvature of a scope, whatever the scope is.

Shape suffixes: M probes, S entries of the scope.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Curvature(Protocol):
    """Gradient and Hessian of the mean loss of one batch with respect to a scope; everything can be differentiated."""

    @property
    def size(self) -> int:
        """S, the number of the scope's parameters."""

    def gradient(self) -> Float[Tensor, " S"]:
        """Gradient of the mean loss."""

    def hessian_diagonal(self) -> Float[Tensor, " S"]:
        """Diagonal of its Hessian."""

    def hessian_product(self, vectors: Float[Tensor, "*M S"]) -> Float[Tensor, "*M S"]:
        """Products of its Hessian with one vector (S,) or a batch of them (M, S)."""

    def hutchinson_diagonal(self, probes_MS: Float[Tensor, "M S"]) -> Float[Tensor, " S"]:
        """Estimate of the diagonal from probes."""
