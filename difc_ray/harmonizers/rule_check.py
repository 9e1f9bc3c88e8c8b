"""What the rules do on random Gram matrices, looked at from outside.

Shape suffixes: N rows, D entries of a row.

:func:`check_rules` runs every rule on rows of the kinds in :data:`KINDS` and looks at the direction: at how many draws
does it oppose a row, by how much at worst, what does the rule's own certificate say, and how long does it take. Where
torchjd is installed, its rules of the same name get the same draws.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64

from difc_ray.determinism import generator
from difc_ray.errors import NumericError
from difc_ray.harmonizers import Harmonizer, make_harmonizer, metrics
from difc_ray.harmonizers.adapters import SAME_IN_TORCHJD, torchjd_weighting
from difc_ray.harmonizers.base import GramStatistics, Guarantee
from difc_ray.harmonizers.catalog import rule_table
from difc_ray.harmonizers.metrics import Array

SIZES = (2, 3, 5, 8)
"""Numbers of rows that are drawn, in turn."""

CONFLICT = 1e-9
"""A direction opposes a row where its cosine with it is below minus this."""

CLEAR = 1e-2
"""And clearly so where it is below minus this."""


@dataclass(frozen=True, kw_only=True)
class CheckRow:
    """What one rule did on all draws."""

    rule: str
    """Name of the rule, ``torchjd:NAME`` for TorchJD's."""
    guarantee: Guarantee | None
    """What our rule promises; None for TorchJD's."""
    draws: int
    """Gram matrices that it was given."""
    conflict_share: float
    """Share of them at which the direction opposed a row by more than :data:`CONFLICT`, in [0, 1]."""
    clear_share: float
    """Share at which it did so by more than :data:`CLEAR`."""
    conflict_share_by_kind: Mapping[str, float]
    """``conflict_share`` by kind of rows."""
    promised_conflicts: int
    """Conflicts at draws for which the rule promises none; must be 0."""
    worst_cosine: float
    """Smallest cosine of a direction with a row."""
    worst_kkt: float | None
    """Largest residual that the rule reported; None if it has none to report."""
    median_us: float
    """Median time of ``update``, microseconds; for TorchJD, of the weighting alone."""
    failures: int = 0
    """Draws at which it raised instead of answering."""
    note: str = ""
    """What to know about the figures."""


def _random(rng: np.random.Generator, n: int) -> Array:
    return np.asarray(rng.standard_normal((n, 8)))


def _conflicting(rng: np.random.Generator, n: int) -> Array:
    """Rows whose mean is turned against most of them."""
    rows = rng.standard_normal((n, 8))
    return np.asarray(rows - 1.2 * rows.mean(axis=0) + 0.05 * rng.standard_normal((n, 8)))


def _low_rank(rng: np.random.Generator, n: int) -> Array:
    rank = max(1, n // 2)
    return np.asarray(rng.standard_normal((n, rank)) @ rng.standard_normal((rank, 8)))


def _badly_scaled(rng: np.random.Generator, n: int) -> Array:
    """Lengths up to a factor of a million apart, at a common scale from 1e-12 to 1e12."""
    return np.asarray(rng.standard_normal((n, 8))) * 10.0 ** (rng.uniform(-3, 3, (n, 1)) + rng.uniform(-12, 12))


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "random": _random,
    "conflicting": _conflicting,
    "low rank": _low_rank,
    "badly scaled": _badly_scaled,
}
"""Kinds of rows: generator, number of rows -> (N, 8) rows."""


@dataclass(frozen=True)
class _Draw:
    """Rows of one draw; ``behind`` is a metric, for the rules on ``[g, M g]``."""

    kind: str
    rows_ND: Array
    metric_D: Array
    losses_N: Array
    seed: int

    def gram(self, rule: type[Harmonizer]) -> Array:
        """What the rule is given."""
        rows = np.vstack([self.rows_ND, self.rows_ND * self.metric_D]) if rule.needs_metric else self.rows_ND
        return np.asarray(rows @ rows.T)


