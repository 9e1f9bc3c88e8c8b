"""Statistics of a comparison against enumeration, SciPy and definitions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats

from difc_ray.comparison.statistics import bootstrap_interval, correlation, paired_difference, ranking


def by_seed(*values: float, target: str = "t") -> dict[tuple[str, int], float]:
    return {(target, seed): value for seed, value in enumerate(values)}


def test_the_interval_is_that_of_all_resamples() -> None:
    values = [0.013, -0.004, 0.021, 0.008]
    everything = np.array([np.mean(draw) for draw in itertools.product(values, repeat=4)])  # 256 equally likely means
    low, high = bootstrap_interval(values, level=0.8, resamples=200_000)
    np.testing.assert_allclose((low, high), np.quantile(everything, [0.1, 0.9]), atol=3e-4)


def test_the_interval_agrees_with_scipy_and_does_not_depend_on_chance_or_order() -> None:
    values = list(np.random.default_rng(5).normal(0.02, 0.01, size=12))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=50_000, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_interval(values)
    np.testing.assert_allclose(ours, (theirs.low, theirs.high), atol=2e-4)
    assert bootstrap_interval(values[::-1]) == ours


def test_differences_are_paired_by_target_and_seed() -> None:
    level = [0.50, 0.70, 0.90, 0.55, 0.80]  # seeds differ by far more than the methods
    ours = {("t", seed): value + 0.01 for seed, value in zip((2, 0, 1, 4, 3), level, strict=True)}
    others = {("t", seed): value for seed, value in zip((2, 0, 1, 4, 3), level, strict=True)}
    found = paired_difference(ours, {**others, ("t", 9): 0.0, ("u", 0): 0.0})
    assert found.n == 5
    assert found.mean == pytest.approx(0.01)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01))
    assert found.above
    assert not found.tied
    assert paired_difference(others, ours).mean == pytest.approx(-0.01)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_too_few_pairs_have_no_interval_and_decide_nothing(n: int) -> None:
    """However clear they look: n coins show one side once in 2^(n-1) throws."""
    few = paired_difference(by_seed(*[0.9] * n), by_seed(*[0.5] * n))
    assert (few.n, few.low, few.high, few.tied, few.above) == (n, None, None, True, False)
    assert few.mean == pytest.approx(0.4)
    assert paired_difference(by_seed(*[0.9] * 5), by_seed(*[0.5] * 5)).above


def test_without_a_pair_there_is_no_difference() -> None:
    none = paired_difference(by_seed(0.9), by_seed(0.5, target="u"))
    assert (none.n, none.mean, none.tied) == (0, None, True)
    assert paired_difference(by_seed(math.nan, 0.9), by_seed(0.5, 0.5)).n == 1


def test_places_are_lost_to_those_that_are_ahead_and_ties_are_not_transitive() -> None:
    methods = {
        "far": by_seed(0.90, 0.91, 0.92, 0.90, 0.91),
        "upper": by_seed(0.60, 0.62, 0.61, 0.60, 0.62),
        "middle": by_seed(0.595, 0.6, 0.615, 0.601, 0.619),  # the seeds do not agree about `upper`
        "lower": by_seed(0.59, 0.601, 0.60, 0.604, 0.61),
    }
    ranks = ranking(methods)
    assert {name: rank.place for name, rank in ranks.items()} == {"far": 1, "upper": 2, "middle": 2, "lower": 3}
    assert ranks["far"].tied == ()
    assert ranks["middle"].tied == ("upper", "lower")
    assert ranks["upper"].tied == ("middle",)


@pytest.mark.parametrize("n", [1, 4])
def test_a_ranking_of_few_seeds_ties_everybody(n: int) -> None:
    ranks = ranking({"a": by_seed(*[0.9] * n), "b": by_seed(*[0.1] * n)})
    assert [(rank.place, rank.tied) for rank in ranks.values()] == [(1, ("b",)), (1, ("a",))]


def test_correlations_are_scipys() -> None:
    x = [0.1, 0.4, 0.4, 0.2, 0.9, 0.7]
    y = [0.61, 0.55, 0.57, 0.57, 0.4, 0.52]
    found = correlation(x, y)
    assert found.n == 6
    assert found.pearson == pytest.approx(scipy.stats.pearsonr(x, y).statistic)
    assert found.spearman == pytest.approx(scipy.stats.spearmanr(x, y).statistic)
    assert correlation([1.0, 1.0, 1.0], [0.1, 0.2, 0.3]).pearson is None
