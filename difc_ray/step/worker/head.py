"""The closed forms of a model's linear head on a batch, and Hessian diagonals over all parameters.

Shape suffixes: P parameters, S entries of the head, N samples, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from difc_ray.models import Model
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.losses import Loss
from difc_ray.vectors import write_row


def head_curvature(loss: Loss, model: Model, features: Tensor, logits: Tensor, labels: Tensor) -> HeadCurvature:
    """The closed forms of a model's linear head on a batch, in the precision of the parameters."""
    has_bias = model.head.bias is not None
    ones = torch.ones_like(features[:, :1])
    return HeadCurvature(
        features_ND=torch.cat([features, ones], dim=1) if has_bias else features,
        residual_NC=loss.residual(logits, labels),
        diagonal_NC=loss.hessian_diagonal(logits, labels),
        product=lambda outputs: loss.hessian_product(logits, labels, outputs),
        logits_NC=logits,
        risk=loss.value(logits, labels),
        has_bias=has_bias,
    )


def detached_head(loss: Loss, model: Model, features: Tensor, labels: Tensor) -> HeadCurvature:
    """The head's closed forms without a graph, to answer products after the rows."""
    with torch.no_grad():
        detached = features.detach()
        return head_curvature(loss, model, detached, model.head(detached), labels)


def diagonal_row(
    kind: str,
    head: HeadCurvature,
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    probe_P: Tensor | None,
    out_P: Tensor,
) -> None:
    """Writes one domain's Hessian diagonal, made positive semidefinite, into ``out_P``.

    Args:
        kind: what stands outside the head: `squared_gradient` (B times the squared batch gradient, which for small mean
            gradients is the diagonal of the empirical Fisher matrix), `hutchinson` (one probe, negative entries set to
            0) or `none` (0).
        head: the head of the batch, whose closed form fills the last S entries.
        gradients: the classification gradient by parameter; differentiable for `hutchinson`.
        parameters: the parameters.
        probe_P: Rademacher probe for `hutchinson`.
        out_P: (P,) the row.
    """
    if kind == "squared_gradient":
        write_row([gradient.detach() for gradient in gradients], out_P)
        out_P.square_().mul_(len(head.residual_NC))
    elif kind == "hutchinson":
        assert probe_P is not None
        probes, start = [], 0
        for parameter in parameters:
            probes.append(probe_P[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
        pairs = [pair for pair in zip(gradients, probes, strict=True) if pair[0].requires_grad]  # not a companion's
        followed, along = zip(*pairs, strict=True)
        products = torch.autograd.grad(followed, parameters, along, retain_graph=True, materialize_grads=True)
        write_row([p * v for p, v in zip(products, probes, strict=True)], out_P)
        out_P.clamp_(min=0)
    else:
        out_P.zero_()
    out_P[-head.size :] = head.hessian_diagonal().detach()
