"""Positions dealt by class: parts, subsets, validation, tails."""

from __future__ import annotations

import numpy as np
import pytest

from difc_ray.data.partition import equal_parts, long_tailed, subset, tail_counts, validation_out_of


def labels(counts: list[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def counted(found: np.ndarray, classes: int) -> list[int]:
    return [int((found == number).sum()) for number in range(classes)]


@pytest.mark.parametrize("counts", [[40, 40, 40], [101, 7, 34], [5, 0, 3]])
def test_parts_hold_everything_once_and_every_class_evenly(counts: list[int]) -> None:
    given = labels(counts)
    parts = equal_parts(given, 4, np.random.default_rng(1))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(given)))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)
    for number, count in enumerate(counts):
        sizes = [int((given[part] == number).sum()) for part in parts]
        assert {count // 4, -(-count // 4)} >= set(sizes)


def test_validation_is_a_ninth_of_each_class() -> None:
    given = labels([90, 180, 45])
    inside = np.flatnonzero(np.arange(len(given)) % 3 > 0)  # of which alone something may be taken
    train, val = validation_out_of(given, inside, np.random.default_rng(2))
    assert sorted([*train.tolist(), *val.tolist()]) == inside.tolist()
    assert len(val) == round(len(inside) / 9)
    for number in range(3):
        assert abs((given[val] == number).sum() - (given[inside] == number).sum() / 9) <= 1


@pytest.mark.parametrize(("count", "expected"), [(60, [40, 20]), (3, [2, 1]), (120, [80, 40]), (500, [80, 40])])
def test_subsets_keep_the_shares(count: int, expected: list[int]) -> None:
    given = labels([80, 40])
    chosen = subset(given, count, np.random.default_rng(3))
    assert counted(given[chosen], 2) == expected
    assert len(set(chosen.tolist())) == len(chosen)


def test_the_tail_by_hand() -> None:
    """μ = 0.01^(1/4), so 1000, 316.2, 100, 31.6, 10."""
    assert tail_counts(1000, 0.01, np.arange(5)).tolist() == [1000, 316, 100, 32, 10]
    assert tail_counts(1000, 0.01, np.array([4, 0, 1, 3, 2])).tolist() == [10, 1000, 316, 32, 100]
    assert tail_counts(20, 0.01, np.arange(3)).tolist() == [20, 2, 1]


def test_thinning_is_nested_and_exact() -> None:
    given = labels([50, 60, 55])
    inside = np.arange(len(given), dtype=np.int64)
    ranks = np.array([2, 0, 1])
    kept = {
        ratio: long_tailed(given, inside, ratio, ranks, np.random.default_rng(4)) for ratio in (1.0, 0.5, 0.1, 0.01)
    }
    assert kept[1.0].tolist() == inside.tolist()
    assert counted(given[kept[0.1]], 3) == [5, 50, 16]  # √0.1 · 50 = 15.8
    assert counted(given[kept[0.01]], 3) == [1, 50, 5]  # 0.5 rounds to 0, one stays
    assert set(kept[0.01].tolist()) <= set(kept[0.1].tolist()) <= set(kept[0.5].tolist())
