"""Rows of gradients with stated guarantees, and the degenerate ones that every rule must survive.

Each sampler returns (n, d) float64 rows; ``gram_of`` makes the Gram matrix that a rule sees.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float64]

SCALES = (1e-12, 1e-6, 1.0, 1e6, 1e12)
"""Factors on all rows at once."""


def gram_of(rows: Rows) -> Rows:
    """Inner products of the rows."""
    return rows @ rows.T


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def gaussian_rows(rng: np.random.Generator, n: int, d: int, log_sigma: float = 0.0) -> Rows:
    """Directions uniform on the sphere, log-normal lengths. No guarantee on conflict; full rank if n <= d."""
    rows = rng.standard_normal((n, d))
    return rows * np.exp(log_sigma * rng.standard_normal((n, 1)))


def pair_at(angle: float, a: float, b: float, rng: np.random.Generator | None = None, d: int = 2) -> Rows:
    """Two rows of lengths a and b at exactly this angle (radians), in a random plane of R^d if rng is given."""
    rows = np.array([[a, 0.0], [b * np.cos(angle), b * np.sin(angle)]])
    if rng is None:
        return rows
    basis, _ = np.linalg.qr(rng.standard_normal((d, 2)))
    return rows @ basis.T


def conflicting_pair(rng: np.random.Generator, d: int = 5, max_ratio: float = 1e3, min_sine: float = 0.06) -> Rows:
    """Two rows with a negative inner product; the sine of their angle is at least ``min_sine``."""
    angle = rng.uniform(np.pi / 2 + 1e-3, np.pi - np.arcsin(min_sine))
    ratio = max_ratio ** rng.uniform(-1, 1)
    return pair_at(angle, np.sqrt(ratio), 1 / np.sqrt(ratio), rng, d)


def agreeing_rows(rng: np.random.Generator, n: int, d: int) -> Rows:
    """Rows with no negative inner product: all entries are non-negative."""
    return np.abs(rng.standard_normal((n, d)))


def improvable_rows(rng: np.random.Generator, n: int, d: int) -> Rows:
    """A direction u exists with ``row · u > 0`` for every row, however much the rows conflict with each other."""
    rows = rng.standard_normal((n, d))
    rows[:, 0] = np.abs(rows[:, 0]) + 0.1
    return rows


def stationary_rows(rng: np.random.Generator, n: int, d: int) -> Rows:
    """Positive weights v exist with ``v @ rows = 0``: no direction improves all rows (n >= 2)."""
    rows = rng.standard_normal((n, d))
    v = rng.uniform(0.5, 2.0, n)
    rows[-1] = -(v[:-1] @ rows[:-1]) / v[-1]
    return rows


def low_rank_rows(rng: np.random.Generator, n: int, d: int, rank: int) -> Rows:
    """Rows that span only ``rank`` dimensions."""
    return rng.standard_normal((n, rank)) @ rng.standard_normal((rank, d))


def degenerate_rows(n: int, d: int = 4) -> dict[str, Rows]:
    """Rows at the edges of what a rule can meet, by name; n rows each."""
    rng = generator(n)
    base = rng.standard_normal((n, d))
    first = np.tile(base[:1], (n, 1))
    signs = np.where(np.arange(n) % 2 == 0, 1.0, -1.0)[:, None]
    steps = np.arange(1, n + 1)[:, None].astype(np.float64)
    one_zero, one_tiny, one_huge = base.copy(), base.copy(), base.copy()
    one_zero[0] = 0.0
    one_tiny[0] *= 1e-25
    one_huge[-1] *= 1e18
    return {
        "zero row": one_zero,
        "all zero": np.zeros((n, d)),
        "identical": first,
        "opposed": first * signs,
        "opposed, other lengths": first * signs * steps,
        "collinear": first * steps,
        "orthogonal": np.eye(n, max(n, d)),
        "tiny row": one_tiny,
        "huge row": one_huge,
        "ratio 1e6": base * np.logspace(0, 6, n)[:, None],
        "ratio 1e8": base * np.logspace(8, 0, n)[:, None],
        "underflow": base * 1e-170,
        "nearly opposed": first * signs + 1e-9 * base,
        "one dimension": rng.standard_normal((n, 1)),
    }


def options_of(rule: str, **overrides: Any) -> dict[str, Any]:
    """Options for a rule, leaving out those that it does not have."""
    from difc_ray.harmonizers import HARMONIZERS

    known = HARMONIZERS.get(rule).__dataclass_fields__
    return {name: value for name, value in overrides.items() if name in known}


def metric_of(d: int) -> Rows:
    """The diagonal of a metric M for d parameters: entries in (0, 1]."""
    return np.asarray(1.0 / (1.0 + generator(d).exponential(size=d)))


def seen_by(rule: str, rows: Rows) -> Rows:
    """The rows that a rule is given: these, and behind them M times these for the rules that want a metric."""
    from difc_ray.harmonizers import HARMONIZERS

    return np.vstack([rows, rows * metric_of(rows.shape[1])]) if HARMONIZERS.get(rule).needs_metric else rows


def extras_of(rule: str, n: int) -> dict[str, Any]:
    """What a rule wants besides the Gram, for n rows; the same at every call."""
    from difc_ray.harmonizers import HARMONIZERS

    losses = {"losses": np.linspace(1.0, 2.0, n)} if HARMONIZERS.get(rule).needs_losses else {}
    return {"rng": generator(0), **losses}
