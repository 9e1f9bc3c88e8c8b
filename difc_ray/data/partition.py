"""Positions dealt into parts: validation out of train, disjoint parts, small subsets, long tails; always by class.

Shape suffixes: M examples, C classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from difc_ray.data.splits import FRACTIONS, stratified_splits

Positions = Int[np.ndarray, " _"]


def validation_out_of(
    labels_M: Int[np.ndarray, " M"], train: Positions, rng: np.random.Generator
) -> tuple[Positions, Positions]:
    """A given train split without its validation examples, and these: in the usual proportion, every class its share.

    Args:
        labels_M: class numbers of all examples.
        train: sorted positions of the given train split.
        rng: source of the draw.

    Returns:
        Sorted positions of train and of val.
    """
    share = FRACTIONS[1] / (FRACTIONS[0] + FRACTIONS[1])
    drawn = stratified_splits(labels_M[train], (1 - share, share, 0.0), rng)
    return train[drawn["train"]], train[drawn["val"]]


def subset(labels_M: Int[np.ndarray, " M"], count: int, rng: np.random.Generator) -> Positions:
    """``count`` of the positions, every class with its share; sorted. All of them where there are no more."""
    if count >= len(labels_M):
        return np.arange(len(labels_M), dtype=np.int64)
    share = count / len(labels_M)
    return stratified_splits(labels_M, (1 - share, share, 0.0), rng)["val"]


def equal_parts(labels_M: Int[np.ndarray, " M"], count: int, rng: np.random.Generator) -> list[Positions]:
    """Disjoint parts that hold every position once; the numbers of a class differ by at most one between parts.

    Examples in order of class, at random inside a class, are dealt in turn.
    """
    shuffled = rng.permutation(len(labels_M))
    by_class = shuffled[np.argsort(labels_M[shuffled], kind="stable")]
    return [np.sort(by_class[number::count]).astype(np.int64) for number in range(count)]


def tail_counts(most: int, ratio: float, ranks_C: Int[np.ndarray, " C"]) -> Int[np.ndarray, " C"]:
    """``n_c = most · ratio^(rank_c / (C − 1))``, rounded, at least 1: an exponential profile.

    Args:
        most: examples of the most frequent class.
        ratio: of the rarest class to the most frequent, in (0, 1].
        ranks_C: a permutation of 0 (most frequent) to C − 1 (rarest).

    Source: Cao et al. 2019 (LDAM), long-tailed CIFAR, n_i μ^i with μ = ratio^(1 / (C − 1)).
    Differs from the source: rounded where it truncates, and no class is left without an example.

    >>> tail_counts(100, 0.01, np.array([0, 1, 2])).tolist()
    [100, 10, 1]
    """
    exact = most * ratio ** (ranks_C / max(len(ranks_C) - 1, 1))
    return np.maximum(np.rint(exact), 1).astype(np.int64)


def long_tailed(
    labels_M: Int[np.ndarray, " M"], positions: Positions, ratio: float, ranks_C: Int[np.ndarray, " C"],
    rng: np.random.Generator,
) -> Positions:  # fmt: skip
    """Those of the positions that stay when classes get the profile of :func:`tail_counts`; sorted.

    ``most`` is the size of the smallest class, so that no class has too few. From a class the first in one random order
    stay: what a smaller ratio keeps is part of what a larger one keeps.

    Args:
        labels_M: class numbers of all examples.
        positions: of which some are to stay.
        ratio: in (0, 1]; 1 keeps all.
        ranks_C: rank of each class, 0 the most frequent.
        rng: source of the order.
    """
    if ratio == 1:
        return positions
    shuffled = rng.permutation(positions)
    labels = labels_M[shuffled]
    counts_C = tail_counts(int(np.bincount(labels, minlength=len(ranks_C)).min()), ratio, ranks_C)
    kept = [shuffled[labels == number][:count] for number, count in enumerate(counts_C.tolist())]
    return np.sort(np.concatenate(kept))
