"""Conflict between rows, measured on their Gram matrix alone.

Shape suffixes: N rows. Every function takes the (N, N) float64 Gram matrix ``gram_NN[i, j] = row_i · row_j``
and never sees a parameter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64

Array = npt.NDArray[np.float64]

ZERO_LENGTH = 1e-150
"""A row shorter than this is a zero row: its squared length leaves the range of float64."""

_ROUNDING = 16 * np.finfo(np.float64).eps
"""Relative error allowed to one inner product of a Gram row with weights, per summand."""


def lengths(gram_NN: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, " N"]:
    """Euclidean length of each row, the square root of the diagonal (0 where rounding left it negative)."""
    lengths_N: Array = np.sqrt(np.maximum(np.diagonal(gram_NN), 0.0))
    return lengths_N


def pairwise_cosines(gram_NN: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, "N N"]:
    """Cosines between rows, in [-1, 1]; 0 wherever one of the two is a zero row.

    >>> pairwise_cosines(np.array([[4.0, -1.0], [-1.0, 1.0]])).tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    lengths_N = lengths(gram_NN)
    alive_N = lengths_N > ZERO_LENGTH
    unit_N = np.divide(1.0, lengths_N, out=np.zeros_like(lengths_N), where=alive_N)
    cosines_NN: Array = np.clip(gram_NN * unit_N[:, None] * unit_N[None, :], -1.0, 1.0)
    return cosines_NN


def _upper(matrix_NN: Float64[np.ndarray, "N N"]) -> Float64[np.ndarray, " pairs"]:
    """The entries above the diagonal, one per unordered pair of rows."""
    return matrix_NN[np.triu_indices(len(matrix_NN), k=1)]


def conflicting_pairs(gram_NN: Float64[np.ndarray, "N N"]) -> int:
    """Number of unordered pairs of rows with a negative inner product, of N(N-1)/2."""
    return int(np.count_nonzero(_upper(gram_NN) < 0.0))


def conflict_share(gram_NN: Float64[np.ndarray, "N N"]) -> float:
    """Share of unordered pairs with a negative inner product, in [0, 1]; 0 for a single row.

    >>> conflict_share(np.array([[1.0, -0.5, 0.0], [-0.5, 1.0, 0.2], [0.0, 0.2, 1.0]]))
    0.3333333333333333
    """
    pairs = len(gram_NN) * (len(gram_NN) - 1) // 2
    return conflicting_pairs(gram_NN) / pairs if pairs else 0.0


def min_cosine(gram_NN: Float64[np.ndarray, "N N"]) -> float:
    """Smallest cosine between two different rows, in [-1, 1]; 1 for a single row."""
    return float(_upper(pairwise_cosines(gram_NN)).min(initial=1.0))


def magnitude_similarity(gram_NN: Float64[np.ndarray, "N N"]) -> float:
    """Mean over pairs of ``2ab / (a² + b²)``, in [0, 1]: 1 for equal lengths, near 0 when one row dominates.

    Source:
        Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", Definition 2, averaged over pairs.

    >>> magnitude_similarity(np.diag([1.0, 9.0]))
    0.6
    """
    lengths_N = lengths(gram_NN)
    longest_NN = np.maximum(lengths_N[:, None], lengths_N[None, :])
    shortest_NN = np.minimum(lengths_N[:, None], lengths_N[None, :])
    # In the ratio r = b/a <= 1 the formula is 2r / (1 + r²): no square leaves the range of float64.
    ratio_NN = np.divide(shortest_NN, longest_NN, out=np.ones_like(longest_NN), where=longest_NN > 0.0)
    values = _upper(2.0 * ratio_NN / (1.0 + ratio_NN**2))
    return float(values.mean()) if values.size else 1.0


