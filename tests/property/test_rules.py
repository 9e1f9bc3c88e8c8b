"""What every rule says of itself, held against it: claims x rules, guarantees at bad scales, and the tables."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest

from difc_ray.harmonizers import HARMONIZERS, harmonize, make_harmonizer
from difc_ray.harmonizers.adapters import safeguarded_projector
from difc_ray.harmonizers.catalog import rule_table
from difc_ray.harmonizers.rule_check import check_rules, smallest_cosine
from tests.properties import (
    assert_direction_permutation_invariant,
    assert_linear_under_scaling,
    assert_non_conflicting,
    assert_well_formed,
    direction_of,
)
from tests.samplers import (
    SCALES,
    Rows,
    agreeing_rows,
    degenerate_rows,
    extras_of,
    gaussian_rows,
    generator,
    gram_of,
    improvable_rows,
    low_rank_rows,
    seen_by,
    stationary_rows,
)

RULES = HARMONIZERS.names()
CLAIMS = {rule: HARMONIZERS.get(rule).claims for rule in RULES} | {
    "mean": {"scale", "permutation", "linear", "base"},
    "gh": {"scale", "permutation", "linear", "base"},
    "ghpp": {"scale", "base"},
}
PROVEN = [rule for rule in RULES if HARMONIZERS.get(rule).guarantee == "proven"]
OTHERS = [rule for rule in RULES if HARMONIZERS.get(rule).needs_metric or HARMONIZERS.get(rule).needs_losses]
STATEFUL = [rule for rule in RULES if make_harmonizer(rule, {}).init(3)]


def claiming(claim: str) -> list[str]:
    return [rule for rule in RULES if claim in CLAIMS[rule]]


def sizes(rule: str, *several: int) -> tuple[int, ...]:
    return (2,) if HARMONIZERS.get(rule).two_rows else several


def test_the_table_has_every_rule_of_the_plan() -> None:
    assert set(RULES) >= {
        "aligned", "cagrad", "config_gram", "dualproj", "ema", "fairgrad", "flat_dualproj", "flat_pcgrad_paper", "gh",
        "gh_symmetric", "ghpp", "ghpp_k", "group_dro", "imtl_g", "loss_proportional", "mean", "mgda", "mgda_paper",
        "nash", "normalized", "normalized_paper", "pcgrad", "uncertainty", "upgrad",
    }  # fmt: skip
    assert set(PROVEN) == {"dualproj", "upgrad", "mgda", "nash", "fairgrad", "flat_dualproj"}
    assert {rule for rule in RULES if rule.endswith("_paper")} == {
        rule for rule in RULES if "Warning:" in (HARMONIZERS.get(rule).__doc__ or "")
    }
    assert set(STATEFUL) == {"ema", "group_dro", "uncertainty"}
    for rule in RULES:
        assert "Source:" in (HARMONIZERS.get(rule).__doc__ or "") or rule == "mean"


@pytest.mark.parametrize("rule", OTHERS)
def test_total_on_degenerate_rows(rule: str) -> None:
    """The rules that want more than a Gram; all others are in test_harmonizer_properties.py."""
    for n in (1, 2, 3, 8):
        for rows in degenerate_rows(n).values():
            for scale in (1e-12, 1.0, 1e12):
                seen = seen_by(rule, rows * scale)
                result = harmonize(gram_of(seen), rule, **extras_of(rule, n))
                assert_well_formed(result, len(seen))
                if rule in PROVEN:
                    assert_margins(rows * scale, seen, result.weights)


def assert_margins(rows: Rows, seen: Rows, weights: Rows, atol: float = 1e-9) -> None:
    """The direction, made of the rows that the rule saw, opposes none of the plain rows that are not negligible."""
    lengths = np.linalg.norm(rows, axis=1)
    size = np.abs(weights) @ np.linalg.norm(seen, axis=1)
    looked_at = lengths > max(1e-150, 1e-12 * lengths.max())
    assert (rows @ (weights @ seen) >= -atol * lengths * size)[looked_at].all()


@pytest.mark.parametrize("rule", claiming("scale"))
def test_one_factor_on_all_rows_leaves_the_weights_alone(rule: str) -> None:
    rng = generator(1)
    for n in sizes(rule, 2, 5):
        rows = gaussian_rows(rng, n, 6, 1.0)
        plain = harmonize(gram_of(seen_by(rule, rows)), rule, **extras_of(rule, n)).weights
        for scale in SCALES:
            scaled = harmonize(gram_of(seen_by(rule, rows * scale)), rule, **extras_of(rule, n)).weights
            np.testing.assert_allclose(scaled, plain, rtol=1e-7, atol=1e-12 * np.abs(plain).max())


@pytest.mark.parametrize("rule", claiming("permutation"))
def test_the_order_of_the_rows_does_not_matter(rule: str) -> None:
    rng = generator(2)
    for n in sizes(rule, 2, 3, 6):
        for _ in range(3):
            assert_direction_permutation_invariant(rule, gaussian_rows(rng, n, 7, 0.7), rng.permutation(n).tolist())


@pytest.mark.parametrize("rule", claiming("linear"))
def test_linear_under_scaling(rule: str) -> None:
    rng = generator(3)
    for n in sizes(rule, 2, 3, 6):
        for _ in range(3):
            first, second = np.exp(rng.standard_normal((2, n)))
            rows = gaussian_rows(rng, n, 7) - 0.3
            assert_linear_under_scaling(rule, rows, first, second, *np.exp(rng.standard_normal(2)).tolist())


@pytest.mark.parametrize("rule", ["dualproj", "mgda", "nash", "imtl_g", "cagrad", "aligned"])
def test_the_others_are_not_linear(rule: str) -> None:
    """The negative control of the test above."""
    rng = generator(3)
    rows, (first, second) = gaussian_rows(rng, 4, 7) - 0.3, np.exp(rng.standard_normal((2, 4)))
    with pytest.raises(AssertionError):
        assert_linear_under_scaling(rule, rows, first, second, 1.0, 1.0)


@pytest.mark.parametrize("rule", claiming("base"))
def test_base_weights_come_back_without_conflict(rule: str) -> None:
    rng = generator(4)
    for n in sizes(rule, 1, 2, 5):
        rows, base = agreeing_rows(rng, n, 4), rng.uniform(0.1, 3.0, n)
        found = harmonize(gram_of(rows), rule, weights=base, **extras_of(rule, n))
        np.testing.assert_allclose(found.weights, base, rtol=1e-15)


@pytest.mark.parametrize("rule", PROVEN)
def test_proven_rules_oppose_no_row_however_badly_scaled(rule: str) -> None:
    """Norm ratios to 1e6, at common scales from 1e-12 to 1e12, dependent rows included."""
    rng = generator(5)
    conflicts = 0
    for scale in SCALES:
        for n in (2, 3, 8):
            spread = 10.0 ** rng.uniform(-3, 3, (n, 1)) * scale
            for rows in (
                gaussian_rows(rng, n, 9) * spread,
                (gaussian_rows(rng, n, 9) - 0.5) * spread,
                low_rank_rows(rng, n, 9, max(1, n // 2)) * spread,
                stationary_rows(rng, n, 9) * scale,
            ):
                seen = seen_by(rule, rows)
                result = harmonize(gram_of(seen), rule, **extras_of(rule, n))
                assert_margins(rows, seen, result.weights)
                assert result.diagnostics["min_margin_cosine"] >= -1e-9
                assert result.diagnostics["conflicts_after"] == 0.0 or result.diagnostics["min_margin_cosine"] > -1e-12
                assert result.diagnostics["kkt_residual"] <= 1e-12
                conflicts += result.diagnostics["conflicts"] > 0
    assert conflicts > 30


@pytest.mark.parametrize("rule", PROVEN)
def test_zero_exactly_where_no_direction_helps(rule: str) -> None:
    """At Pareto-stationary rows the direction is zero; where all losses can fall, it is not and they do not rise."""
    rng = generator(6)
    for n in (2, 3, 8):
        for _ in range(3):
            stuck = stationary_rows(rng, n, n + 2)
            assert np.linalg.norm(direction_of(rule, stuck)) <= 1e-7 * np.linalg.norm(stuck, axis=1).sum()
            free = improvable_rows(rng, n, n + 2)
            direction = direction_of(rule, free)
            assert np.linalg.norm(direction) > 1e-3 * np.linalg.norm(free, axis=1).min()
            assert (free @ direction >= -1e-12).all()


def test_the_rules_that_are_one_for_two_rows() -> None:
    """GH = symmetric GH = the PCGrad sum = the UPGrad sum."""
    rng = generator(7)
    for _ in range(40):
        rows, base = gaussian_rows(rng, 2, 4, 2.0), rng.uniform(0.1, 2.0, 2)
        expected = harmonize(gram_of(rows), "gh", weights=base).weights
        for rule in ("gh_symmetric", "pcgrad", "upgrad"):
            np.testing.assert_allclose(harmonize(gram_of(rows), rule, weights=base).weights, expected, rtol=1e-9)


@pytest.mark.parametrize("rule", ["pcgrad", "gh_symmetric", "imtl_g", "config_gram", "normalized", "gh", "ghpp"])
def test_two_row_promises(rule: str) -> None:
    assert HARMONIZERS.get(rule).guarantee == "n = 2 only"
    rng = generator(8)
    for scale in SCALES:
        rows = gaussian_rows(rng, 2, 3, 3.0) * scale
        assert_non_conflicting(rows, harmonize(gram_of(rows), rule).weights, atol=1e-12)


@pytest.mark.parametrize("rule", STATEFUL)
def test_state_survives_a_round_trip(rule: str) -> None:
    """Three steps, written and read as arrays, three more: the bits of six steps straight."""
    rng = generator(9)
    harmonizer = make_harmonizer(rule, {})
    steps = [(gram_of(gaussian_rows(rng, 4, 5)), rng.exponential(size=4)) for _ in range(6)]

    def advance(
        state: dict[str, np.ndarray], part: list[tuple[Rows, Rows]]
    ) -> tuple[dict[str, np.ndarray], list[Rows]]:
        said = []
        for gram, losses in part:
            result = harmonize(gram, rule, losses=losses, state=state)
            state, said = result.state, [*said, result.weights]
        return state, said

    straight, weights = advance(harmonizer.init(4), steps)
    middle, first = advance(harmonizer.init(4), steps[:3])
    file = io.BytesIO()
    np.savez(file, **middle)
    file.seek(0)
    with np.load(file, allow_pickle=False) as held:
        end, second = advance({name: held[name] for name in held.files}, steps[3:])
    np.testing.assert_array_equal(np.array(weights), np.array(first + second))
    assert set(end) == set(straight)
    for name, value in straight.items():
        np.testing.assert_array_equal(end[name], value)
        assert value.ndim == 1
    assert not np.array_equal(weights[0], weights[-1])


@pytest.mark.parametrize("rule", STATEFUL)
def test_state_is_not_changed_in_place(rule: str) -> None:
    state = make_harmonizer(rule, {}).init(2)
    kept = {name: value.copy() for name, value in state.items()}
    harmonize(np.eye(2), rule, losses=[1.0, 3.0], state=state)
    for name, value in kept.items():
        np.testing.assert_array_equal(state[name], value)


def test_rule_table() -> None:
    rows = rule_table()
    assert sorted(row.name for row in rows) == RULES
    by_name = {row.name: row for row in rows}
    assert by_name["ghpp"].options == {"lam": 0.5, "s_min": 0.05, "max_weight": None}
    assert by_name["ema"].options == {"inner": "mgda", "options": {}, "decay": 0.9}
    assert (by_name["gh"].rows, by_name["mgda"].rows, by_name["flat_dualproj"].rows) == ("2", "n", "2n")
    assert by_name["uncertainty"].needs == ("losses",)
    assert by_name["flat_dualproj"].needs == ("curvature",)
    order = [("proven", "n = 2 only", "no").index(row.guarantee) for row in rows if not row.name.endswith("_paper")]
    assert order == sorted(order)
    assert [row.name.endswith("_paper") for row in rows] == sorted(row.name.endswith("_paper") for row in rows)


def test_check_of_the_rules() -> None:
    rows = check_rules(32, seed=1)
    found = {row.rule: row for row in rows}
    assert set(RULES) | {"torchjd:MGDA", "torchjd:UPGrad", "torchjd:DualProj"} <= set(found)
    for row in rows:
        assert row.draws == 32
        assert row.median_us > 0
        assert row.clear_share <= row.conflict_share <= 1.0
        assert row.promised_conflicts == 0, row
        if row.guarantee == "proven":
            assert row.failures == 0
            assert row.conflict_share == 0.0
            assert row.worst_cosine >= -1e-12
            assert row.worst_kkt is not None
            assert row.worst_kkt <= 1e-12
    for rule in ("mean", "torchjd:DualProj", "torchjd:UPGrad", "torchjd:MGDA", "flat_pcgrad_paper", "mgda_paper"):
        assert found[rule].conflict_share > 0.1, rule
        assert found[rule].worst_cosine < -0.1
    again = {row.rule: row for row in check_rules(32, seed=1)}
    for rule, row in found.items():
        assert dataclasses.replace(again[rule], median_us=row.median_us) == row


def test_safeguards_are_what_makes_torchjds_projection_conflict() -> None:
    """With both of its safeguards off, and our solver, the same rule opposes nothing."""
    import torch
    from torchjd.aggregation import DualProjWeighting

    rng = generator(10)
    worst = {}
    for eps in (1e-4, 0.0):
        weighting = DualProjWeighting(projector=safeguarded_projector(eps, eps))
        cosines = []
        for _ in range(20):
            rows = gaussian_rows(rng, 8, 12) * np.logspace(-1.5, 1.5, 8)[:, None] - 0.1
            weights = weighting(torch.from_numpy(gram_of(rows))).numpy()
            cosines.append(smallest_cosine(gram_of(rows), weights, 8))
        worst[eps] = min(cosines)
    assert worst[1e-4] < -0.1
    assert worst[0.0] > -1e-9
