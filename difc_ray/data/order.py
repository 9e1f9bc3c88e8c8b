"""In which order training meets the examples of a domain: endless sequences of positions, as pure functions.

Shape suffixes: M examples of the train split, C classes.

An order answers for any piece of its sequence by itself, so that a step can be repeated, resumed or made in another
process without the steps before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from difc_ray.determinism import generator

SAMPLERS: Final = ("natural", "class_balanced", "domain_class_balanced")
"""What the key `sampler` may be; :func:`class_shares` says what they mean."""

_KEPT: Final = 16


class Order(ABC):
    """An endless sequence of positions."""

    @abstractmethod
    def positions(self, start: int, stop: int) -> Int[np.ndarray, " _"]:
        """The entries from ``start`` (>= 0) up to and without ``stop``; a fresh array."""


class _Permutations:
    """Random permutations of some items, end to end; the latest few are kept.

    Args:
        items: at least one.
        draw: number of a permutation -> its generator.
    """

    def __init__(self, items: Int[np.ndarray, " M"], draw: Callable[[int], np.random.Generator]) -> None:
        self.items, self._draw = items, draw
        self._kept: dict[int, Int[np.ndarray, " M"]] = {}

    def between(self, start: int, stop: int) -> Int[np.ndarray, " _"]:
        """Entries of the sequence."""
        parts: list[Int[np.ndarray, " _"]] = []
        while start < stop:
            number, offset = divmod(start, len(self.items))
            parts.append(self._permutation(number)[offset : offset + stop - start])
            start += len(parts[-1])
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _permutation(self, number: int) -> Int[np.ndarray, " M"]:
        if number not in self._kept:
            while len(self._kept) >= _KEPT:
                self._kept.pop(next(iter(self._kept)))
            self._kept[number] = self.items[self._draw(number).permutation(len(self.items))]
        return self._kept[number]


class NaturalOrder(Order):
    """One random permutation of the train split per epoch: every example once per epoch.

    Args:
        train: (M,) positions of the train split, M >= 1.
        seed: seed of the run.
        name: name of the domain.
    """

    def __init__(self, train: Int[np.ndarray, " M"], seed: int, name: str) -> None:
        assert len(train) > 0, f"domain `{name}` has no training examples"
        self._epochs = _Permutations(train, lambda epoch: generator(seed, "epoch", name, epoch))

    def positions(self, start: int, stop: int) -> Int[np.ndarray, " _"]:
        """Entries of the permutations laid end to end."""
        return self._epochs.between(start, stop)


class BalancedOrder(Order):
    """Every class with a given share of the examples; inside a class every example equally often.

    The sequence is made of blocks of M entries. In each, every class has the same number of places (its share of M,
    rounded by largest remainder, so that the numbers add up to M), at random positions of the block. The places of a
    class are filled by permutations of its examples, laid end to end through all blocks. So the shares are exact in
    every block, and no example of a class comes a second time before all others of it have come once.

    Args:
        train: (M,) positions of the train split, M >= 1.
        labels: (M,) their classes.
        shares_C: share of each class, >= 0, at least one of them > 0; scaled to sum 1. A class without examples here
            gets none.
        seed: seed of the run.
        name: name of the domain.
    """

    def __init__(
        self, train: Int[np.ndarray, " M"], labels: Int[np.ndarray, " M"], shares_C: Float[np.ndarray, " C"],
        seed: int, name: str,
    ) -> None:  # fmt: skip
        assert len(train) > 0, f"domain `{name}` has no training examples"
        present = np.bincount(labels, minlength=len(shares_C)) > 0
        self._places_C = apportioned(np.where(present, shares_C, 0.0), len(train))
        self._length = len(train)
        places = np.repeat(np.arange(len(shares_C), dtype=np.int64), self._places_C)
        self._blocks = _Permutations(places, lambda block: generator(seed, "places", name, block))
        self._classes = {
            number: _Permutations(train[labels == number], _drawer(seed, f"class-{number}", name))
            for number in np.flatnonzero(self._places_C).tolist()
        }

    def positions(self, start: int, stop: int) -> Int[np.ndarray, " _"]:
        """Entries of the blocks laid end to end."""
        positions = np.empty(max(0, stop - start), dtype=np.int64)
        filled = 0
        while start + filled < stop:
            block, offset = divmod(start + filled, self._length)
            until = min(self._length, offset + stop - start - filled)
            positions[filled : filled + until - offset] = self._piece(block, offset, until)
            filled += until - offset
        return positions

    def _piece(self, block: int, offset: int, until: int) -> Int[np.ndarray, " _"]:
        """Entries of one block."""
        places = self._blocks.between(block * self._length, (block + 1) * self._length)
        piece = np.empty(until - offset, dtype=np.int64)
        for number, examples in self._classes.items():
            mine = np.flatnonzero(places[offset:until] == number)
            before = block * int(self._places_C[number]) + int((places[:offset] == number).sum())
            piece[mine] = examples.between(before, before + len(mine))
        return piece


def _drawer(seed: int, purpose: str, name: str) -> Callable[[int], np.random.Generator]:
    return lambda number: generator(seed, purpose, name, number)


def apportioned(shares: Float[np.ndarray, " C"], total: int) -> Int[np.ndarray, " C"]:
    """Whole numbers in proportion to shares that sum to ``total``, by largest remainder; ties go to the first.

    >>> apportioned(np.array([1.0, 1.0, 1.0]), 10).tolist()
    [4, 3, 3]
    """
    assert shares.min() >= 0, shares
    assert shares.sum() > 0, shares
    exact = shares / shares.sum() * total
    floors: Int[np.ndarray, " C"] = np.floor(exact).astype(np.int64)
    order = np.argsort(floors - exact, kind="stable")
    floors[order[: total - int(floors.sum())]] += 1
    return floors


def class_shares(
    sampler: str, counts_C: Int[np.ndarray, " C"], all_counts_C: Int[np.ndarray, " C"]
) -> Float[np.ndarray, " C"]:
    """The share of each class in the batches of a domain, up to a common factor.

    ``domain_class_balanced``: every class that the domain has counts the same. ``class_balanced``: in proportion to
    n_c / N_c, so that an example is drawn the more often the rarer its class is in all sources together; a class that
    is rare here and frequent elsewhere is not pushed up here.

    Args:
        sampler: one of :data:`SAMPLERS` but ``natural``.
        counts_C: n_c, training examples of each class in this domain.
        all_counts_C: N_c, those of all sources together.
    """
    if sampler == "domain_class_balanced":
        return (counts_C > 0).astype(np.float64)
    assert sampler == "class_balanced", sampler
    return np.asarray(counts_C / np.maximum(all_counts_C, 1))
