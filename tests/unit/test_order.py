"""Orders of the examples: shares exact in every block, pure functions of the place."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from difc_ray.data import BalancedOrder, NaturalOrder, class_shares
from difc_ray.data.order import apportioned

LABELS = np.repeat([0, 1, 2], [70, 20, 10])
TRAIN = np.arange(1000, 1100)


def balanced(shares: list[float], seed: int = 3, name: str = "d") -> BalancedOrder:
    return BalancedOrder(TRAIN, LABELS, np.array(shares, dtype=np.float64), seed, name)


@pytest.mark.parametrize("order", [NaturalOrder(TRAIN, 3, "d"), balanced([1, 1, 1])], ids=["natural", "balanced"])
def test_any_piece_by_itself(order: NaturalOrder | BalancedOrder) -> None:
    whole = order.positions(0, 1000).tolist()
    rng = np.random.default_rng(0)
    for start, length in zip(rng.integers(0, 900, 50), rng.integers(0, 100, 50), strict=True):
        assert order.positions(int(start), int(start + length)).tolist() == whole[start : start + length]


def test_every_block_has_the_shares() -> None:
    order = balanced([1, 1, 1])
    for block in range(5):
        counts = Counter((LABELS[order.positions(100 * block, 100 * (block + 1)) - 1000]).tolist())
        assert counts == {0: 34, 1: 33, 2: 33}


def test_inside_a_class_all_come_before_any_comes_again() -> None:
    walked = balanced([1, 2, 5]).positions(0, 4000) - 1000
    for number, size in enumerate([70, 20, 10]):
        mine = walked[LABELS[walked] == number]
        for start in range(0, len(mine) - size, size):
            assert sorted(mine[start : start + size].tolist()) == np.flatnonzero(number == LABELS).tolist()


def test_places_are_random_and_depend_on_seed_and_name() -> None:
    first = balanced([1, 1, 1]).positions(0, 100).tolist()
    assert balanced([1, 1, 1], seed=4).positions(0, 100).tolist() != first
    assert balanced([1, 1, 1], name="e").positions(0, 100).tolist() != first
    classes = LABELS[np.array(first) - 1000]
    assert len(set(classes[:12].tolist())) == 3  # not sorted by class


def test_a_class_that_is_not_here_gets_no_place() -> None:
    order = BalancedOrder(TRAIN, LABELS, np.array([1.0, 1.0, 1.0, 1.0]), 0, "d")
    assert Counter(LABELS[order.positions(0, 100) - 1000].tolist()) == {0: 34, 1: 33, 2: 33}


def test_apportioned_adds_up_and_is_nearest() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        shares, total = rng.random(7), int(rng.integers(1, 300))
        found = apportioned(shares, total)
        assert found.sum() == total
        assert (np.abs(found - shares / shares.sum() * total) < 1).all()


def test_shares_of_the_samplers() -> None:
    here, everywhere = np.array([10, 30, 0]), np.array([100, 30, 50])
    assert class_shares("domain_class_balanced", here, everywhere).tolist() == [1, 1, 0]
    assert class_shares("class_balanced", here, everywhere).tolist() == [0.1, 1.0, 0.0]


def test_class_balanced_domains_are_balanced_together() -> None:
    """Domains in proportion to their sizes, each with its shares: every class as often as any other."""
    counts = np.array([[90, 10], [30, 70]])
    together = counts.sum(axis=0)
    drawn = np.zeros(2)
    for here in counts:
        drawn += class_shares("class_balanced", here, together)  # the expected draws, before each domain is scaled
    assert drawn.tolist() == [1, 1]
