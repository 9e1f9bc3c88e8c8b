"""What may be called a Gram matrix, and a vector of numbers about its rows.

Shape suffixes: N rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from difc_ray.errors import ConfigError, NumericError
from difc_ray.harmonizers import metrics

SYMMETRY_TOLERANCE = 1e-8
"""Largest difference between a Gram entry and its mirror image, relative to the largest entry."""

_DIAGONAL_TOLERANCE = 1e-10
"""A squared length may be this far below zero, relative to the largest: rows that cancel leave rounding."""

_CAUCHY_SCHWARZ_TOLERANCE = 1e-6
"""How far an inner product may exceed the product of the lengths; leaves room for float32 Grams."""


_ROUNDINGS, _COARSEST = 1000.0, 0.05
"""Roundings of its type that an entry may be off by, and the largest such error whatever the type."""


def check_vector(vector_N: np.ndarray, n: int, what: str) -> npt.NDArray[np.float64]:
    """A finite float64 vector with one entry per row."""
    if vector_N.shape != (n,):
        raise ConfigError(f"There must be one entry in `{what}` per row. Found shape {vector_N.shape} for {n} rows.")
    if not np.isfinite(vector_N).all():
        raise NumericError(f"`{what}` must be finite. Found {vector_N.tolist()}.")
    return vector_N.astype(np.float64)


def check_gram(gram_NN: np.ndarray, eps: float = 0.0) -> npt.NDArray[np.float64]:
    """Validates a Gram matrix and makes it exactly symmetric with a diagonal >= 0.

    Args:
        gram_NN: (N, N) real matrix, N >= 1.
        eps: rounding of the type it was computed in, if that is coarser than float64. Its products may then be off by
            a thousand times as much, relative to the largest entry, and the nearest Gram matrix is returned.

    Returns:
        (N, N) float64. An exactly symmetric matrix with a diagonal >= 0 comes back bit for bit.

    Raises:
        ConfigError: not a square matrix of at least one row.
        NumericError: beyond rounding not symmetric, a negative squared length, or an inner product that the lengths do
            not allow; or not finite.
    """
    if gram_NN.ndim != 2 or gram_NN.shape[0] != gram_NN.shape[1] or gram_NN.shape[0] < 1:
        raise ConfigError(
            f"A Gram matrix must be square, with one row and one column per gradient. Found shape {gram_NN.shape}. "
            "Pass the inner products `rows @ rows.T`, not the rows."
        )
    gram_NN = gram_NN.astype(np.float64)
    if not np.isfinite(gram_NN).all():
        i, j = (int(k) for k in np.argwhere(~np.isfinite(gram_NN))[0])
        raise NumericError(
            f"A Gram matrix must be finite. Found {gram_NN[i, j]} at ({i}, {j}). "
            "Row 0 is the first gradient: look for overflow or NaN in it before harmonizing."
        )
    largest = float(np.abs(gram_NN).max())
    skew = float(np.abs(gram_NN / 2 - gram_NN.T / 2).max()) * 2
    slack = min(_ROUNDINGS * eps, _COARSEST)
    symmetry = max(SYMMETRY_TOLERANCE, slack)
    if skew > symmetry * largest:
        raise NumericError(
            f"A Gram matrix must be symmetric (to {symmetry:.1g} of its largest entry). "
            f"Found a difference of {skew:g} at a largest entry of {largest:g}. "
            "Pass `(gram + gram.T) / 2` if that is meant."
        )
    gram_NN = gram_NN if skew == 0.0 else gram_NN / 2 + gram_NN.T / 2
    _check_lengths(gram_NN, largest, slack)
    np.fill_diagonal(gram_NN, np.maximum(np.diagonal(gram_NN), 0.0))
    return _nearest(gram_NN) if slack else gram_NN


def _nearest(gram_NN: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The nearest matrix that is one of inner products: without the negative eigenvalues that rounding has left."""
    values_N, vectors_NN = np.linalg.eigh(gram_NN)
    if values_N[0] >= 0:
        return gram_NN
    near_NN: npt.NDArray[np.float64] = (vectors_NN * np.maximum(values_N, 0.0)) @ vectors_NN.T
    return near_NN / 2 + near_NN.T / 2


def _check_lengths(gram_NN: npt.NDArray[np.float64], largest: float, slack: float) -> None:
    """Squared lengths >= 0 and Cauchy-Schwarz for every pair, up to rounding."""
    squares_N = np.diagonal(gram_NN)
    i = int(squares_N.argmin())
    if squares_N[i] < -max(_DIAGONAL_TOLERANCE, slack) * largest:
        raise NumericError(
            f"The diagonal of a Gram matrix holds squared lengths, which are not negative. "
            f"Found {squares_N[i]:g} at ({i}, {i}). Pass inner products of the rows, not another similarity."
        )
    lengths_N = metrics.lengths(gram_NN) + metrics.ZERO_LENGTH
    excess_NN = np.abs(gram_NN) - lengths_N[:, None] * lengths_N[None, :]
    if (excess_NN > max(_CAUCHY_SCHWARZ_TOLERANCE, slack) * largest).any():
        i, j = (int(k) for k in np.unravel_index(int(excess_NN.argmax()), excess_NN.shape))
        raise NumericError(
            f"An inner product must not exceed the product of the lengths. Found {gram_NN[i, j]:g} at ({i}, {j}) "
            f"for lengths {lengths_N[i]:g} and {lengths_N[j]:g}. The matrix is not `rows @ rows.T` for any rows."
        )