def _draws(draws: int, seed: int, *, two_rows: bool) -> Iterator[_Draw]:
    """The same draws for every rule; those for two rows have two."""
    for number in range(draws):
        kind = tuple(KINDS)[number % len(KINDS)]
        rng = generator(seed, "rulebook", kind, number)
        n = 2 if two_rows else SIZES[number // len(KINDS) % len(SIZES)]
        rows_ND = KINDS[kind](rng, n)
        metric_D = np.reciprocal(1.0 + rng.exponential(size=rows_ND.shape[1:]))
        yield _Draw(kind, rows_ND, metric_D, rng.exponential(size=n), number)


@dataclass
class _Tally:
    """What is collected over the draws of one rule."""

    seen: list[tuple[str, float]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    promised: int = 0
    kkt: float | None = None
    failures: int = 0

    def add(self, draw: _Draw, cosine: float, seconds: float) -> bool:
        """Notes one direction by its smallest cosine with a row; whether that is a conflict."""
        self.seen.append((draw.kind, cosine))
        self.seconds.append(seconds)
        return cosine < -CONFLICT

    def row(self, rule: str, guarantee: Guarantee | None, note: str = "") -> CheckRow:
        """The line of the report."""
        cosines = {kind: np.array([c for k, c in self.seen if k == kind]) for kind in KINDS}
        every = np.array([cosine for _, cosine in self.seen])
        return CheckRow(
            rule=rule, guarantee=guarantee, draws=len(self.seen) + self.failures,
            conflict_share=_share(every, CONFLICT), clear_share=_share(every, CLEAR),
            conflict_share_by_kind={kind: _share(some, CONFLICT) for kind, some in cosines.items()},
            promised_conflicts=self.promised, worst_cosine=float(every.min(initial=1.0)), worst_kkt=self.kkt,
            failures=self.failures,
            median_us=1e6 * float(np.median(self.seconds)) if self.seconds else float("nan"), note=note,
        )  # fmt: skip


def _share(cosines: Array, below: float) -> float:
    """Share of cosines below minus the threshold; 0 of none."""
    return float((cosines < -below).mean()) if cosines.size else 0.0


def smallest_cosine(gram_NN: Float64[np.ndarray, "N N"], weights_N: Float64[np.ndarray, " N"], k: int) -> float:
    """Smallest cosine of the direction with one of the first k rows that is not a zero row."""
    return float(metrics.margin_cosines(gram_NN, weights_N)[:k][metrics.nonzero_rows(gram_NN)[:k]].min(initial=1.0))


def check_rules(draws: int, seed: int = 0) -> list[CheckRow]:
    """Every registered rule with its default options, and TorchJD's of the same name, on the same random rows.

    Args:
        draws: Gram matrices per rule, >= 1; kinds and sizes take turns.
        seed: of the draws.

    Returns:
        One row per rule, in the order of :func:`rule_table`; TorchJD's after ours.
    """
    rows = []
    for row in rule_table():
        rows.append(_check(row.name, draws, seed))
        if row.name in SAME_IN_TORCHJD and importlib.util.find_spec("torchjd") is not None:
            rows += _check_torchjd(row.name, draws, seed)
    return rows


def _check(name: str, draws: int, seed: int) -> CheckRow:
    """One of our rules."""
    rule, tally = make_harmonizer(name, {}), _Tally()
    for draw in _draws(draws, seed, two_rows=rule.two_rows):
        k = len(draw.rows_ND)
        stats = GramStatistics(
            gram_NN=draw.gram(type(rule)),
            weights_N=rule.default_weights(2 * k if rule.needs_metric else k),
            losses_N=draw.losses_N if rule.needs_losses else None,
        )
        state, rng = rule.init(len(stats.weights_N)), generator(seed, "rulebook rng", step=draw.seed)
        started = time.perf_counter()
        try:
            result = rule.update(stats, state, rng)
        except NumericError:
            tally.failures += 1
            continue
        seconds = time.perf_counter() - started
        conflict = tally.add(draw, smallest_cosine(stats.gram_NN, result.weights, k), seconds)
        tally.promised += conflict and (rule.guarantee == "proven" or (rule.guarantee == "n = 2 only" and k == 2))
        if "kkt_residual" in result.diagnostics:
            tally.kkt = max(tally.kkt or 0.0, result.diagnostics["kkt_residual"])
    return tally.row(name, rule.guarantee)


def _check_torchjd(name: str, draws: int, seed: int) -> list[CheckRow]:
    """TorchJD's rule of the same name; none where its extra is missing."""
    weighting, note = torchjd_weighting(SAME_IN_TORCHJD[name])
    if weighting is None:
        return []
    import torch

    tally = _Tally()
    for draw in _draws(draws, seed, two_rows=False):
        gram_NN = draw.rows_ND @ draw.rows_ND.T
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(draw.seed)
            given = torch.from_numpy(gram_NN)
            started = time.perf_counter()
            try:
                weights_N = weighting(given).numpy().astype(np.float64)
            except (ArithmeticError, RuntimeError, ValueError):
                tally.failures += 1
                continue
            seconds = time.perf_counter() - started
        if not np.isfinite(weights_N).all():
            tally.failures += 1
            continue
        tally.add(draw, smallest_cosine(gram_NN, weights_N, len(gram_NN)), seconds)
    return [tally.row(f"torchjd:{SAME_IN_TORCHJD[name]}", None, note)]
