"""Rules on losses, rules with a memory, rules of other libraries, and what they refuse."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torchjd import aggregation

from difc_ray.errors import CheckpointError, ConfigError, NumericError
from difc_ray.harmonizers import HARMONIZERS, adapters, harmonize, make_harmonizer
from tests.samplers import gaussian_rows, generator, gram_of, low_rank_rows

PAIR = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])
THREE = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0], [-0.6, -0.7, math.sqrt(0.15)]])


def test_loss_proportional() -> None:
    found = harmonize(np.eye(3), "loss_proportional", losses=[1.0, 2.0, 5.0]).weights
    assert found == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    found = harmonize(np.eye(2), "loss_proportional", losses=[1.0, 2.0], weights=[2.0, 1.0]).weights
    assert found == pytest.approx([1.5, 1.5])
    assert harmonize(np.eye(2), "loss_proportional", losses=[0.0, 0.0]).weights.tolist() == [0.5, 0.5]
    with pytest.raises(NumericError, match="must not be negative"):
        harmonize(np.eye(2), "loss_proportional", losses=[1.0, -1.0])
    for rule in ("group_dro", "loss_proportional", "uncertainty"):
        with pytest.raises(ConfigError, match=r"must be given the loss behind every row. Found none"):
            harmonize(np.eye(2), rule)


def test_group_dro_is_its_published_recursion() -> None:
    """The q of Algorithm 1 itself, multiplied and scaled step by step; and for ever, where that overflows."""
    rng, base, state = generator(17), np.array([0.5, 0.2, 0.3]), None
    q = base.copy()
    for _ in range(20):
        losses = rng.uniform(-1.0, 3.0, 3)
        found = harmonize(np.eye(3), "group_dro", losses=losses, weights=base, state=state, rate=0.5)
        q = q * np.exp(0.5 * losses)
        q /= q.sum()
        np.testing.assert_allclose(found.weights, q, rtol=1e-12)
        state = found.state
    for _ in range(200):
        found = harmonize(np.eye(3), "group_dro", losses=[1.0, 1e4, 2.0], weights=base, state=found.state, rate=0.5)
    assert found.weights.tolist() == [0.0, 1.0, 0.0]


def test_uncertainty_rests_where_the_variance_is_the_loss() -> None:
    rule, losses = make_harmonizer("uncertainty", {"rate": 0.1}), np.array([0.2, 1.0, 40.0])
    state = rule.init(3)
    result = harmonize(np.eye(3), "uncertainty", losses=losses)
    np.testing.assert_allclose(result.weights, 1 / 3)
    for _ in range(600):
        result = harmonize(np.eye(3), "uncertainty", losses=losses, state=state, rate=0.1)
        assert np.abs(result.state["log_variance"] - state["log_variance"]).max() <= 0.1 + 1e-15
        state = result.state
    np.testing.assert_allclose(result.weights, 1 / 3 / losses, rtol=1e-6)
    for _ in range(300):
        state = harmonize(np.eye(3), "uncertainty", losses=np.zeros(3), state=state, rate=0.1).state
    np.testing.assert_array_equal(state["log_variance"], np.full(3, -10.0))


def test_ema_is_the_weighted_mean_of_what_the_rule_said() -> None:
    rng, decay, said, state = generator(16), 0.7, [], None
    for t in range(1, 6):
        gram = gram_of(rng.standard_normal((3, 4)))
        said.append(harmonize(gram, "mgda").weights)
        found = harmonize(gram, "ema", inner="mgda", decay=decay, state=state)
        shares = (1 - decay) * decay ** np.arange(t - 1, -1, -1)
        np.testing.assert_allclose(found.weights, shares / shares.sum() @ np.array(said), rtol=1e-12)
        assert found.weights.sum() == pytest.approx(1.0)
        assert found.diagnostics["inner_kkt_residual"] <= 1e-12
        state = found.state
    assert set(state or {}) == {"weights", "steps"}


def test_ema_loses_the_guarantee_and_says_so() -> None:
    state = harmonize(gram_of(np.array([[1.0, 0.0], [1.0, 0.1]])), "ema", inner="dualproj", decay=0.9).state
    rows = np.array([[1.0, 0.0], [-3.0, 0.5]])
    found = harmonize(gram_of(rows), "ema", inner="dualproj", decay=0.9, state=state)
    assert found.diagnostics["inner_conflicts_after"] == 0.0
    assert found.diagnostics["conflicts_after"] == 1.0
    assert found.diagnostics["min_margin_cosine"] < -0.5


def test_ema_carries_the_state_inside_it() -> None:
    options = {"inner": "uncertainty", "options": {"rate": 0.5}, "decay": 0.0}
    state = None
    for _ in range(3):
        found = harmonize(np.eye(2), "ema", losses=[1.0, 4.0], state=state, **options)
        state = found.state
    assert set(state or {}) == {"weights", "steps", "inner.log_variance"}
    plain = None
    for _ in range(3):
        alone = harmonize(np.eye(2), "uncertainty", losses=[1.0, 4.0], state=plain, rate=0.5)
        plain = alone.state
    np.testing.assert_array_equal(found.weights, alone.weights)
    assert harmonize([[1.0, -0.5], [-0.5, 1.0]], "ema", inner="gh").weights.tolist() == [1.5, 1.5]


@pytest.mark.parametrize(
    ("rule", "options"),
    [("ema", {}), ("group_dro", {"losses": [1.0, 1.0, 1.0]}), ("uncertainty", {"losses": [1.0, 1.0, 1.0]})],
)
def test_state_of_other_rows_is_refused(rule: str, options: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"per row \(3\). Found 2"):
        harmonize(np.eye(3), rule, state=make_harmonizer(rule, {}).init(2), **options)


def test_torchjd_rules() -> None:
    gram = gram_of(THREE)
    given = torch.from_numpy(gram)
    np.testing.assert_allclose(
        harmonize(gram, "torchjd:MGDA", max_iters=7).weights, aggregation.MGDAWeighting(max_iters=7)(given).numpy()
    )
    theirs = aggregation.FairGradWeighting(alpha=2.0)(given).numpy()
    np.testing.assert_allclose(harmonize(gram, "torchjd:FairGradWeighting", alpha=2.0).weights, theirs)
    base = np.array([0.2, 0.3, 0.5])
    theirs = aggregation.AlignedMTLWeighting(pref_vector=torch.from_numpy(base))(given).numpy()
    np.testing.assert_allclose(harmonize(gram, "torchjd:AlignedMTL", weights=base).weights, theirs)
    scaled = THREE * (base * 3)[:, None]
    direction = harmonize(gram, "torchjd:MGDA", weights=base).weights @ THREE
    theirs = aggregation.MGDAWeighting()(torch.from_numpy(gram_of(scaled))).numpy()
    np.testing.assert_allclose(direction, theirs @ scaled)


def test_torchjd_randomness_comes_from_the_rng() -> None:
    gram = gram_of(gaussian_rows(generator(17), 6, 6))
    before = torch.random.get_rng_state()
    runs = [harmonize(gram, "torchjd:PCGrad", rng=generator(seed)).weights for seed in (1, 1, 2)]
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-6


def test_every_torchjd_rule_that_can_be_made_answers() -> None:
    required = {"CAGrad": {"c": 0.5}, "FairGrad": {"alpha": 2.0}, "Krum": {"n_byzantine": 0}}
    made = set()
    for name in adapters.gram_weightings(aggregation):
        try:
            rule = make_harmonizer(f"torchjd:{name}", required.get(name, {}))
        except ConfigError as error:
            assert "extra installed" in str(error)  # noqa: PT017 - optional parts of the library
            assert 'pip install "torchjd[' in str(error)  # noqa: PT017
            continue
        made.add(name)
        assert rule.name == f"torchjd:{name}"
        assert harmonize(gram_of(np.vstack([PAIR, PAIR])), rule.name, **required.get(name, {})).weights.shape == (4,)
    assert made >= {"AlignedMTL", "FairGrad", "IMTLG", "Krum", "MGDA", "PCGrad"}


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("torchjd:MGDAA", {}, "Unknown harmonizer `torchjd:MGDAA`. Did you mean `MGDA`"),
        ("torchjd:GradVac", {}, "keeps a state of its own"),
        ("torchjd:SDMGrad", {}, "wants more than a Gram"),
        ("torchjd:MGDA", {"eps": 1.0}, "Did you mean `epsilon`"),
        ("torchjd:MGDA", {"epsilon": -1.0}, "epsilon must be positive"),
        ("torchjd:MGDA", {"max_iters": 1.5}, r"`max_iters` must be an integer, got 1.5 \(harmonizer `torchjd:MGDA`\)"),
        ("torchjd:FairGrad", {}, "needs its option `alpha`"),
        ("torchdj:MGDA", {}, "Unknown harmonizer `torchdj:MGDA`"),
    ],
)
def test_bad_torchjd_rules(rule: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_harmonizer(rule, options)


def test_torchjd_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters.torchjd_rule.cache_clear()
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    assert "torchjd:MGDA" in HARMONIZERS
    with pytest.raises(ConfigError, match=r"must have the library torchjd installed.*pip install torchjd"):
        make_harmonizer("torchjd:MGDA", {})


@pytest.mark.parametrize(
    ("rule", "options", "words"),
    [
        ("mgda", {"solver": "exactly"}, r"`solver` must be one of .*, got 'exactly' \(harmonizer `mgda`\)"),
        ("mgda", {"entropy": -1.0}, "`entropy` of `mgda` must be a number of at least 0"),
        ("mgda", {"entropy": 1.0, "lower_bounds": 0.1}, "`entropy` of `mgda` must be alone"),
        ("mgda", {"entropy": 1.0, "solver": "softmax"}, "`entropy` of `mgda` must be alone"),
        ("mgda", {"lower_bounds": -0.1}, "`lower_bounds` of `mgda`"),
        ("mgda", {"lower_bounds": [0.1, 0.1]}, r"one per row of positive base weight \(3\). Found 2"),
        ("mgda", {"lower_bounds": 0.5}, "must have sum at most 1. Found 1.5 for 3 rows"),
        ("mgda", {"steps": 0}, "`steps` of `mgda`"),
        ("cagrad", {"c": -0.1}, r"`c` of `cagrad` must be a number in \[0, 100\]"),
        ("fairgrad", {"alpha": 0.0}, "`alpha` of `fairgrad`"),
        ("ghpp_k", {"s_min": 2.0}, "`s_min` of `ghpp_k`"),
        ("aligned", {"scale_mode": "max"}, r"`scale_mode` must be one of .*, got .max. \(harmonizer `aligned`\)"),
        ("normalized", {"length": "two"}, r"`length` must be one of .*, got .two. \(harmonizer `normalized`\)"),
        ("uncertainty", {"rate": 0.0}, "`rate` of `uncertainty`"),
        ("group_dro", {"rate": 2.0}, "`rate` of `group_dro`"),
        ("ema", {"decay": 1.0}, "`decay` of `ema`"),
        ("ema", {"inner": "mgad"}, "Unknown harmonizer `mgad`. Did you mean `mgda`"),
        ("ema", {"inner": "mgda", "options": {"solvr": "exact"}}, "Unknown option `solvr` of harmonizer `mgda`"),
        ("ema", {"inner": "flat_dualproj"}, "`inner` of `ema` must be a rule on plain rows"),
    ],
)
def test_bad_options(rule: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        harmonize(np.eye(3), rule, **options)


def test_rows_of_base_weight_zero() -> None:
    """Out of the game for rules on scaled rows; still not to be opposed for the projections."""
    rows = np.array([[1.0, 0.0], [-0.5, 1.0], [-1.0, -0.2]])
    base = np.array([0.5, 0.5, 0.0])
    for rule in ("mgda", "imtl_g", "nash", "cagrad", "aligned", "config_gram", "gh_symmetric", "ghpp_k", "normalized"):
        found = harmonize(gram_of(rows), rule, weights=base).weights
        np.testing.assert_allclose(found[:2], harmonize(gram_of(rows[:2]), rule, weights=base[:2]).weights, rtol=1e-9)
        assert found[2] == 0.0
        np.testing.assert_array_equal(harmonize(gram_of(rows), rule, weights=np.zeros(3)).weights, np.zeros(3))
    for rule in ("dualproj", "upgrad"):
        found = harmonize(gram_of(rows), rule, weights=base).weights
        assert found[2] > 0
        assert (rows @ (found @ rows) >= -1e-12).all()


def test_dependent_rows_have_finite_answers() -> None:
    rng = generator(18)
    for rank in (1, 2):
        rows = low_rank_rows(rng, 5, 6, rank)
        for rule in ("imtl_g", "config_gram", "aligned", "ghpp_k", "cagrad", "nash", "fairgrad"):
            assert np.isfinite(harmonize(gram_of(rows), rule).weights).all()
