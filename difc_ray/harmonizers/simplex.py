"""Iterative and regularised ways to the shortest weighted mean of the rows, beside the exact one of the solvers.

Shape suffixes: N rows. All take the Gram matrix Γ and return α in the simplex; ``u = Σ α_i g_i``, u* the shortest.

Each works on Γ divided by its mean diagonal, so that nothing depends on a common scale. How far a point is from the
best is certified by :func:`gap`, never by how little the last step changed: Frank-Wolfe steps stall.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

from difc_ray.harmonizers.metrics import Array

_EPS = float(np.finfo(np.float64).eps)


class Approximation(NamedTuple):
    """A point of the simplex and how many steps led to it."""

    weights: Array
    steps: int


def mean_square(gram_NN: Float64[np.ndarray, "N N"]) -> float:
    """Mean squared length of the rows; 1 where it is zero."""
    return float(np.diagonal(gram_NN).mean()) or 1.0


def gap(gram_NN: Float64[np.ndarray, "N N"], alpha_N: Float64[np.ndarray, " N"]) -> float:
    """Frank-Wolfe gap ``αᵀΓα - min_i (Γα)_i``: at least ``‖u - u*‖²``, and ``(‖u‖² - ‖u*‖²)/2``; 0 at the optimum.

    >>> gap(np.eye(2), np.array([1.0, 0.0]))
    1.0
    """
    margins_N = gram_NN @ alpha_N
    return max(0.0, float(alpha_N @ margins_N - margins_N.min()))


def frank_wolfe(gram_NN: Float64[np.ndarray, "N N"], steps: int, tolerance: float) -> Approximation:
    """Frank-Wolfe with exact line search, from the uniform point, until ``gap <= tolerance · αᵀΓα``.

    Step towards the row τ with the smallest margin: ``γ = (u·u - u·g_τ) / |u - g_τ|²``, cut to [0, 1].

    After k steps ``‖u‖²/2 - ‖u*‖²/2 <= 4 λ_max(Γ) / (k + 2)``.

    Source:
        Sener and Koltun 2018, Multi-Task Learning as Multi-Objective Optimization (arXiv 1810.04650), Algorithm 2.
    """
    gram_NN = gram_NN / mean_square(gram_NN)
    alpha_N = np.full(len(gram_NN), 1.0 / len(gram_NN))
    for step in range(steps):
        margins_N = gram_NN @ alpha_N
        nearest = int(margins_N.argmin())
        square, overlap = float(alpha_N @ margins_N), float(margins_N[nearest])
        if square - overlap <= tolerance * square:
            return Approximation(alpha_N, step)
        distance = square - 2.0 * overlap + float(gram_NN[nearest, nearest])
        share = min(1.0, (square - overlap) / distance) if distance > 0.0 else 1.0
        alpha_N *= 1.0 - share
        alpha_N[nearest] += share
    return Approximation(alpha_N, steps)


def simplified_frank_wolfe(gram_NN: Float64[np.ndarray, "N N"], steps: int) -> Approximation:
    """The running mean of the rows with the smallest margin: ``u_{k+1} = (k u_k + g_τ) / (k + 1)``.

    It starts at the row that a uniform start would pick. Subgradient ascent of ``min_i <g_i, u> - ‖u‖²/2`` with step
    ``1/(k+1)``, so ``‖u_k - u*‖² <= R²/k`` with ``R = max_i |g_i - u*|``: with ``e = u_k - u*``,
    ``<e, g_τ - u*> <= 0`` since ``min_i <g_i, u_k> <= <u*, u_k>`` and ``<u*, g_τ> >= ‖u*‖²``; hence
    ``‖e_{k+1}‖² <= (1 - γ)² ‖e_k‖² + γ² R²``, and ``γ = 1/(k+1)`` gives the bound by induction.
    """
    gram_NN = gram_NN / mean_square(gram_NN)
    counts_N = np.zeros(len(gram_NN))
    margins_N = gram_NN.mean(axis=1)
    for step in range(1, steps + 1):
        nearest = int(margins_N.argmin())
        counts_N[nearest] += 1.0
        margins_N = gram_NN @ counts_N / step
    return Approximation(counts_N / counts_N.sum(), steps)


def softmax_descent(gram_NN: Float64[np.ndarray, "N N"], steps: int, rate: float) -> Approximation:
    """Gradient descent on β with ``α = softmax(β)``: ``β_i -= rate · α_i (<g_i, u> - ‖u‖²)``, from ``β = 0``.

    Γ is divided by its largest diagonal entry, so that the rate has no unit. Every finite stationary point is
    optimal, but corners of the simplex lie at infinity, where convergence is slow (O(1/steps)).
    """
    gram_NN = gram_NN / (float(np.diagonal(gram_NN).max()) or 1.0)
    beta_N = np.zeros(len(gram_NN))
    alpha_N = _softmax(beta_N)
    for _ in range(steps):
        margins_N = gram_NN @ alpha_N
        beta_N -= rate * alpha_N * (margins_N - float(alpha_N @ margins_N))
        alpha_N = _softmax(beta_N)
    return Approximation(alpha_N, steps)


class Entropic(NamedTuple):
    """The minimiser of the entropy-regularised problem and the residual of its optimality condition."""

    weights: Array
    residual: float
    steps: int


def entropic(gram_NN: Float64[np.ndarray, "N N"], temperature: float, max_steps: int = 200) -> Entropic:
    """``argmin ½ αᵀΓα + τ Σ α_i log α_i`` over the simplex, Γ divided by its mean diagonal: convex, interior.

    It is the fixed point ``α = softmax(-Γα/τ)``, found by Newton's method on ``F(θ) = θ + Γ softmax(θ) / τ`` (up to a
    constant), damped so that the objective falls; Newton's direction always descends it. ``τ -> ∞`` gives the uniform
    point, ``τ -> 0`` the shortest mean.

    Returns:
        α and the largest ``|α_i / softmax(-Γα/τ)_i - 1|``.
    """
    gram_NN = gram_NN / mean_square(gram_NN) / temperature
    n = len(gram_NN)
    theta_N = np.zeros(n)
    steps = 0
    while steps < max_steps:
        alpha_N, force_N, noise = _entropic_force(gram_NN, theta_N)
        size = float(np.abs(force_N).max())
        if size <= noise:
            break
        spread_NN = np.diag(alpha_N) - np.outer(alpha_N, alpha_N)
        move_N = np.linalg.solve(np.eye(n) + gram_NN @ spread_NN, -force_N)
        slope, value, length = float(force_N @ spread_NN @ move_N), _entropic_value(gram_NN, theta_N), 1.0
        while (  # near the end the value no longer resolves the step, but the force does
            _entropic_value(gram_NN, theta_N + length * move_N) > value + 1e-4 * length * slope
            and np.abs(_entropic_force(gram_NN, theta_N + length * move_N)[1]).max() > (1.0 - length / 2.0) * size
            and length > _EPS
        ):
            length /= 2.0
        theta_N = theta_N + length * move_N
        theta_N -= theta_N.max()
        steps += 1
    alpha_N, force_N, _ = _entropic_force(gram_NN, theta_N)
    return Entropic(alpha_N, float(np.abs(np.expm1(np.minimum(force_N, 50.0))).max()), steps)


def _entropic_force(gram_NN: Array, theta_N: Array) -> tuple[Array, Array, float]:
    """α, ``F = θ + Γα`` without its mean under α, and how much of F is rounding (Γ in units of the temperature)."""
    alpha_N = _softmax(theta_N)
    force_N = theta_N + gram_NN @ alpha_N
    noise = 32.0 * _EPS * (1.0 + float(np.abs(theta_N).max()) + float((np.abs(gram_NN) @ alpha_N).max()))
    return alpha_N, force_N - float(alpha_N @ force_N), noise


def _entropic_value(gram_NN: Array, theta_N: Array) -> float:
    """``½ αᵀΓα + Σ α log α`` at ``α = softmax(θ)``."""
    alpha_N = _softmax(theta_N)
    logs_N = theta_N - theta_N.max()
    logs_N = logs_N - np.log(np.exp(logs_N).sum())
    return float(0.5 * alpha_N @ gram_NN @ alpha_N + alpha_N @ logs_N)


def _softmax(theta_N: Array) -> Array:
    """Softmax, the largest entry first taken to 0."""
    powers_N = np.exp(theta_N - theta_N.max())
    return np.asarray(powers_N / powers_N.sum())
