"""Flatness of the direction: what workers measure of the curvature, and the metric that the coordinator makes of it.

Shape suffixes: K domains, P parameters, S parameters of the head, N raw rows.

Rules that ask for it (``needs_metric``) look for the direction near the mean gradient that is flat under the Hessian,
``min_d ‖d − ḡ‖² + λ dᵀ H d`` with ``⟨d, g_k⟩ ≥ 0``: all they need is ``M = (I + λ H)⁻¹`` between and behind the rows.

* `diagonal`: every worker sends the diagonal D_e ⪰ 0 of its Hessian (the head in closed form, the rest by the squared
  gradient or a clamped Hutchinson estimate); their weighted mean is averaged over the steps, divided by its own mean
  (so that λ has no unit), and ``M = 1 / (1 + λ D)`` goes into Gram and combination block by block.
* `hvp`: the head's full Hessian by the Neumann series ``M ≈ Σ_{n ≤ N} (−λ H)^n``, each order one exchange of products
  ``H_e v`` in closed form; parameters outside the head keep M = I. The series converges where ``λ ‖H‖ < 1``: the norm
  is estimated by Lanczos iterations on the same products, and λ is capped at ``0.9 / ‖H‖`` where it is too large.

`adaptive` multiplies λ by ``ν / (1 + ν)`` with the noise-to-signal ratio ν of the head's gradient: flatness counts
where the gradient is mostly noise. With the noise ``n = Σ w_e² tr Σ_e / B`` of the mean gradient ĝ,
``E‖ĝ‖² = ‖g‖² + n``,
so that this factor is ``n / E‖ĝ‖²``: both are averaged over the steps, and nothing is subtracted.

Source: for ν, the simple noise scale of McCandlish et al. 2018, "An Empirical Model of Large-Batch Training"; tr Σ_e
from per-sample gradients in closed form, as Fishr's variance (Rame et al. 2022). The bounded map ν / (1 + ν) is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from difc_ray.config import Config
from difc_ray.determinism import derive_seed
from difc_ray.objectives.curvature import rademacher
from difc_ray.step.worker import Rows, held_rows
from difc_ray.vectors import ParameterLayout, as_tensor, combine

LANCZOS_STEPS, LANCZOS_EVERY = 8, 20
"""Products per estimate of the norm, and training steps between two estimates."""

SAFE = 0.9
"""Largest λ‖H‖ that the Neumann series is used with."""

Products = Callable[[Float[np.ndarray, "V S"]], Float[np.ndarray, "V S"]]
"""Vectors of head size -> their products with the mean Hessian of the head."""


def head_slice(layout: ParameterLayout) -> slice:
    """The head's parameters in the flat vector: the end of it."""
    return slice(layout.slices["head.weight"].start, layout.size)


class Flatness:
    """The coordinator's memory of the curvature.

    Args:
        config: the run's configuration.
        layout: the model's parameters.
        weights_K: the domains' weights.
        state: the memory itself, by name; part of the training state, changed in place.
    """

    def __init__(
        self, config: Config, layout: ParameterLayout, weights_K: np.ndarray, state: dict[str, Tensor]
    ) -> None:
        self.config, self.weights_K, self.state = config, weights_K, state
        self.options = config.harmonize.curvature
        self.head = head_slice(layout)
        self.used = config.harmonize.flatness
        self.capped = False
        self._next: dict[str, Tensor] = {}

    def metric(self, replies: Sequence[Rows]) -> Tensor:
        """The diagonal of M for this step, with this step's D in the average; kept only by :meth:`commit`."""
        mean_P = torch.mul(as_tensor(_curvature(replies[0])), float(self.weights_K[0]))
        for weight, reply in zip(self.weights_K[1:], replies[1:], strict=True):
            mean_P.add_(as_tensor(_curvature(reply)), alpha=float(weight))
        before_P = self.state.get("diagonal")
        averaged_P = mean_P if before_P is None else torch.lerp(mean_P, before_P, self.options.decay)
        scale = float(averaged_P.mean(dtype=torch.float64)) if self.options.normalize else 1.0
        self.used = self._lambda(replies)
        self._next["diagonal"] = averaged_P
        if scale == 0 or self.used == 0:
            return torch.ones_like(averaged_P)
        return averaged_P.mul(self.used / scale).add_(1.0).reciprocal_()

    def commit(self) -> None:
        """Makes what the last step measured part of the state; a step that is skipped leaves no trace."""
        self.state.update(self._next)
        self._next = {}

    def neumann(
        self, step: int, replies: Sequence[Rows], vectors_VS: Float[np.ndarray, "V S"], products: Products
    ) -> Float[np.ndarray, "V S"]:
        """``Σ_{n ≤ N} (−λ H)^n v`` for vectors of head size, in float64.

        Args:
            step: the training step; the norm is estimated anew every ``LANCZOS_EVERY`` steps.
            replies: rows of all domains.
            vectors_VS: the head's part of the rows.
            products: the mean Hessian.
        """
        known = dict(self.state)
        if step % LANCZOS_EVERY == 0 or "norm" not in known:
            start_S = np.asarray(
                rademacher(1, vectors_VS.shape[1], derive_seed(self.config.seed, "lanczos", "", step))[0]
            )
            norm, mean = lanczos_norm(start_S.astype(np.float64), products)
            known = {"norm": _scalar(norm), "scale": _scalar(mean)}
            self._next.update(known)
        scale = float(known["scale"]) if self.options.normalize else 1.0
        norm = float(known["norm"]) / scale if scale > 0 else 0.0
        wanted = self._lambda(replies)
        self.capped = wanted * norm > SAFE
        self.used = SAFE / norm if self.capped else wanted
        term_VS = vectors_VS.astype(np.float64)
        total_VS = term_VS.copy()
        for _ in range(self.options.order if scale > 0 else 0):
            term_VS = products(term_VS) * (-self.used / scale)
            total_VS += term_VS
        return total_VS

    def diagnostics(self) -> dict[str, float]:
        """λ as used, and whether the Neumann series needed a smaller one than was asked for."""
        diagnostics = {"flatness": float(self.used), "flatness_capped": float(self.capped)}
        if "noise" in self.state:
            diagnostics["noise_share"] = float(self.state["noise"]) / max(float(self.state["power"]), 1e-300)
        return diagnostics

    def _lambda(self, replies: Sequence[Rows]) -> float:
        """λ, or with `adaptive` its product with the share of noise in the gradient."""
        flatness = self.config.harmonize.flatness
        if not self.options.adaptive:
            return flatness
        pairs = list(zip(self.weights_K, replies, strict=True))
        mean_S = np.sum([w * held_rows(reply)[0, self.head].astype(np.float64) for w, reply in pairs], axis=0)
        noise = float(sum(w * w * reply.noise for w, reply in pairs))
        averaged = {}
        for name, value in (("noise", noise), ("power", float(np.dot(mean_S, mean_S)))):
            before = self.state.get(name)
            decay = self.options.decay
            averaged[name] = value if before is None else decay * float(before) + (1 - decay) * value
            self._next[name] = _scalar(averaged[name])
        return flatness * min(1.0, averaged["noise"] / averaged["power"]) if averaged["power"] > 0 else 0.0


