"""The rows of a step in order, their buffers, and what is wrong with them.

Shape suffixes: K domains, P parameters, N raw rows (K or 2K), V rows of the view that a rule sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from difc_ray.errors import NumericError
from difc_ray.harmonizers import solvers
from difc_ray.step.worker import Rows, Statistics, domain_buffer, held_rows
from difc_ray.vectors import as_tensor


def pareto_gap(gram_VV: np.ndarray) -> float:
    """``‖u*‖² / mean ‖g‖²`` with u* the shortest weighted mean of the rows: 0 where no direction helps all of them.

    NaN where all rows are zero, or where the solver has no certified answer: a metric does not end a run.
    """
    mean = float(np.diag(gram_VV).mean())
    if mean <= 0:
        return float("nan")
    try:
        return solvers.min_norm(gram_VV).value / mean
    except NumericError:
        return float("nan")


def raw_rows(replies: Sequence[Rows]) -> list[Tensor]:
    """The N raw rows in order: g_1 … g_K, then a_1 … a_K."""
    stacked = [as_tensor(held_rows(reply)) for reply in replies]
    return [rows_RP[kind] for kind in range(stacked[0].shape[0]) for rows_RP in stacked]


def merged_buffers(replies: Sequence[Rows], weights_K: np.ndarray, *, per_domain: bool = False) -> dict[str, Tensor]:
    """Buffers of the next state: the weighted mean of floating ones, the first domain's counters.

    Args:
        replies: rows of all domains, with their buffers.
        weights_K: the domains' weights.
        per_domain: whether each domain's own are kept besides, under :func:`~difc_ray.step.worker.domain_buffer`.
    """
    merged = {}
    for name, first in replies[0].buffers.items():
        if np.issubdtype(first.dtype, np.floating):
            total = sum(w * reply.buffers[name].astype(np.float64) for w, reply in zip(weights_K, replies, strict=True))
            merged[name] = torch.from_numpy(np.asarray(total, dtype=first.dtype))
        else:
            merged[name] = torch.from_numpy(first.copy())
    for reply in replies if per_domain else ():
        for name, own in reply.buffers.items():
            merged[domain_buffer(reply.token.domain, name)] = torch.from_numpy(own.copy())
    return merged


def upper(matrix_VV: np.ndarray) -> np.ndarray:
    """The entries above the diagonal, row by row."""
    return matrix_VV[np.triu_indices(len(matrix_VV), 1)]


def first_bad_statistic(answers: Sequence[Statistics]) -> str:
    """Names the first domain whose loss or statistics are not finite (empty: all are)."""
    for answer in answers:
        where = f"domain `{answer.token.domain}`"
        if not np.isfinite(answer.loss):
            return f"{where}: the loss is {answer.loss}"
        for name, vector in answer.vectors.items():
            if not np.isfinite(vector).all():
                bad = int((~np.isfinite(vector)).sum())
                return f"{where}: the head statistic `{name}` has {bad} non-finite value(s)"
    return ""