def margins(gram_NN: Float64[np.ndarray, "N N"], weights_N: Float64[np.ndarray, " N"]) -> Float64[np.ndarray, " N"]:
    """Inner product of the direction ``sum_j weights[j] row_j`` with each row; what is below rounding is 0."""
    terms_NN = gram_NN * weights_N[None, :]
    margins_N = terms_NN.sum(axis=1)
    noise_N = _ROUNDING * np.abs(terms_NN).sum(axis=1)
    return np.where(np.abs(margins_N) <= noise_N, 0.0, margins_N)


def direction_length(gram_NN: Float64[np.ndarray, "N N"], weights_N: Float64[np.ndarray, " N"]) -> float:
    """Length of the direction ``sum_j weights[j] row_j``; 0 when it is below rounding."""
    terms_NN = gram_NN * weights_N[None, :] * weights_N[:, None]
    square, noise = float(terms_NN.sum()), _ROUNDING * float(np.abs(terms_NN).sum())
    return float(np.sqrt(square)) if square > noise else 0.0


def margin_cosines(
    gram_NN: Float64[np.ndarray, "N N"], weights_N: Float64[np.ndarray, " N"]
) -> Float64[np.ndarray, " N"]:
    """Cosine of the direction with each row, in [-1, 1]; 0 for a zero row or a zero direction.

    A negative entry k says that the step raises the loss behind row k to first order.
    """
    scale = lengths(gram_NN) * direction_length(gram_NN, weights_N)
    alive_N = scale > ZERO_LENGTH
    cosines_N: Array = np.zeros_like(scale)
    np.divide(margins(gram_NN, weights_N), scale, out=cosines_N, where=alive_N)
    return cosines_N.clip(-1.0, 1.0)


def nonzero_rows(gram_NN: Float64[np.ndarray, "N N"]) -> Bool[np.ndarray, " N"]:
    """Which rows are longer than :data:`ZERO_LENGTH`."""
    return lengths(gram_NN) > ZERO_LENGTH


def min_margin_cosine(gram_NN: Float64[np.ndarray, "N N"], weights_N: Float64[np.ndarray, " N"]) -> float:
    """Smallest cosine of the direction with a row that is not zero; 0 when there is no such row."""
    cosines = margin_cosines(gram_NN, weights_N)[nonzero_rows(gram_NN)]
    return float(cosines.min()) if cosines.size else 0.0


def direction_cosine(
    gram_NN: Float64[np.ndarray, "N N"],
    weights_N: Float64[np.ndarray, " N"],
    base_N: Float64[np.ndarray, " N"],
) -> float:
    """Cosine between the directions of two weight vectors; 0 when one of them is zero."""
    scale = direction_length(gram_NN, weights_N) * direction_length(gram_NN, base_N)
    return float(np.clip(base_N @ gram_NN @ weights_N / scale, -1.0, 1.0)) if scale > 0.0 else 0.0


def conflict_metrics(
    gram_NN: Float64[np.ndarray, "N N"],
    weights_N: Float64[np.ndarray, " N"],
    base_N: Float64[np.ndarray, " N"],
) -> dict[str, float]:
    """The numbers that every rule reports about one step.

    Args:
        gram_NN: (N, N) inner products of the rows.
        weights_N: (N,) weights that the rule chose.
        base_N: (N,) base weights, what the rule returns without conflict.

    Returns:
        ``conflicts`` (pairs with a negative inner product), ``conflict_share`` (of all pairs), ``min_cosine``
        (over pairs, before), ``magnitude_similarity``, ``conflicts_after`` (rows that the direction opposes),
        ``min_margin_cosine`` (direction against rows, after) and ``cos_mean`` (direction against the base's).
    """
    after_N = margin_cosines(gram_NN, weights_N)
    return {
        "conflicts": float(conflicting_pairs(gram_NN)),
        "conflict_share": conflict_share(gram_NN),
        "min_cosine": min_cosine(gram_NN),
        "magnitude_similarity": magnitude_similarity(gram_NN),
        "conflicts_after": float(np.count_nonzero(after_N < 0.0)),
        "min_margin_cosine": min_margin_cosine(gram_NN, weights_N),
        "cos_mean": direction_cosine(gram_NN, weights_N, base_N),
    }
