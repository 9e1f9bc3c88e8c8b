"""How much more than the source's loss the target's rises near θ, and what bounds that.

Shape suffix: S parameters of the scope.

The transfer measure of a set Γ of parameters is ``T_Γ(S‖T) = sup_Γ [L_T(θ') − inf L_T − (L_S(θ') − inf L_S)]``, and the
theorem ``T_Γ ≤ ½δ²‖H_S − H_T‖₂ + o(δ²)`` is about a point θ where both losses are minimal, with Γ in the ball of radius
δ around it. A checkpoint is no such point: the infima of the network's losses are not known, and the target's gradient
is not zero there. What can be measured is the same quantity with the losses at θ in the place of the infima, for a
displacement d::

    r(d) = [L_T(θ + d) − L_T(θ)] − [L_S(θ + d) − L_S(θ)] = ⟨g_T − g_S, d⟩ + ½ dᵀ(H_T − H_S)d + O(‖d‖³)

so that within the ball, to second order,

    |r(d)| ≤ δ‖g_S − g_T‖ + ½δ²‖H_S − H_T‖₂.

Without the first term the bound is false wherever the gradients differ. The even part ``(r(d) + r(−d)) / 2`` has no
first-order term: it is ``½ dᵀ(H_T − H_S)d + O(δ⁴)``, and ``½δ²‖H_S − H_T‖₂`` alone bounds it to third order. For
quadratic losses both bounds hold exactly. The loss of a network of ReLU and max-pooling is smooth between its kinks
only: across them the gradient jumps, which no Hessian knows. The even part may then lie above its bound, or far below
it, unless δ is so small that no example crosses a kink.

Both are measured along d of length δ: the eigenvector of H_S − H_T whose eigenvalue is largest in magnitude (the worst
direction of the even part), the difference of the gradients (the worst one of the first order), and random ones, each
in both directions. The largest of them is a lower bound of the supremum over the ball, not the supremum.

Source: Hemati et al. 2023, Understanding Hessian Alignment for Domain Generalization, after Zhang et al. 2021.
Differs from the source: the first-order term, and losses at θ in the place of the infima.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difc_ray.studies.spectrum.risks import Risk


@dataclass(frozen=True, kw_only=True)
class TransferBound:
    """The bound for one radius, and what was measured beside it.

    Args:
        delta: δ.
        gradient_term: δ‖g_S − g_T‖.
        curvature_term: ½δ²‖H_S − H_T‖₂.
        bound: their sum.
        gap: the largest |r(d)| along the directions.
        even_gap: the largest |r(d) + r(−d)| / 2.
        worst: the direction of the largest |r(d)|: `eigenvector`, `gradient` or `random`.
    """

    delta: float
    gradient_term: float
    curvature_term: float
    bound: float
    gap: float
    even_gap: float
    worst: str


def rises(source: Risk, target: Risk, unit_S: Float[Tensor, " S"], delta: float) -> tuple[float, float]:
    """``r(δu)`` and ``r(−δu)`` for a unit vector u."""
    here = target.value() - source.value()
    ahead, behind = (target.value(sign * delta * unit_S) - source.value(sign * delta * unit_S) for sign in (1.0, -1.0))
    return ahead - here, behind - here


def bound_beside_gap(
    measured: Mapping[str, list[tuple[float, float]]], delta: float, gradient_norm: float, hessian_norm: float
) -> TransferBound:
    """Puts what was measured beside the bound.

    Args:
        measured: kind of direction -> ``(r(δu), r(−δu))`` of each.
        delta: δ.
        gradient_norm: ‖g_S − g_T‖.
        hessian_norm: ‖H_S − H_T‖₂.
    """
    largest = {kind: max(abs(value) for pair in pairs for value in pair) for kind, pairs in measured.items() if pairs}
    worst = max(largest, key=lambda kind: largest[kind])
    gradient_term, curvature_term = delta * gradient_norm, 0.5 * delta**2 * hessian_norm
    return TransferBound(
        delta=delta,
        gradient_term=gradient_term,
        curvature_term=curvature_term,
        bound=gradient_term + curvature_term,
        gap=largest[worst],
        even_gap=max(abs(sum(pair)) / 2 for pairs in measured.values() for pair in pairs),
        worst=worst,
    )


def unit(vector_S: Tensor) -> Tensor | None:
    """The direction of a vector in float64; None of one without a length."""
    exact_S = vector_S.to(torch.float64)
    length = float(exact_S.norm())
    return exact_S / length if length > 0 else None
