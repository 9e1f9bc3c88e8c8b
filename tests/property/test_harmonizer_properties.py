"""One table of rules x one table of properties. A rule that is registered is tested here without being named."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from difc_ray.harmonizers import HARMONIZERS, gh, harmonize, make_harmonizer
from tests.properties import (
    assert_acts_on_scaled_rows,
    assert_base_weights,
    assert_non_conflicting,
    assert_permutation_equivariant,
    assert_pure,
    assert_scale_invariant,
    assert_well_formed,
)
from tests.samplers import (
    SCALES,
    agreeing_rows,
    conflicting_pair,
    degenerate_rows,
    gaussian_rows,
    generator,
    gram_of,
    improvable_rows,
    low_rank_rows,
    options_of,
    pair_at,
    stationary_rows,
)

RULES = [
    rule
    for rule in HARMONIZERS.names()
    if not (HARMONIZERS.get(rule).needs_metric or HARMONIZERS.get(rule).needs_losses)
]  # the others: tests/property/test_rules.py
GH_FAMILY = ["gh", "ghpp", "ghpp_rotation", "ghpp_paper"]
ROTATIONS = ["ghpp", "ghpp_rotation"]
LAMBDAS = (0.0, 0.3, 0.5, 1.0)

angles = st.floats(math.pi / 2, math.pi)
exponents = st.floats(-3.0, 3.0)
lambdas = st.floats(0.0, 1.0)
bounded = settings(deadline=None, max_examples=60, derandomize=True)


def sizes(rule: str) -> tuple[int, ...]:
    """Row counts that the rule is defined for."""
    return (2,) if HARMONIZERS.get(rule).two_rows else (1, 2, 3, 8)


def guaranteed(rule: str, n: int) -> bool:
    """Whether the rule promises a non-conflicting direction for n rows."""
    promise = HARMONIZERS.get(rule).guarantee
    return promise == "proven" or (promise == "n = 2 only" and n == 2)


RULES_AND_SIZES = [(rule, n) for rule in RULES for n in sizes(rule)]


@pytest.mark.parametrize(("rule", "n"), RULES_AND_SIZES)
def test_total_on_degenerate_rows(rule: str, n: int) -> None:
    for case, rows in degenerate_rows(n).items():
        for scale in SCALES:
            result = harmonize(gram_of(rows * scale), rule, rng=generator(0))
            assert_well_formed(result, n)
            if guaranteed(rule, n):
                assert_non_conflicting(rows * scale, result.weights, case=case)


@pytest.mark.parametrize(("rule", "n"), RULES_AND_SIZES)
def test_total_and_pure_on_sampled_rows(rule: str, n: int) -> None:
    rng = generator(n)
    samples = [gaussian_rows(rng, n, 6, 2.0), low_rank_rows(rng, n, 6, 1), improvable_rows(rng, n, 6)]
    samples += [stationary_rows(rng, n, 6)] if n > 1 else []
    for rows in samples:
        assert_well_formed(harmonize(gram_of(rows), rule, rng=generator(0)), n)
        assert_pure(rule, rows)


@pytest.mark.parametrize(("rule", "n"), [pair for pair in RULES_AND_SIZES if guaranteed(*pair)])
def test_guaranteed_rules_do_not_conflict(rule: str, n: int) -> None:
    rng = generator(7)
    conflicts = 0.0
    for _ in range(200):
        rows = gaussian_rows(rng, n, 3, 1.5)
        result = harmonize(gram_of(rows), rule, **options_of(rule, lam=float(rng.uniform())))
        conflicts += result.diagnostics["conflicts"]
        assert_non_conflicting(rows, result.weights)
        assert result.diagnostics["min_margin_cosine"] >= -1e-9
    assert conflicts > 50 or n == 1


@pytest.mark.parametrize("rule", ["gh", "ghpp"])
def test_non_conflicting_on_ten_thousand_pairs(rule: str) -> None:
    """The mixing itself, without the checks and diagnostics around it, to 1e-12."""
    rng = generator(8)
    rules = [make_harmonizer(rule, options_of(rule, lam=lam)) for lam in LAMBDAS]
    conflicts = 0
    for k, rows in enumerate(gaussian_rows(rng, 20_000, 3, 1.5).reshape(-1, 2, 3)):
        pair = gh.conflict_of(gram_of(rows))
        if pair is not None:
            conflicts += 1
            harmonizer = rules[k % len(rules)]
            assert isinstance(harmonizer, gh.TwoRowHarmonizer)
            assert_non_conflicting(rows, harmonizer.mix(pair).matrix.sum(axis=0), atol=1e-12)
    assert 4500 < conflicts < 5500


def test_unsafe_rules_do_conflict_on_the_same_pairs() -> None:
    """The negative control of the test above: shares against the measured ones of the reference report."""
    rng = generator(7)
    pairs = [pair for pair in gaussian_rows(rng, 1200, 3, 1.0).reshape(-1, 2, 3) if pair[0] @ pair[1] < 0]
    shares = {}
    for rule in ("mean", "ghpp_paper", "ghpp_rotation", "ghpp", "gh"):
        results = [harmonize(gram_of(pair), rule, weights=[1.0, 1.0]) for pair in pairs]
        shares[rule] = float(np.mean([r.diagnostics["min_margin_cosine"] < -1e-12 for r in results]))
    assert shares["ghpp"] == shares["gh"] == 0.0
    assert 0.5 < shares["mean"] < 0.7
    assert shares["ghpp_paper"] > 0.9 * shares["mean"]
    assert 0.25 < shares["ghpp_rotation"] < 0.5


@pytest.mark.parametrize("rule", GH_FAMILY)
def test_base_weights_without_conflict(rule: str) -> None:
    rng = generator(3)
    for _ in range(20):
        assert_base_weights(rule, agreeing_rows(rng, 2, 4), rng.uniform(0.1, 3.0, 2))


@given(lam=lambdas, angle=angles, log_a=exponents, log_b=exponents)
@bounded
def test_rotations_keep_the_squared_length(lam: float, angle: float, log_a: float, log_b: float) -> None:
    rows = pair_at(angle, 10.0**log_a, 10.0**log_b)
    for rule in ROTATIONS:
        result = harmonize(gram_of(rows), rule, lam=lam)
        if result.diagnostics["s_min_active"] or result.diagnostics["conflicts"] == 0.0:
            continue
        expected = (rows**2).sum()
        # The direction is a difference of long vectors when one row dominates: compare in units of those.
        noise = np.abs(result.weights) @ np.linalg.norm(rows, axis=1)
        assert np.sum((result.weights @ rows) ** 2) == pytest.approx(expected, rel=1e-9, abs=1e-12 * noise**2)


@given(lam=lambdas, angle=angles, log_a=exponents, log_b=exponents)
@bounded
def test_safe_rule_for_any_pair(lam: float, angle: float, log_a: float, log_b: float) -> None:
    rows = pair_at(angle, 10.0**log_a, 10.0**log_b)
    for rule in ("gh", "ghpp"):
        result = harmonize(gram_of(rows), rule, **options_of(rule, lam=lam))
        assert_non_conflicting(rows, result.weights, atol=1e-12)
        assert (result.weights >= 1.0 - 1e-9).all()


@given(lam=lambdas, angle=angles, log_a=exponents, log_b=exponents)
@bounded
def test_swapping_the_rows_swaps_the_weights_at_one_minus_lambda(
    lam: float, angle: float, log_a: float, log_b: float
) -> None:
    rows = pair_at(angle, 10.0**log_a, 10.0**log_b)
    assert_permutation_equivariant("gh", rows, [1, 0], options={}, permuted_options={})
    for rule in ROTATIONS:
        assert_permutation_equivariant(
            rule, rows, [1, 0], options={"lam": lam}, permuted_options={"lam": 1.0 - lam}, rtol=1e-7
        )


@pytest.mark.parametrize("rule", GH_FAMILY)
def test_scale_invariant(rule: str) -> None:
    rng = generator(11)
    for _ in range(10):
        rows = conflicting_pair(rng, max_ratio=1e6)
        for scale in SCALES:
            assert_scale_invariant(rule, rows, scale)


@pytest.mark.parametrize("rule", [*GH_FAMILY, "mean"])
def test_base_weights_act_as_scaled_rows(rule: str) -> None:
    rng = generator(13)
    for _ in range(10):
        assert_acts_on_scaled_rows(rule, conflicting_pair(rng), rng.uniform(0.1, 3.0, 2))
    assert_acts_on_scaled_rows(rule, conflicting_pair(rng), np.array([0.0, 2.0]))


@pytest.mark.parametrize("rule", ["gh", "ghpp"])
def test_norm_ratio_of_a_million(rule: str) -> None:
    """Within 1e-9 of the same pair computed from exactly known angles and lengths."""
    for ratio in (1e-6, 1e6):
        for degrees in (95.0, 135.0, 170.0):
            angle = math.radians(degrees)
            a, b, c = 1.0, ratio, ratio * math.cos(angle)
            tau = harmonize([[a * a, c], [c, b * b]], rule).weights
            if rule == "gh":
                assert tau == pytest.approx([1 - c / a**2, 1 - c / b**2], rel=1e-9)
            else:
                long = 0 if a > b else 1
                # λφ is clipped so that the direction is orthogonal to the short row, and as long as both together.
                assert tau[long] == pytest.approx(math.hypot(a, b) / (max(a, b) * math.sin(angle)), rel=1e-9)


@pytest.mark.parametrize("rule", GH_FAMILY)
def test_continuous_in_the_angle(rule: str) -> None:
    """No jump where conflict begins nor where a bound on the angle begins to act, up to s_min."""
    for a, b in ((1.0, 1.0), (1.0, 10.0), (10.0, 1.0)):
        sweep = np.linspace(math.radians(80), math.pi - math.asin(0.06), 401)
        tau = np.array([harmonize(gram_of(pair_at(angle, a, b)), rule).weights for angle in sweep])
        steps = np.abs(np.diff(tau, axis=0))
        assert (steps <= 0.1 * tau.max(axis=0)).all()
        coarse = np.abs(np.diff(tau[::2], axis=0)).max()
        assert steps.max() < 0.75 * coarse  # a jump would not shrink with the step
