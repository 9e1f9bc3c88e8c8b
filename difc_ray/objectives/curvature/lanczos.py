"""The spectrum of a symmetric matrix from products alone: Lanczos, stochastic quadrature, the trace.

Shape suffixes: K Lanczos steps, P the matrix's size, M probes, Q nodes.

K products with a start vector span a Krylov space, in which the matrix is tridiagonal, T. The eigenvalues θ_i of T
(Ritz values) lie between the smallest and the largest eigenvalue of the matrix, and each has one of them within its
residual ``β_K |s_Ki|``, where s_i is its eigenvector of T (Parlett 1998, section 13.2). The squares s_1i²
are the weights of a Gauss quadrature for the start vector's spectral measure, exact for polynomials up to degree
2K − 1; averaged over random starts it estimates the density of the eigenvalues (stochastic Lanczos quadrature).

An eigenvalue of multiplicity m is found once, whatever m: a Krylov space has one direction of each eigenspace.

Source: Golub & Meurant 2010, chapters 4 and 6; Ubaru, Chen & Saad 2017 for the density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Product = Callable[[Float[Tensor, " P"]], Float[Tensor, " P"]]
"""Vector -> its product with the symmetric matrix."""


@dataclass(frozen=True, kw_only=True)
class Krylov:
    """What K Lanczos steps found.

    Args:
        alphas_K: diagonal of T.
        betas_K: below the diagonal of T; the last one is the length of what was left, 0 where the space is invariant.
        basis_KP: orthonormal, in the precision of the start vector.
    """

    alphas_K: Float[np.ndarray, " K"]
    betas_K: Float[np.ndarray, " K"]
    basis_KP: Float[Tensor, "K P"]

    def tridiagonal(self) -> Float[np.ndarray, "K K"]:
        """T, the matrix in the basis."""
        off = self.betas_K[:-1]
        return np.asarray(np.diag(self.alphas_K) + np.diag(off, 1) + np.diag(off, -1))

    def ritz(self) -> Ritz:
        """The eigenvalues of T, with what is known of their errors."""
        values_K, vectors_KK = np.linalg.eigh(self.tridiagonal())
        return Ritz(
            values_K=values_K,
            residuals_K=np.abs(self.betas_K[-1] * vectors_KK[-1]),
            weights_K=vectors_KK[0] ** 2,
            vectors_KK=vectors_KK,
        )

    def vector(self, index: int) -> Float[Tensor, " P"]:
        """The unit vector that belongs to a Ritz value, by its place in :meth:`ritz`."""
        weights_K = torch.from_numpy(self.ritz().vectors_KK[:, index].copy()).to(self.basis_KP)
        found_P: Tensor = weights_K @ self.basis_KP
        unit_P: Tensor = found_P / found_P.norm()
        return unit_P


@dataclass(frozen=True, kw_only=True)
class Ritz:
    """Ritz values, ascending.

    Args:
        values_K: θ_i.
        residuals_K: ‖Hx − θx‖ of each: an eigenvalue of the matrix lies within it.
        weights_K: of the start vector's spectral measure, sum 1.
        vectors_KK: eigenvectors of T, as columns.
    """

    values_K: Float[np.ndarray, " K"]
    residuals_K: Float[np.ndarray, " K"]
    weights_K: Float[np.ndarray, " K"]
    vectors_KK: Float[np.ndarray, "K K"]

    @property
    def extreme(self) -> int:
        """Place of the value that is largest in magnitude."""
        return int(np.abs(self.values_K).argmax())


def lanczos(
    product: Product, start_P: Float[Tensor, " P"], steps: int, *, tolerance: float | None = None
) -> Krylov:  # fmt: skip
    """Lanczos with full reorthogonalisation, twice (Parlett's rule), so that no eigenvalue is found a second time.

    Args:
        product: the symmetric matrix.
        start_P: start vector, not zero; its precision is that of the basis.
        steps: K >= 1, the most products that are made; the basis needs K · P numbers.
        tolerance: stop when the residual of the Ritz value largest in magnitude is below this share of it; None: make
            all steps.

    Returns:
        As many steps as were made: fewer than K where P is smaller, or where the space has become invariant, so that
        all its Ritz values are eigenvalues.

    Raises:
        FloatingPointError: a product is not finite.
    """
    steps = min(steps, len(start_P))
    basis_KP = torch.empty(steps, len(start_P), dtype=start_P.dtype)
    basis_KP[0] = start_P / start_P.norm()
    alphas: list[float] = []
    betas: list[float] = []
    for k in range(steps):
        image_P = product(basis_KP[k]).clone()
        alphas.append(float(basis_KP[k] @ image_P))
        length = float(image_P.norm())
        if not np.isfinite(length):
            raise FloatingPointError("a product with the matrix is not finite")
        held_KP = basis_KP[: k + 1]
        for _ in range(2):
            image_P -= (held_KP @ image_P) @ held_KP
        beta = float(image_P.norm())
        scale = max(length, *map(abs, alphas), *betas, 0.0)
        invariant = beta <= 8 * torch.finfo(start_P.dtype).eps * scale or k + 1 == len(start_P)
        betas.append(0.0 if invariant else beta)
        found = Krylov(alphas_K=np.array(alphas), betas_K=np.array(betas), basis_KP=held_KP)
        if invariant or k + 1 == steps:
            return found
        if tolerance is not None:
            ritz = found.ritz()
            if ritz.residuals_K[ritz.extreme] <= tolerance * abs(ritz.values_K[ritz.extreme]):
                return found
        basis_KP[k + 1] = image_P / beta
    raise AssertionError("there is at least one step")


@dataclass(frozen=True, kw_only=True)
class Density:
    """The distribution of the eigenvalues as point masses.

    Args:
        nodes_Q: places, ascending.
        weights_Q: masses, sum 1.
    """

    nodes_Q: Float[np.ndarray, " Q"]
    weights_Q: Float[np.ndarray, " Q"]

    @classmethod
    def of(cls, runs: Sequence[Ritz]) -> Density:
        """The mean of the quadratures of independent starts with entries ±1.

        Bias: none up to degree 2K − 1, ``E ∫ x^k = tr(H^k) / P``. Variance: falls as one over the number of starts.
        """
        nodes = np.concatenate([run.values_K for run in runs])
        weights = np.concatenate([run.weights_K for run in runs]) / len(runs)
        order = np.argsort(nodes, kind="stable")
        return cls(nodes_Q=nodes[order], weights_Q=weights[order])

    def smooth(self, grid_G: Float[np.ndarray, " G"], width: float) -> Float[np.ndarray, " G"]:
        """The density with each mass as a normal curve of a standard deviation ``width``, on a grid; integral 1."""
        distance_GQ = (grid_G[:, None] - self.nodes_Q) / width
        curves_GQ = np.exp(-(distance_GQ**2) / 2) / (width * np.sqrt(2 * np.pi))
        return np.asarray(curves_GQ @ self.weights_Q)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its standard error; None where one sample does not tell it."""

    value: float
    error: float | None


def trace(product: Product, probes: Iterable[Float[Tensor, " P"]], known: Krylov | None = None) -> Estimate:
    """The trace from probes, less noisy with a Krylov space from an independent start (Hutch++).

    With an orthonormal basis Q, ``tr H = tr QᵀHQ + tr (I − QQᵀ) H (I − QQᵀ)``: the first part is the trace of T,
    exactly, and the second the mean of ``gᵀHg`` over ``g = (I − QQᵀ)v`` with the probes v.

    Bias: none for probes with ``E[v vᵀ] = I`` that are independent of Q. Variance for entries ±1:
    ``(2/M)(‖H'‖_F² − Σ H'_ii²)`` of the projected matrix H', from which Q has taken the outlying eigenvalues. Cost: M
    products. Exact, with error 0, where Q spans everything; probes ``√P e_i`` for all i give the exact trace too.

    Args:
        product: the symmetric matrix.
        probes: M >= 1 of them, taken one by one.
        known: a Krylov space of the same matrix; None: plain Hutchinson.

    Source: Meyer, Musco, Musco & Woodruff 2021, "Hutch++".
    Differs from the source: Q is a Krylov space that other results need anyway, not a sketch of its own.
    """
    exact = 0.0 if known is None else float(known.alphas_K.sum())
    samples = []
    for probe_P in probes:
        vector_P = probe_P
        if known is not None:
            for _ in range(2):
                vector_P = vector_P - (known.basis_KP @ vector_P) @ known.basis_KP
        complete = known is not None and len(known.alphas_K) == len(probe_P)
        samples.append(0.0 if complete else float(vector_P @ product(vector_P)))
    error = float(np.std(samples, ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else None
    return Estimate(value=exact + float(np.mean(samples)), error=error)
