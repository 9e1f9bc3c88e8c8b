"""Named properties of harmonizers, as asserts. Each recomputes in vector space what the rule did in Gram space."""

from __future__ import annotations

from typing import Any

import numpy as np

from difc_ray.harmonizers import Harmonization, harmonize
from tests.samplers import Rows, extras_of, generator, gram_of, seen_by


def assert_well_formed(result: Harmonization, n: int) -> None:
    """Finite float64 weights, one per row; finite float diagnostics; state of arrays."""
    assert result.weights.shape == (n,)
    assert result.weights.dtype == np.float64
    assert np.isfinite(result.weights).all(), result
    assert all(isinstance(value, float) and np.isfinite(value) for value in result.diagnostics.values()), result
    assert all(isinstance(value, np.ndarray) for value in result.state.values())


def assert_non_conflicting(
    rows: Rows, weights: np.ndarray, atol: float = 1e-9, negligible: float = 1e-12, case: str = ""
) -> None:
    """The direction, made of the rows themselves, opposes none of them.

    ``atol`` is relative to the length of the row times the sum of the lengths that went into the direction. Rows
    shorter than ``negligible`` times the longest, or than 1e-150, are zero rows by definition and not looked at.
    """
    lengths = np.linalg.norm(rows, axis=1)
    margins = rows @ (weights @ rows)
    opposed = margins < -atol * lengths * (np.abs(weights) @ lengths)
    assert not opposed[lengths > max(1e-150, negligible * lengths.max())].any(), (case, margins, weights)


def assert_base_weights(rule: str, rows: Rows, base: np.ndarray, **options: Any) -> None:
    """The answer is the base weights, bit for bit."""
    np.testing.assert_array_equal(harmonize(gram_of(rows), rule, weights=base, **options).weights, base)


def assert_scale_invariant(rule: str, rows: Rows, factor: float, rtol: float = 1e-9, **options: Any) -> None:
    """One factor on all rows leaves the weights alone."""
    plain = harmonize(gram_of(rows), rule, **options).weights
    scaled = harmonize(gram_of(rows * factor), rule, **options).weights
    np.testing.assert_allclose(scaled, plain, rtol=rtol)


def assert_acts_on_scaled_rows(rule: str, rows: Rows, base: np.ndarray, rtol: float = 1e-12, **options: Any) -> None:
    """Base weights w give the direction that the rows ``w_i row_i`` give with base weights 1."""
    direction = harmonize(gram_of(rows), rule, weights=base, **options).weights @ rows
    scaled = rows * base[:, None]
    ones = harmonize(gram_of(scaled), rule, weights=np.ones(len(base)), **options)
    expected = ones.weights @ scaled
    np.testing.assert_allclose(direction, expected, rtol=rtol, atol=rtol * np.abs(ones.weights) @ np.abs(scaled).sum(1))


def assert_permutation_equivariant(
    rule: str,
    rows: Rows,
    order: list[int],
    *,
    options: dict[str, Any],
    permuted_options: dict[str, Any],
    rtol: float = 1e-9,
) -> None:
    """Rows in another order get the same weights in that order."""
    plain = harmonize(gram_of(rows), rule, **options).weights
    permuted = harmonize(gram_of(rows[order]), rule, **permuted_options).weights
    np.testing.assert_allclose(permuted, plain[order], rtol=rtol)


def assert_pure(rule: str, rows: Rows, **options: Any) -> None:
    """The same bits twice, and the arguments are left as they were."""
    gram, base = gram_of(rows), np.linspace(0.5, 1.5, len(rows))
    kept = gram.copy(), base.copy()
    first = harmonize(gram, rule, weights=base, rng=generator(0), **options)
    first.weights[:] += 0.0
    second = harmonize(gram, rule, weights=base, rng=generator(0), **options)
    np.testing.assert_array_equal(first.weights, second.weights)
    assert first.diagnostics == second.diagnostics
    np.testing.assert_array_equal(gram, kept[0])
    np.testing.assert_array_equal(base, kept[1])


def direction_of(rule: str, rows: Rows, **options: Any) -> Rows:
    """The direction of any rule on these rows, with whatever else it wants."""
    seen = seen_by(rule, rows)
    return harmonize(gram_of(seen), rule, **extras_of(rule, len(rows)), **options).weights @ seen


def assert_same_direction(left: Rows, right: Rows, scale: float, rtol: float = 1e-9) -> None:
    """Two directions are equal up to rounding of what went into them."""
    np.testing.assert_allclose(left, right, rtol=rtol, atol=rtol * scale)


def assert_direction_permutation_invariant(rule: str, rows: Rows, order: list[int], rtol: float = 1e-8) -> None:
    """Rows in another order make the same direction."""
    plain, permuted = direction_of(rule, rows), direction_of(rule, rows[order])
    assert_same_direction(plain, permuted, float(np.linalg.norm(plain)), rtol)


def assert_linear_under_scaling(rule: str, rows: Rows, first: Rows, second: Rows, a: float, b: float) -> None:
    """The direction is linear in positive factors on the rows: those of ``a first + b second`` add up."""
    together = direction_of(rule, rows * (a * first + b * second)[:, None])
    apart = a * direction_of(rule, rows * first[:, None]) + b * direction_of(rule, rows * second[:, None])
    assert_same_direction(together, apart, float(np.linalg.norm(rows, axis=1).sum()))
