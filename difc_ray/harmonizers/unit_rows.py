"""A Gram matrix without the lengths of its rows, on which rows of any lengths are treated alike.

Shape suffixes: N rows, A rows that are not zero rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from difc_ray.harmonizers import metrics

NEGLIGIBLE_RATIO = 1e-12
"""A row shorter than this part of the longest is treated as a zero row."""


class UnitRows(NamedTuple):
    """A Gram matrix without the lengths of its rows, and without its zero rows."""

    cosines_AA: Float64[np.ndarray, "A A"]
    """Inner products of the unit rows; unit diagonal, entries in [-1, 1]."""
    lengths_N: Float64[np.ndarray, " N"]
    """Length of every row, 0 for a zero row."""
    alive_N: Bool[np.ndarray, " N"]
    """Which rows are not zero rows."""


def equilibrate(gram_NN: Float64[np.ndarray, "N N"], negligible: float = NEGLIGIBLE_RATIO) -> UnitRows:
    """The Gram matrix of the unit rows.

    Args:
        gram_NN: (N, N) symmetric, positive semidefinite.
        negligible: a row shorter than this part of the longest is a zero row.

    >>> equilibrate(np.array([[4.0, -1.0], [-1.0, 1.0]])).cosines_AA.tolist()
    [[1.0, -0.5], [-0.5, 1.0]]
    """
    lengths_N = metrics.lengths(gram_NN)
    alive_N = lengths_N > max(metrics.ZERO_LENGTH, negligible * float(lengths_N.max(initial=0.0)))
    if alive_N.all():
        cosines_AA = gram_NN / lengths_N[:, None] / lengths_N
    else:
        lengths_N = np.where(alive_N, lengths_N, 0.0)
        lengths_A = lengths_N[alive_N]
        cosines_AA = gram_NN[alive_N][:, alive_N] / lengths_A[:, None] / lengths_A
    np.minimum(cosines_AA, 1.0, out=cosines_AA)
    np.maximum(cosines_AA, -1.0, out=cosines_AA)
    np.fill_diagonal(cosines_AA, 1.0)
    return UnitRows(cosines_AA, lengths_N, alive_N)