def gram_behind_head(
    gram_NN: Float[np.ndarray, "N N"], heads_NS: Float[np.ndarray, "N S"], moved_NS: Float[np.ndarray, "N S"]
) -> Float[np.ndarray, "V V"]:
    """Gram matrix of the 2N rows r and M r, where M moves the head's part only.

    Args:
        gram_NN: inner products of the rows.
        heads_NS: the head's part of the rows.
        moved_NS: M times that part.
    """
    rest_NN = gram_NN - heads_NS @ heads_NS.T
    mixed_NN, moved_NN = rest_NN + heads_NS @ moved_NS.T, rest_NN + moved_NS @ moved_NS.T
    return np.block([[gram_NN, mixed_NN], [mixed_NN.T, (moved_NN + moved_NN.T) / 2]])


def combine_behind_head(
    weights_V: Float[np.ndarray, " V"], rows: Sequence[Tensor], moved_NS: Float[np.ndarray, "N S"], head: slice
) -> Float[Tensor, " P"]:
    """The direction of weights on the 2N rows r and M r, where M moves the head's part only."""
    n = len(rows)
    plain_N, behind_N = weights_V[:n], weights_V[n:]
    out_P = combine(plain_N + behind_N, rows)
    heads_S = sum(w * row[head].double().numpy() for w, row in zip(plain_N, rows, strict=True))
    out_P[head] = torch.from_numpy(heads_S + behind_N @ moved_NS).to(out_P.dtype)
    return out_P


def lanczos_norm(start_S: Float[np.ndarray, " S"], products: Products) -> tuple[float, float]:
    """Largest |eigenvalue| of a symmetric matrix by Lanczos with full reorthogonalisation, and its mean eigenvalue.

    Args:
        start_S: start vector with entries ±1, so that ``vᵀ H v / S`` is an unbiased estimate of the mean eigenvalue.
        products: vectors -> products.

    Returns:
        The largest |Ritz value| (a lower bound that a few steps make tight for separated top eigenvalues), and
        ``vᵀ H v / S`` clamped at 0.
    """
    size = len(start_S)
    basis = [start_S / np.linalg.norm(start_S)]
    alphas: list[float] = []
    betas: list[float] = []
    for _ in range(min(LANCZOS_STEPS, size)):
        image_S = products(basis[-1][None])[0]
        alphas.append(float(basis[-1] @ image_S))
        for vector in basis:
            image_S = image_S - (vector @ image_S) * vector
        beta = float(np.linalg.norm(image_S))
        if beta <= 1e-12 * max(map(abs, alphas), default=0.0) or beta == 0:
            break
        betas.append(beta)
        basis.append(image_S / beta)
    off = betas[: len(alphas) - 1]
    ritz = np.linalg.eigvalsh(np.diag(alphas) + np.diag(off, 1) + np.diag(off, -1))
    return float(np.abs(ritz).max()), max(alphas[0], 0.0)


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _curvature(reply: Rows) -> np.ndarray:
    assert reply.curvature_P is not None, "the worker was not asked for its curvature"
    return reply.curvature_P
