"""Selection across runs: what each rule looks at, over seeds, with ties and gaps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import pytest

from difc_ray.errors import ConfigError
from difc_ray.sweeps.selection import CHOICE_RULES, Candidate, choose, choose_all, mean_and_error


def candidate(
    point: str, seed: int, validation: float, target: float | None = None, held_out: Mapping[str, float] | None = None
) -> Candidate:
    return Candidate(point=point, seed=seed, validation=validation, target=target, held_out=held_out or {})


RUNS = [
    candidate("a", 0, 0.90, 0.50, {"m": 0.6, "f": 0.7}),
    candidate("a", 1, 0.80, 0.54, {"m": 0.6, "f": 0.7}),
    candidate("b", 0, 0.84, 0.70, {"m": 0.5, "f": 0.5}),
    candidate("b", 1, 0.85, 0.60, {"m": 0.5, "f": 0.5}),
    candidate("c", 0, 0.83, 0.55, {"m": 0.9, "f": 0.45}),
    candidate("c", 1, 0.83, 0.55, {"m": 0.9, "f": 0.45}),
]


def test_each_rule_looks_at_its_own_figure() -> None:
    first, folds, oracle = choose_all(RUNS)
    assert [choice.rule for choice in (first, folds, oracle)] == list(CHOICE_RULES)
    assert (first.point, folds.point, oracle.point) == ("a", "c", "b")
    assert (first.honest, folds.honest, oracle.honest) == (True, True, False)
    assert first.score == pytest.approx(0.85)
    assert folds.score == pytest.approx((0.9 + 0.45) / 2)
    assert oracle.score == pytest.approx(0.65)


def test_a_pick_reports_the_target_over_its_seeds() -> None:
    choice = choose(RUNS)
    assert choice.seeds == 2
    assert choice.target == pytest.approx(statistics.mean([0.50, 0.54]))
    assert choice.target_error == pytest.approx(statistics.stdev([0.50, 0.54]) / math.sqrt(2))
    assert choose(RUNS[:1]).target_error is None


def test_the_target_does_not_move_an_honest_choice() -> None:
    blind = [candidate(run.point, run.seed, run.validation, 1 - (run.target or 0), run.held_out) for run in RUNS]
    for rule in ("train_domain_val", "leave_one_domain_out"):
        assert choose(blind, rule).point == choose(RUNS, rule).point
    assert choose(blind, "oracle").point != choose(RUNS, "oracle").point


def test_of_equal_means_the_first_point_wins_in_whatever_order_its_seeds_come() -> None:
    values = [0.1, 0.2, 0.3, 0.7]  # their plain sum depends on the order
    first = [candidate("first", seed, value) for seed, value in enumerate(values)]
    second = [candidate("second", seed, value) for seed, value in enumerate(reversed(values))]
    assert choose(first + second).point == "first"
    assert choose(second + first).point == "second"
    assert choose([second[0], *first, *second[1:]]).point == "second"


def test_one_lucky_seed_is_said_to_be_one() -> None:
    choice = choose([candidate("often", 0, 0.8), candidate("often", 1, 0.8), candidate("once", 0, 0.9)])
    assert (choice.point, choice.seeds) == ("once", 1)
    assert "1 to 2 seeds" in choice.remark
    assert choose(RUNS).remark == ""


def test_a_rule_without_its_figures_says_so() -> None:
    bare = [candidate("a", 0, 0.9), candidate("b", 0, 0.8)]
    first, folds, oracle = choose_all(bare)
    assert first.point == "a"
    assert (folds.point, oracle.point) == (None, None)
    assert "held a source domain out" in folds.remark
    assert "target" in oracle.remark
    nothing = choose([candidate("a", 0, math.nan)])
    assert nothing.point is None
    assert nothing.remark.endswith(".")
    assert choose([]).point is None


def test_a_setting_that_lacks_a_held_out_source_is_not_compared_on_the_others() -> None:
    partial = [candidate("easy", 0, 0.9, None, {"m": 0.99}), *RUNS]
    assert choose(partial, "leave_one_domain_out").point == "c"
    only = [candidate("a", 0, 0.9, None, {"m": 0.9}), candidate("b", 0, 0.9, None, {"f": 0.9})]
    assert "every held-out source (f, m)" in choose(only, "leave_one_domain_out").remark


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean `oracle`"):
        choose(RUNS, "orakel")


def test_standard_errors_are_those_of_the_sample() -> None:
    values = [0.3, 0.5, 0.9, 0.1]
    mean, error = mean_and_error(values)
    assert mean == pytest.approx(statistics.fmean(values))
    assert error == pytest.approx(statistics.stdev(values) / 2)
