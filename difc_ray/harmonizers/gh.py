r"""Gradient harmonization of two rows: GH and GH++ (Huang et al. 2024), published and corrected.

Notation of all rules here, for the (scaled) rows g1 (alignment) and g2 (classification):
``a = |g1|``, ``b = |g2|``, ``c = g1 · g2``, θ the angle between them, and, where they conflict (c < 0),
``φ = θ - π/2`` in (0, π/2], ``s = sin θ = cos φ``.

Each rule replaces the pair by harmonized rows ``g̃_i = Σ_j mixing[i, j] g_j`` and follows their sum, so its
multipliers are the column sums, ``tau_j = Σ_i mixing[i, j]``. Everything needs a², b² and c only. Scaling both
rows by one factor changes nothing.

Bounds: tau is unbounded in b/a (and, for the rotations, in 1/s), but the direction is not:
``|tau1 g1 + tau2 g2|`` is ``√(a² + b²)`` for the rotations and at most ``a + b`` for ``gh``.

The loss form: with tau held constant, ``tau1 L1 + tau2 L2`` has the same gradient on shared parameters (Eq. 44).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from jaxtyping import Float64

from difc_ray.harmonizers import metrics
from difc_ray.harmonizers.base import (
    HARMONIZERS,
    GramStatistics,
    Harmonization,
    Harmonizer,
    State,
    check_number,
    scaled_gram,
)

NEGLIGIBLE_RATIO = 1e-12
"""A row shorter than this part of the other is treated as a zero row: its angle is rounding."""

_SOURCE = "Huang et al. 2024, Gradient Harmonization in Unsupervised Domain Adaptation (arXiv 2408.00288)"


class Conflict(NamedTuple):
    """Two rows that conflict."""

    a: float
    """Length of row 1, > 0."""
    b: float
    """Length of row 2, > 0."""
    phi: float
    """Angle between the rows beyond the right angle, radians, in (0, π/2]."""
    s: float
    """Sine of the angle between the rows = cos φ, in [0, 1)."""


class RowMixing(NamedTuple):
    """How the harmonized rows are made of the rows, and the angle that row 1 was turned by."""

    matrix: Float64[np.ndarray, "2 2"]
    beta: float = 0.0
    s_min_active: bool = False


def conflict_of(gram: Float64[np.ndarray, "2 2"]) -> Conflict | None:
    """The conflict of two rows, or None: inner product >= 0, or a zero row.

    φ comes from ``atan2(-cos θ, sin θ)``, which is accurate at both ends; ``sin θ`` is taken as
    ``√((1 - cos θ)(1 + cos θ))`` of the normalized rows, so that no product of squares leaves float64.
    """
    a, b = metrics.lengths(gram)
    if min(a, b) < metrics.ZERO_LENGTH or min(a, b) < NEGLIGIBLE_RATIO * max(a, b) or gram[0, 1] >= 0.0:
        return None
    cosine = max(-1.0, float(gram[0, 1] / a / b))
    s = math.sqrt((1.0 - cosine) * (1.0 + cosine))
    return Conflict(float(a), float(b), math.atan2(-cosine, s), s)


def projection(pair: Conflict) -> Float64[np.ndarray, "2 2"]:
    """RowMixing of GH: each row minus its projection on the other, ``g̃1 = g1 - (c/b²) g2`` and vice versa."""
    cosine = -math.sin(pair.phi)
    return np.array([[1.0, -cosine * (pair.a / pair.b)], [-cosine * (pair.b / pair.a), 1.0]])


def rotation(pair: Conflict, beta: float) -> Float64[np.ndarray, "2 2"]:
    """RowMixing that turns row 1 by ``beta`` and row 2 by ``φ - beta`` towards each other, keeping both lengths.

    The harmonized rows are orthogonal for every ``beta`` in [0, φ].
    """
    rest = pair.phi - beta
    return (
        np.array(
            [
                [math.cos(rest), (pair.a / pair.b) * math.sin(beta)],
                [(pair.b / pair.a) * math.sin(rest), math.cos(beta)],
            ]
        )
        / pair.s
    )


@dataclass(frozen=True, kw_only=True)
class TwoRowHarmonizer(Harmonizer):
    """Base of the rules for two rows: a subclass says how a conflicting pair is mixed."""

    two_rows = True

    @abstractmethod
    def mix(self, pair: Conflict) -> RowMixing:
        """The harmonized rows of a conflicting pair as combinations of the rows."""

    @final
    def update(self, stats: GramStatistics, state: State, rng: np.random.Generator | None) -> Harmonization:
        """``base weights * tau``; tau = (1, 1) where nothing conflicts or a row is zero.

        Diagnostics beyond the common ones: ``tau1``, ``tau2``, ``phi`` and ``beta`` (radians; 0 without
        conflict or rotation), ``s_min_active`` (1 where the fallback to ``gh`` acted) and ``min_cosine_after``
        (cosine of the harmonized rows).
        """
        stats = self.checked(stats)
        gram = scaled_gram(stats)
        pair = conflict_of(gram)
        mixing = RowMixing(np.eye(2)) if pair is None else self.mix(pair)
        tau = mixing.matrix.sum(axis=0)
        weights = stats.weights_N * tau
        diagnostics = metrics.conflict_metrics(stats.gram_NN, weights, stats.weights_N) | {
            "min_cosine_after": metrics.min_cosine(mixing.matrix @ gram @ mixing.matrix.T),
            "tau1": float(tau[0]),
            "tau2": float(tau[1]),
            "phi": 0.0 if pair is None else pair.phi,
            "beta": mixing.beta,
            "s_min_active": float(mixing.s_min_active),
        }
        return Harmonization(weights=weights, state=state, diagnostics=diagnostics)


@HARMONIZERS.register("gh")
@dataclass(frozen=True, kw_only=True)
class GradientHarmonization(TwoRowHarmonizer):
    """GH: remove from each row its projection on the other, then add.

    ``c < 0``: ``tau = (1 - c/a², 1 - c/b²)``, else (1, 1).

    Then ``direction · g_i = |g_i|² sin² θ >= 0``: neither loss rises to first order. tau >= 1 always; as θ -> π
    the direction goes to zero. For two rows it equals the PCGrad sum and twice UPGrad's mean.

    Source:
        Huang et al. 2024 (arXiv 2408.00288), Eq. 28 and 42.
    """

    name = "gh"
    summary = "subtract from each row its projection on the other (GH; = PCGrad for two rows)"
    guarantee = "n = 2 only"
    source = f"{_SOURCE}, Eq. 28 and 42"

    def mix(self, pair: Conflict) -> RowMixing:
        """Mutual projection."""
        return RowMixing(projection(pair))


@dataclass(frozen=True, kw_only=True)
class RotatingHarmonizer(TwoRowHarmonizer):
    """Base of the rules that turn the two rows towards each other until they are orthogonal."""

    lam: float = 0.5
    """λ in [0, 1]: the share of the rotation that row 1 (alignment) takes; row 2 takes the rest."""
    s_min: float = 0.05
    """In [0, 1]: below this sine of the angle between the rows (nearly opposed) the rule falls back to ``gh``,
    because the plane of rotation is then made of rounding. ``s_min_active`` in the diagnostics says when."""
    max_weight: float | None = None
    """Upper bound of each tau, >= 1, or None (default, off). A bound brings conflicts back; the direction is
    bounded without it."""

    def __post_init__(self) -> None:
        check_number(self.name, "lam", self.lam, 0.0, 1.0)
        check_number(self.name, "s_min", self.s_min, 0.0, 1.0)
        if self.max_weight is not None:
            check_number(self.name, "max_weight", self.max_weight, 1.0, math.inf)

    @abstractmethod
    def beta(self, pair: Conflict) -> float:
        """Angle that row 1 is turned by, radians, in [0, φ]."""

    @final
    def mix(self, pair: Conflict) -> RowMixing:
        """Rotation by ``beta``, or ``gh`` where the rows are nearly opposed; columns bounded by ``max_weight``."""
        opposed = pair.s < self.s_min or pair.s == 0.0
        beta = 0.0 if opposed else self.beta(pair)
        matrix = projection(pair) if opposed else rotation(pair, beta)
        if self.max_weight is not None:
            tau = matrix.sum(axis=0)
            matrix = matrix * (np.minimum(tau, self.max_weight) / tau)
        return RowMixing(matrix, beta, opposed)


@HARMONIZERS.register("ghpp", aliases=("gh++", "GH++"))
@dataclass(frozen=True, kw_only=True)
class SafeRotation(RotatingHarmonizer):
    """GH++, corrected: rotate both rows until they are orthogonal, by angles that keep the sum non-conflicting.

    ``ψ = atan2(a, b)``, ``β = clip(λφ, max(0, ψ + φ - π/2), min(φ, ψ))``, ``β' = φ - β``,
    ``tau1 = (cos β' + (b/a) sin β') / s``, ``tau2 = (cos β + (a/b) sin β) / s``; ``s < s_min`` -> ``gh``.

    The harmonized rows keep their lengths and are orthogonal, so ``|direction|² = a² + b²``. The direction opposes
    g1 iff ``tan β > a/b`` and g2 iff ``tan β' > b/a``; the interval of β is where neither holds, and it is never
    empty because ``φ <= π/2``. Equal lengths and λ = 1/2: both tau are ``1/√(1 + cos θ)``. tau is continuous in
    the Gram except where ``s`` crosses ``s_min``.

    Source:
        Huang et al. 2024 (arXiv 2408.00288), section 3.5, Eq. 33-43 (GH++).

    Differs from the source:
        1. Eq. 34 writes the chord AE as a multiple of g1, but AE stands at ``π/2 + β/2`` to it: Eq. 35-43 rescale
           the rows instead of rotating them. This is the rotation that the text and its figure describe.
        2. The exact rotation alone (``ghpp_rotation``) opposes one row in more than a third of random conflicts;
           β is clipped to the interval where it opposes none.
        3. Nearly opposed rows fall back to ``gh``.
    """

    name = "ghpp"
    summary = "rotate both rows until orthogonal, by angles that keep the sum non-conflicting (GH++)"
    guarantee = "n = 2 only"
    source = f"{_SOURCE}, Eq. 33-43, corrected"

    def beta(self, pair: Conflict) -> float:
        """λφ, clipped to the angles at which the sum opposes no row."""
        psi = math.atan2(pair.a, pair.b)
        low, high = max(0.0, psi + pair.phi - math.pi / 2), min(pair.phi, psi)
        return min(max(self.lam * pair.phi, low), high)


@HARMONIZERS.register("ghpp_rotation")
@dataclass(frozen=True, kw_only=True)
class PlainRotation(RotatingHarmonizer):
    """GH++ as the exact rotation by ``β = λφ``: orthogonal rows, but the sum may oppose the shorter one.

    The formulas of ``ghpp`` without the clip; ``s < s_min`` -> ``gh``. Kept for comparison.

    Source:
        Huang et al. 2024 (arXiv 2408.00288), section 3.5, Eq. 33 and 36-38.

    Differs from the source:
        The vector AE of Eq. 34 is not along g1; the rotation is done exactly.
    """

    name = "ghpp_rotation"
    summary = "rotate both rows until orthogonal by λφ and (1-λ)φ, unclipped; may conflict"
    guarantee = "no"
    source = f"{_SOURCE}, Eq. 33 and 36-38, exact"

    def beta(self, pair: Conflict) -> float:
        """λφ."""
        return self.lam * pair.phi


@HARMONIZERS.register("ghpp_paper")
@dataclass(frozen=True, kw_only=True)
class PublishedRotation(TwoRowHarmonizer):
    """GH++ exactly as printed in Eq. 43, to reproduce published numbers. Do not use it for anything else.

    ``c < 0``: ``tau1 = 1 + 2 sin(λφ/2)``, ``tau2 = 1 - 2 sin((1-λ)φ/2)``, else (1, 1).

    Warning:
        The formula only rescales the two rows: the angle between them stays obtuse for every λ, and the direction
        opposes a row about as often as the plain sum does. tau2 is negative when ``(1-λ)φ > π/3``. Swapping the
        rows and λ -> 1-λ does not swap tau. Counterexample: ``g1 = (1, 0)``, ``g2 = (-3, 1)``, λ = 0 gives
        ``tau2 = -0.17`` and ``direction · g2 = -4.7``. Use ``ghpp``.

    Source:
        Huang et al. 2024 (arXiv 2408.00288), Eq. 43, with its second line read as tau2.
    """

    lam: float = 0.5
    """λ in [0, 1]."""

    name = "ghpp_paper"
    summary = "GH++ as printed (Eq. 43): rescales only, may conflict; for comparison"
    guarantee = "no"
    source = f"{_SOURCE}, Eq. 43 as printed"

    def __post_init__(self) -> None:
        check_number(self.name, "lam", self.lam, 0.0, 1.0)

    def mix(self, pair: Conflict) -> RowMixing:
        """Each row times its own factor."""
        tau1 = 1.0 + 2.0 * math.sin(self.lam * pair.phi / 2.0)
        tau2 = 1.0 - 2.0 * math.sin((1.0 - self.lam) * pair.phi / 2.0)
        return RowMixing(np.diag([tau1, tau2]))
