"""Several workers, one domain: how their answers become those of one worker.

Statistics and gradients of a mean loss are means over examples, so those of the whole batch are the means of the parts,
weighted by their numbers of examples. What is not a mean over examples (products of means, as in HGP) is asked for in
further exchanges, see :mod:`difc_ray.objectives.hgp`.

Shape suffixes: P parameters, R rows of one domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor

from difc_ray.step.worker.messages import Rows, Statistics, held_rows
from difc_ray.vectors import as_tensor, combine


def merge_statistics(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of the whole batch; sums in float64, in the order of the parts."""
    first = parts[0]
    if len(parts) == 1:
        return first
    total = sum(part.samples for part in parts)
    vectors = {}
    for name, vector in first.vectors.items():
        sum_S = np.zeros(vector.shape)
        for part in parts:
            sum_S += part.samples / total * part.vectors[name].astype(np.float64)
        vectors[name] = sum_S.astype(vector.dtype)
    return replace(
        first,
        token=replace(first.token, part=0),
        loss=sum(part.samples * part.loss for part in parts) / total,
        accuracy=sum(part.samples * part.accuracy for part in parts) / total,
        vectors=vectors,
        compute_s=max(part.compute_s for part in parts),
        loading_s=max(part.loading_s for part in parts),
        samples=total,
    )


def merge_rows(parts: Sequence[Rows]) -> Rows:
    """The rows of the whole batch, in float32; buffers are those of the first part (they are frozen, so all agree)."""
    first = parts[0]
    if len(parts) == 1:
        return first
    total = sum(part.samples for part in parts)
    rows_RP = None
    if first.rows_RP is not None:
        shares = np.array([part.samples / total for part in parts])
        rows_RP = np.stack([combine(shares, kind).numpy() for kind in _by_kind(parts)])
    return replace(
        first,
        token=replace(first.token, part=0),
        rows_RP=rows_RP,
        compute_s=max(part.compute_s for part in parts),
        samples=total,
    )


def _by_kind(parts: Sequence[Rows]) -> list[list[Tensor]]:
    """The rows of all parts: first the classification gradients, then the alignment gradients."""
    rows = [held_rows(part) for part in parts]
    return [[as_tensor(rows_RP[kind]) for rows_RP in rows] for kind in range(len(rows[0]))]
