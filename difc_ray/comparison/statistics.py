"""Statistics of few paired runs: differences with bootstrap intervals, ranks that admit ties, correlations.

Shape suffixes: N pairs, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
LEVEL: Final = 0.95
FEW_PAIRS: Final = 5
"""Below so many pairs there is no interval and no verdict: a percentile interval of two values is the two values, and
it leaves out zero whenever all differences have one sign, which chance alone does once in two (two pairs), once in four
(three) or once in eight times (four)."""
_SEED: Final = 20210504
"""Of the bootstrap's generator: the same runs give the same interval."""

Values = Mapping[tuple[str, int], float]
"""(target, seed) -> a figure of the run; what pairs runs of two methods."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of paired differences.

    Args:
        n: number of pairs.
        mean: mean difference; None without a pair.
        low: lower end of the 95 % interval; None below :data:`FEW_PAIRS` pairs.
        high: upper end.
    """

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def decides(self) -> bool:
        """Whether there are enough pairs to say anything."""
        return self.low is not None

    @property
    def above(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low is not None and self.low > 0

    @property
    def tied(self) -> bool:
        """Whether the interval includes zero, or there is none: the two cannot be told apart."""
        return self.low is None or self.high is None or self.low <= 0 <= self.high


@dataclass(frozen=True, kw_only=True)
class Rank:
    """A place in a ranking.

    Args:
        place: 1 + number of methods whose paired difference to this one lies above zero.
        tied: methods that cannot be told apart from this one.
    """

    place: int
    tied: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Correlation of two figures over runs; a coefficient is None where one figure is constant.

    Args:
        n: number of runs.
        pearson: of the values, in [-1, 1].
        spearman: of their ranks, in [-1, 1].
    """

    n: int
    pearson: float | None
    spearman: float | None


def bootstrap_interval(
    values: Sequence[float], *, level: float = LEVEL, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of the mean: n values are drawn with replacement, many times.

    With few values it is too narrow (its ends cannot leave the range of the values), and it is exact for none.

    Args:
        values: N finite values, N >= 2.
        level: share of the resampled means inside, in (0, 1).
        resamples: R, number of resamples.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, section 13.3.
    """
    sample_N = np.sort(np.asarray(values, dtype=np.float64))  # the order of the runs does not matter
    assert len(sample_N) >= 2, "an interval needs two values"
    rng = np.random.default_rng(_SEED)
    means_R = sample_N[rng.integers(len(sample_N), size=(resamples, len(sample_N)))].mean(axis=1)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def paired_difference(ours: Values, others: Values) -> Difference:
    """Mean of ours minus others over runs with the same target and seed, with its bootstrap interval.

    Runs without a partner, or without a finite figure, count nowhere.
    """
    keys = sorted(key for key in ours.keys() & others.keys() if math.isfinite(ours[key] - others[key]))
    differences = [ours[key] - others[key] for key in keys]
    if not differences:
        return Difference(n=0)
    mean = math.fsum(differences) / len(differences)
    if len(differences) < FEW_PAIRS:
        return Difference(n=len(differences), mean=mean)
    low, high = bootstrap_interval(differences)
    return Difference(n=len(differences), mean=mean, low=low, high=high)


def ranking(methods: Mapping[str, Values]) -> dict[str, Rank]:
    """The place of each method, from the paired differences between all of them.

    Methods with an interval that includes zero are tied. "Tied with" is not transitive: the first may be tied with the
    second, the second with the third, and the first still be ahead of the third.
    """
    ranks = {}
    for name, values in methods.items():
        over = {other: paired_difference(methods[other], values) for other in methods if other != name}
        ranks[name] = Rank(
            place=1 + sum(difference.above for difference in over.values()),
            tied=tuple(other for other, difference in over.items() if difference.tied),
        )
    return ranks


def correlation(x: Sequence[float], y: Sequence[float]) -> Correlation:
    """Pearson's and Spearman's coefficients of pairs of finite values; of equal values the mean rank counts."""
    from scipy.stats import rankdata  # here: it takes a while, and --help does without

    return Correlation(
        n=len(x),
        pearson=_pearson(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)),
        spearman=_pearson(rankdata(x), rankdata(y)),
    )


def _pearson(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    if len(x_N) < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    return float(np.clip(np.corrcoef(x_N, y_N)[0, 1], -1.0, 1.0))
