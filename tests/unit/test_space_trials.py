"""From a space to its trials: the draws, and settings times seeds times folds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difc_ray.determinism import generator
from difc_ray.sweeps import trials as trials
from difc_ray.sweeps.space import Distribution, Space
from difc_ray.sweeps.trials import label, trial_config
from tests.spaces import checked, good, text_of, written

RANGES = {
    "uniform": st.tuples(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6)).map(lambda p: (p[0], p[0] + p[1])),
    "loguniform": st.tuples(st.floats(1e-9, 1e6), st.floats(1.001, 1e6)).map(lambda p: (p[0], p[0] * p[1])),
    "randint": st.tuples(st.integers(-(10**6), 10**6), st.integers(1, 10**6)).map(lambda p: (p[0], p[0] + p[1])),
    "choice": st.lists(st.integers(), min_size=1, max_size=5, unique=True).map(tuple),
}
distributions = st.sampled_from(sorted(RANGES)).flatmap(
    lambda kind: RANGES[kind].map(lambda values: Distribution(kind=kind, values=values))
)


@given(distribution=distributions, seed=st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_draws_lie_inside_and_repeat(distribution: Distribution, seed: int) -> None:
    drawn = [distribution.draw(generator(seed, "t", "", n)) for n in range(8)]
    assert drawn == [distribution.draw(generator(seed, "t", "", n)) for n in range(8)]
    for value in drawn:
        if distribution.kind == "choice":
            assert value in distribution.values
            continue
        low, high = distribution.values
        assert low <= value <= high
        assert type(value) is (int if distribution.kind == "randint" else float)
        assert value < high or distribution.kind != "randint"
        assert distribution.clipped(value) == value
        assert low <= distribution.clipped(value * 1e3 + 1) <= high
        assert low <= distribution.clipped(-abs(value) * 1e3 - 1) <= high


@pytest.mark.parametrize(("kind", "low", "high"), [("uniform", -2.0, 6.0), ("loguniform", 1e-3, 10.0)])
def test_draws_are_uniform(kind: str, low: float, high: float) -> None:
    """In the value or in its logarithm: ten bins of 4000 draws, each within five standard deviations."""
    distribution, rng = Distribution(kind=kind, values=(low, high)), generator(3, "test")
    scale = math.log if kind == "loguniform" else float
    drawn = np.array([scale(distribution.draw(rng)) for _ in range(4000)])
    counts, _ = np.histogram(drawn, bins=10, range=(scale(low), scale(high)))
    assert counts.sum() == 4000
    assert np.abs(counts - 400).max() < 5 * math.sqrt(4000 * 0.1 * 0.9)


def test_randint_draws_both_ends_but_the_upper(tmp_path: Path) -> None:
    distribution, rng = Distribution(kind="randint", values=(2, 5)), generator(0, "test")
    assert {distribution.draw(rng) for _ in range(100)} == {2, 3, 4} == set(distribution.listed())


@given(seed=st.integers(0, 2**32), samples=st.integers(1, 12), more=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_more_samples_change_no_earlier_one(seed: int, samples: int, more: int) -> None:
    def drawn(number: int) -> list[dict[str, object]]:
        mixed = {"alignment.alpha": ("loguniform", (0.001, 10.0)), "batch_size": ("randint", (2, 9)),
                 "harmonize.lam": ("grid", (0.0, 1.0)), "model": ("choice", ("mlp", "lenet"))}  # fmt: skip
        return trials.settings(space_of(mixed, number), seed)

    few, many = drawn(samples), drawn(samples + more)
    assert many[: len(few)] == few
    assert len(many) == 2 * (samples + more)
    assert [list(setting) for setting in many] == [list(few[0])] * len(many)


@given(seed=st.integers(0, 2**32), samples=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_no_setting_twice(seed: int, samples: int) -> None:
    """Of six that there are, as many as asked for, or all."""
    short = {"batch_size": ("randint", (2, 5)), "model": ("choice", ("mlp", "lenet"))}
    found = [tuple(setting.values()) for setting in trials.settings(space_of(short, samples), seed)]
    assert len(set(found)) == len(found) == min(samples, 6)


def space_of(keys: dict[str, tuple[str, tuple[object, ...]]], samples: int) -> Space:
    """A space without a file."""
    return Space(
        source="none", name="none", description="", metric="selection/score", mode="max", config={},
        space={key: Distribution(kind=kind, values=values) for key, (kind, values) in keys.items()},
        scheduler="none", options={}, searcher="random", samples=samples, seeds=(0,), selection="train_domain_val",
        lines={}, content={},
    )  # fmt: skip


COUNTS = {
    "draws": ({"samples": "5"}, 5, 1, 1),
    "draws x seeds": ({"seeds": "[3, 7]"}, 4, 2, 1),
    "one seed without a list": ({"seeds": "7"}, 4, 1, 1),
    "grid": ({"space": "{harmonize.lam: {grid: [0, 1]}, alignment.beta: {grid: [1, 2, 3]}}", "samples": None}, 6, 1, 1),
    "grid x draws": ({"space": "{harmonize.lam: {grid: [0, 1]}, alignment.beta: {uniform: [1, 2]}}"}, 8, 1, 1),
    "searcher grid": (
        {"space": "{harmonize.lam: {choice: [0, 1]}, batch_size: {randint: [2, 5]}}", "samples": None,
         "searcher": "grid"}, 6, 1, 1,
    ),
    "keys together": (
        {"space": "{'alignment.alpha, harmonize.lam': {grid: [[1, 0], [2, 1]]}}", "samples": None, "seeds": "[0, 5]"},
        2, 2, 1,
    ),
    "folds": ({"selection": "leave_one_domain_out", "samples": "2", "seeds": "[0, 1]"}, 2, 2, 4),
}  # fmt: skip


@pytest.mark.parametrize("case", COUNTS)
def test_trials_are_settings_times_seeds_times_folds(case: str, tmp_path: Path) -> None:
    changes, n_settings, n_seeds, n_folds = COUNTS[case]
    space, base, found = good(tmp_path, **changes)
    assert [point.number for point in found] == list(range(n_settings * n_seeds * n_folds))
    assert [point.setting for point in found] == [n // (n_seeds * n_folds) for n in range(len(found))]
    assert [point.seed for point in found] == [space.seeds[n // n_folds % n_seeds] for n in range(len(found))]
    folds = ("", *base.sources)[:n_folds]
    assert [point.fold for point in found] == [folds[n % n_folds] for n in range(len(found))]
    shared: dict[int, set[str]] = {}
    for point in found:
        shared.setdefault(point.setting, set()).add(label(point.values))
    assert all(len(values) == 1 for values in shared.values())
    assert len({next(iter(values)) for values in shared.values()}) == n_settings


def test_a_fold_trains_without_its_source_and_without_the_target(tmp_path: Path) -> None:
    _, base, found = good(tmp_path, selection="leave_one_domain_out", samples="1")
    configs = {point.fold: trial_config(base, point, tmp_path) for point in found}
    assert (configs[""].sources, configs[""].target) == (("mnist", "optdigits", "fonts"), "mnistm")
    assert (configs["fonts"].sources, configs["fonts"].target) == (("mnist", "optdigits"), "fonts")
    assert len({config.alignment.alpha for config in configs.values()}) == 1


def test_the_seed_of_the_sweep_decides_the_draws(tmp_path: Path) -> None:
    path = written(tmp_path, text_of())
    one, same, other = (checked(path, [f"seed={seed}"])[2] for seed in (1, 1, 2))
    assert one == same
    assert {label(p.values) for p in one}.isdisjoint({label(p.values) for p in other})
