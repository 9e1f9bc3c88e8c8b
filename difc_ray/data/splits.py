"""Train, validation and test: disjoint, exact in size, every class with its share.

Shape suffix: M examples of a domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np
from jaxtyping import Int

Split = Literal["train", "val", "test"]

SPLITS: Final[tuple[Split, ...]] = ("train", "val", "test")
FRACTIONS: Final = (0.8, 0.1, 0.1)
"""Default shares of train, val and test."""


def stratified_splits(
    labels_M: Int[np.ndarray, " M"], fractions: Sequence[float], rng: np.random.Generator
) -> dict[Split, Int[np.ndarray, " _"]]:
    """Disjoint index arrays for train, val and test in which every class keeps its share.

    Systematic sampling: the examples are put in order of class, at random inside a class, and every n-th of them is
    held out; val and test are drawn from the held-out ones in the same way. So the sizes are exact,
    ``round(fraction * M)``, and no class differs from its exact share by more than one example, two for test.

    Args:
        labels_M: class numbers.
        fractions: shares of train, val, test; non-negative, sum 1.
        rng: source of the order inside a class.

    Returns:
        Sorted indices by split; together they are ``range(M)``.
    """
    assert len(fractions) == 3, fractions
    assert min(fractions) >= 0, fractions
    assert abs(sum(fractions) - 1) < 1e-9, fractions
    size = len(labels_M)
    shuffled = rng.permutation(size)
    by_class = shuffled[np.argsort(labels_M[shuffled], kind="stable")]
    n_val, n_test = round(fractions[1] * size), round(fractions[2] * size)
    n_rest = min(n_val + n_test, size)
    rest = by_class[_spread(n_rest, size)]
    val = rest[_spread(min(n_val, n_rest), n_rest)]
    test = np.setdiff1d(rest, val)
    return {"train": np.setdiff1d(by_class, rest), "val": np.sort(val), "test": test}


def _spread(count: int, size: int) -> Int[np.ndarray, " _"]:
    """``count`` distinct positions, evenly spaced in ``range(size)``."""
    return ((2 * np.arange(count, dtype=np.int64) + 1) * size) // (2 * max(count, 1))
