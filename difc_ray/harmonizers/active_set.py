"""``argmin_{z >= 0} ½ zᵀHz + qᵀz`` by the active set method of Lawson and Hanson, held to a certificate.

Shape suffix: N unknowns.

The diagonal of H is raised by :data:`SHIFTS`, first by a few units of rounding: that makes every subproblem definite,
and changes the answer by no more than rounding does; one step of iterative refinement takes it back out where the rows
are independent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from difc_ray.errors import NumericError
from difc_ray.harmonizers.metrics import Array

TOLERANCE = 1e-8
"""Largest KKT residual of an answer."""

SHIFTS = (4.0, 1e3, 1e5, 1e7)
"""Added to the unit diagonal, in units of ``N · 2.2e-16``; a larger one is tried only if the certificate asks."""

_EPS = float(np.finfo(np.float64).eps)
_GOOD = 1e-13
"""A residual below this ends the search for a better one."""


class Minimiser(NamedTuple):
    """A minimiser over ``z >= 0``, its residual, and how many systems it took."""

    z: Array
    residual: float
    iterations: int


def certified_minimiser(
    hessian_NN: Array, linear_N: Array, residual: Callable[[Array], float], gram_NN: Array, problem: str
) -> Minimiser:
    """``argmin_{z >= 0} ½ zᵀHz + qᵀz``, with the smallest diagonal shift whose certificate holds."""
    n = len(linear_N)
    best = Minimiser(np.zeros(n), residual(np.zeros(n)), 0)
    if best.residual <= _EPS:
        return best
    iterations = 0
    for shift in SHIFTS:
        shifted_NN = hessian_NN + (shift * n * _EPS) * np.eye(n)
        try:
            z_N, solved = _active_set(shifted_NN, linear_N)
        except np.linalg.LinAlgError:
            continue
        iterations += solved
        for candidate_N in (z_N, _refined(hessian_NN, shifted_NN, linear_N, z_N)):
            worst = residual(candidate_N)
            if worst < best.residual:
                best = Minimiser(candidate_N, worst, iterations)
            if best.residual <= 8.0 * _EPS:
                return best
        if best.residual <= max(_GOOD, shift * n * _EPS):
            return best
    if not best.residual <= TOLERANCE:
        raise _failed(gram_NN, problem, best.residual)
    return best


def _active_set(hessian_NN: Array, linear_N: Array) -> tuple[Array, int]:
    """Lawson and Hanson's method for ``argmin_{z >= 0} ½ zᵀHz + qᵀz``, H definite; z and the number of systems solved.

    All rows with a negative slope at 0 are let in at once at the start; then one enters at a time. Every accepted z is
    the minimiser over its own support and lower than the one before, so the method ends. A row that is thrown out by
    rounding as soon as it is let in is barred until another one has changed z.
    """
    n = len(linear_N)
    z_N, free_N, barred_N = np.zeros(n), linear_N < 0.0, np.zeros(n, dtype=bool)
    solved, entering = 0, -1
    for _ in range(3 * n + 10):
        z_N, steps = _walk(hessian_NN, linear_N, z_N, free_N)
        solved += steps
        if entering >= 0:
            barred_N[:] = False if free_N[entering] else barred_N
            barred_N[entering] = not free_N[entering]
        slope_N = hessian_NN @ z_N + linear_N
        slope_N[free_N | barred_N] = np.inf
        entering = int(slope_N.argmin())
        if not slope_N[entering] < -4.0 * _EPS * (float(z_N.sum()) + float(np.abs(linear_N).max())):
            break
        free_N[entering] = True
    return z_N, solved


def _walk(hessian_NN: Array, linear_N: Array, z_N: Array, free_N: npt.NDArray[np.bool_]) -> tuple[Array, int]:
    """From ``z >= 0`` towards the minimiser over the free rows, freezing (in place) those that would turn negative."""
    solved = 0
    while True:
        index = np.flatnonzero(free_N)
        reached_N = np.zeros_like(z_N)
        if index.size == 0:
            return reached_N, solved
        target = np.linalg.solve(hessian_NN[index[:, None], index], -linear_N[index])
        solved += 1
        if target.min() > 0.0:
            reached_N[index] = target
            return reached_N, solved
        current = z_N[index]
        blocking = target <= 0.0
        fall = current - target
        share = np.full(index.size, np.inf)
        share[blocking] = np.divide(current, fall, out=np.zeros_like(fall), where=fall > 0.0)[blocking]
        step = share.min()
        leaving = share <= step
        reached_N[index] = np.where(leaving, 0.0, current - step * fall)
        z_N = reached_N
        free_N[index[leaving]] = False


def _refined(hessian_NN: Array, shifted_NN: Array, linear_N: Array, z_N: Array) -> Array:
    """One step of iterative refinement on the support, which takes the diagonal shift back out."""
    index = np.flatnonzero(z_N > 0.0)
    if index.size == 0:
        return z_N
    error = -linear_N[index] - hessian_NN[index[:, None], index] @ z_N[index]
    better = z_N[index] + np.linalg.solve(shifted_NN[index[:, None], index], error)
    if not (better > 0.0).all():
        return z_N
    refined_N = np.zeros_like(z_N)
    refined_N[index] = better
    return refined_N


def _failed(gram_NN: Array, problem: str, residual: float) -> NumericError:
    """The error of a certificate that does not hold; writes the Gram to a file of the temporary folder."""
    with tempfile.NamedTemporaryFile(prefix="difc-ray-gram-", suffix=".npz", delete=False) as file:
        np.savez(file, gram=gram_NN)
    smallest, *_, largest = np.linalg.eigvalsh(gram_NN) if len(gram_NN) > 1 else (gram_NN[0, 0], gram_NN[0, 0])
    return NumericError(
        f"The KKT residual of the {problem} problem must be at most {TOLERANCE:g}. Found {residual:.3g}, for a Gram "
        f"matrix with eigenvalues from {smallest:.3g} to {largest:.3g}, written to `{file.name}`. A Gram matrix has "
        "none below zero: accumulate the inner products in float64."
    )
