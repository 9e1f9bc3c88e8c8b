"""A linear classifier head in closed form: gradients, Hessian diagonal, Hessian-vector product.

Shape suffixes: N samples, D features (a column of ones appended where the head has a bias), C outputs, M probes,
S entries of the scope (the head's weight, row by row, then its bias).

With features Z (N, D), per-sample output gradients r (N, C), and per-sample output Hessians A_n (C, C), the mean loss
over the batch has, with respect to the head's parameters,

    gradient          G = rᵀ Z / N
    Hessian diagonal  D = diag(A)ᵀ (Z∘Z) / N
    product           H V = Tᵀ Z / N,   T_n = A_n (Z Vᵀ)_n

All three are ordinary expressions of Z and the logits, so one first-order backward pass differentiates them: no double
backward, and the featurizer may hold any layer at all.

Source: reference formulas for linear heads (softmax: Hemati et al., ICCV 2023, the feature-matching proposition).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class HeadCurvature:
    """The head of one domain's batch, ready to be differentiated.

    Args:
        features_ND: inputs of the head, with a column of ones appended if the head has a bias.
        residual_NC: derivative of each sample's loss with respect to its logits.
        diagonal_NC: diagonal of each sample's Hessian with respect to its logits.
        product: U (..., N, C) -> A_n U_n, the product with each sample's output Hessian.
        logits_NC: outputs of the head.
        risk: mean loss of the batch, a scalar.
        has_bias: whether the last column of the features is the column of ones.
    """

    features_ND: Float[Tensor, "N D"]
    residual_NC: Float[Tensor, "N C"]
    diagonal_NC: Float[Tensor, "N C"]
    product: Callable[[Tensor], Tensor]
    logits_NC: Float[Tensor, "N C"]
    risk: Float[Tensor, ""]
    has_bias: bool

    @property
    def size(self) -> int:
        """S, the number of the head's parameters."""
        return self.features_ND.shape[1] * self.residual_NC.shape[1]

    @property
    def inputs_ND(self) -> Float[Tensor, "N D"]:
        """The features without the column of ones."""
        return self.features_ND[:, :-1] if self.has_bias else self.features_ND

    def gradient(self) -> Float[Tensor, " S"]:
        """Gradient of the mean loss with respect to the head."""
        return self._flat(self.residual_NC.T @ self.features_ND / len(self.features_ND))

    def squared_gradients(self) -> Float[Tensor, " S"]:
        """Mean over the samples of the squares of their own gradients with respect to the head, entry by entry."""
        return self._flat(self.residual_NC.square().T @ self.features_ND.square() / len(self.features_ND))

    def scale_gradient(self) -> Float[Tensor, " 1"]:
        """Derivative of the mean loss with respect to a factor on the logits, at 1."""
        return (self.residual_NC * self.logits_NC).sum(1).mean().reshape(1)

    def hessian_diagonal(self) -> Float[Tensor, " S"]:
        """Diagonal of the Hessian of the mean loss with respect to the head; never negative."""
        return self._flat(self.diagonal_NC.T @ self.features_ND.square() / len(self.features_ND))

    def hessian_product(self, vectors: Float[Tensor, "*M S"]) -> Float[Tensor, "*M S"]:
        """Products of the head's Hessian with one vector (S,) or a batch of them (M, S)."""
        matrix = self._matrix(vectors)
        outputs = self.product(self.features_ND @ matrix.mT)
        return self._flat(outputs.mT @ self.features_ND / len(self.features_ND))

    def hutchinson_diagonal(self, probes_MS: Float[Tensor, "M S"]) -> Float[Tensor, " S"]:
        """Estimate ``(1/m) sum_s v_s ∘ H v_s`` of the Hessian diagonal from m Rademacher probes.

        Bias: none. ``E[v vᵀ] = I`` leaves the diagonal. Variance of entry i: ``(1/m) sum_{j≠i} H_ij²``.
        Cost: m products, no backward pass of their own.
        """
        return (probes_MS * self.hessian_product(probes_MS)).mean(0)

    def gradient_noise(self) -> float:
        """``tr Σ / B``: the variance of the batch gradient, from the per-sample gradients r_n z_nᵀ.

        Bias: none for independent samples (B − 1 degrees of freedom); 0 for a batch of one.
        """
        size = len(self.residual_NC)
        squares_N = self.residual_NC.detach().square().sum(1) * self.features_ND.detach().square().sum(1)
        spread = squares_N.mean() - self.gradient().detach().square().sum()
        return float(spread.clamp(min=0)) / max(1, size - 1)

    def _flat(self, matrix: Tensor) -> Tensor:
        """(..., C, D) -> (..., S) in the order of the head's parameters: weight, then bias."""
        if not self.has_bias:
            return matrix.flatten(-2)
        return torch.cat([matrix[..., :-1].flatten(-2), matrix[..., -1]], dim=-1)

    def _matrix(self, flat: Tensor) -> Tensor:
        """(..., S) -> (..., C, D), the inverse of :meth:`_flat`."""
        outputs = self.residual_NC.shape[1]
        if not self.has_bias:
            return flat.reshape(*flat.shape[:-1], outputs, -1)
        weight, bias = flat[..., :-outputs], flat[..., -outputs:]
        return torch.cat([weight.reshape(*flat.shape[:-1], outputs, -1), bias.unsqueeze(-1)], dim=-1)
