"""The two-row rules against the published table, against vector space, and against bad input."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
import torch

from difc_ray.errors import ConfigError, NumericError
from difc_ray.harmonizers import HARMONIZERS, GramStatistics, Harmonizer, harmonize, make_harmonizer, metrics
from tests.samplers import Rows, conflicting_pair, gaussian_rows, generator, gram_of, pair_at

DEG = math.pi / 180
TABLE: dict[str, tuple[Rows, dict[str, tuple[tuple[float, float], tuple[float, float]]]]] = {
    # rows, then rule -> (tau, (direction·g1, direction·g2)), as printed in the reference table
    "A": (
        pair_at(150 * DEG, 1, 1),
        {
            "mean": ((1, 1), (0.134, 0.134)),
            "gh": ((1.866, 1.866), (0.25, 0.25)),
            "ghpp_paper": ((1.518, 0.482), (1.100, -0.832)),
            "ghpp_rotation": ((2.732, 2.732), (0.366, 0.366)),
            "ghpp": ((2.732, 2.732), (0.366, 0.366)),
        },
    ),
    "B": (
        pair_at(120 * DEG, 1, 1),
        {
            "mean": ((1, 1), (0.5, 0.5)),
            "gh": ((1.5, 1.5), (0.75, 0.75)),
            "ghpp_paper": ((1.261, 0.739), (0.892, 0.108)),
            "ghpp_rotation": ((1.414, 1.414), (0.707, 0.707)),
            "ghpp": ((1.414, 1.414), (0.707, 0.707)),
        },
    ),
    "C": (
        np.array([[1.0, 2.0], [-1.0, 0.25]]),
        {
            "mean": ((1, 1), (4.5, 0.5625)),
            "gh": ((1.1, 1.4706), (4.765, 1.0125)),
            "ghpp_paper": ((1.1093, 0.8907), (5.101, 0.392)),
            "ghpp_rotation": ((1.0698, 1.2608), (4.719, 0.805)),
            "ghpp": ((1.0698, 1.2608), (4.719, 0.805)),
        },
    ),
    "D": (
        pair_at(150 * DEG, 1, 10),
        {
            "mean": ((1, 1), (-7.66, 91.3)),
            "gh": ((9.660, 1.0866), (0.25, 25)),
            "ghpp_paper": ((1.518, 0.482), (-2.66, 35.1)),
            "ghpp_rotation": ((11.732, 1.832), (-4.13, 81.6)),
            "ghpp": ((17.407, 2.010), (0, 50.2)),
        },
    ),
    "E": (
        pair_at(150 * DEG, 10, 1),
        {
            "mean": ((1, 1), (91.3, -7.66)),
            "gh": ((1.0866, 9.660), (25, 0.25)),
            "ghpp_paper": ((1.518, 0.482), (147.6, -12.66)),
            "ghpp_rotation": ((1.832, 11.732), (81.6, -4.13)),
            "ghpp": ((2.010, 17.407), (50.2, 0)),
        },
    ),
}
TWO_ROWS = ["gh", "ghpp", "ghpp_rotation", "ghpp_paper"]


@pytest.mark.parametrize("rule", ["mean", *TWO_ROWS])
@pytest.mark.parametrize("case", TABLE)
def test_oracle_table(case: str, rule: str) -> None:
    rows, expected = TABLE[case]
    tau, margins = expected[rule]
    result = harmonize(gram_of(rows), rule, weights=[1, 1])
    assert result.weights == pytest.approx(tau, abs=5.1e-4)
    # The printed products carry three or four significant digits, up to half a unit of the last one.
    assert rows @ (result.weights @ rows) == pytest.approx(margins, rel=2e-3, abs=5.1e-4)


def pcgrad_sum(rows: Rows) -> np.ndarray:
    """Each row, projected off the *original* other row if the two conflict; then the sum. Vectors only."""
    total = np.zeros(rows.shape[1])
    for own, other in ((rows[0], rows[1]), (rows[1], rows[0])):
        overlap = own @ other
        total += own - overlap / (other @ other) * other if overlap < 0 else own
    return total


@pytest.mark.parametrize("seed", range(20))
def test_gh_is_the_pcgrad_sum_of_two_rows(seed: int) -> None:
    rows = gaussian_rows(generator(seed), 2, 7, log_sigma=1.0)
    np.testing.assert_allclose(harmonize(gram_of(rows), "gh").weights @ rows, pcgrad_sum(rows), rtol=1e-10, atol=1e-12)


def turned(row: np.ndarray, towards: np.ndarray, angle: float) -> np.ndarray:
    """The row, turned by an angle towards another one in their common plane."""
    along = row / np.linalg.norm(row)
    across = towards - (towards @ along) * along
    across /= np.linalg.norm(across)
    return np.linalg.norm(row) * (math.cos(angle) * along + math.sin(angle) * across)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["ghpp", "ghpp_rotation"])
@pytest.mark.parametrize("seed", range(8))
def test_rotations_are_the_sum_of_the_turned_rows(rule: str, lam: float, seed: int) -> None:
    rows = conflicting_pair(generator(seed), d=6, max_ratio=100.0)
    a, b = np.linalg.norm(rows, axis=1)
    result = harmonize(gram_of(rows), rule, lam=lam)
    beta, phi = result.diagnostics["beta"], math.acos(rows[0] @ rows[1] / (a * b)) - math.pi / 2
    first, second = turned(rows[0], rows[1], beta), turned(rows[1], rows[0], phi - beta)
    np.testing.assert_allclose(result.weights @ rows, first + second, rtol=1e-8, atol=1e-10)
    assert first @ second == pytest.approx(0.0, abs=1e-12 * a * b)
    assert (result.weights @ rows) @ (result.weights @ rows) == pytest.approx(a * a + b * b, rel=1e-10)
    assert result.diagnostics["min_cosine_after"] == pytest.approx(0.0, abs=1e-12)
    if rule == "ghpp_rotation":
        assert beta == pytest.approx(lam * phi, abs=1e-12)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(8))
def test_safe_angle_is_the_nearest_one_that_opposes_no_row(lam: float, seed: int) -> None:
    """Searched on a grid of angles with vectors; the rule has it in closed form."""
    rows = conflicting_pair(generator(100 + seed), d=4, max_ratio=100.0)
    lengths = np.linalg.norm(rows, axis=1)
    phi = math.acos(rows[0] @ rows[1] / lengths.prod()) - math.pi / 2
    grid = np.linspace(0.0, phi, 4001)
    sums = [turned(rows[0], rows[1], t) + turned(rows[1], rows[0], phi - t) for t in grid]
    allowed = [t for t, total in zip(grid, sums, strict=True) if ((rows @ total) >= -1e-12 * lengths**2).all()]
    best = min(allowed, key=lambda t: abs(t - lam * phi))
    assert harmonize(gram_of(rows), "ghpp", lam=lam).diagnostics["beta"] == pytest.approx(best, abs=phi / 3000)


def test_equal_lengths_and_half_lambda_have_a_one_line_answer() -> None:
    for degrees in (91, 120, 150, 175):
        tau = harmonize(gram_of(pair_at(degrees * DEG, 3.0, 3.0)), "ghpp").weights
        assert tau == pytest.approx([1 / math.sqrt(1 + math.cos(degrees * DEG))] * 2, rel=1e-9)


@pytest.mark.parametrize(("lam", "row", "margin"), [(0.0, 1, -4.7), (0.5, 1, -0.99), (1.0, 0, -0.83)])
def test_published_rotation_conflicts_where_the_corrected_one_does_not(lam: float, row: int, margin: float) -> None:
    rows = np.array([[1.0, 0.0], [-3.0, 1.0]])
    published = harmonize(gram_of(rows), "ghpp_paper", lam=lam)
    assert rows[row] @ (published.weights @ rows) == pytest.approx(margin, abs=0.05)
    assert published.diagnostics["min_margin_cosine"] < -0.1
    assert published.diagnostics["conflicts_after"] >= 1
    if lam == 0.0:
        assert published.weights[1] == pytest.approx(-0.17, abs=5e-3)
    assert harmonize(gram_of(rows), "ghpp", lam=lam).diagnostics["min_margin_cosine"] >= 0.0


def test_published_rotation_is_not_symmetric_in_the_rows() -> None:
    rows = pair_at(150 * DEG, 1.0, 1.0)
    tau = harmonize(gram_of(rows), "ghpp_paper").weights
    assert abs(tau[0] - harmonize(gram_of(rows[::-1]), "ghpp_paper").weights[1]) > 1.0


@pytest.mark.parametrize("rule", TWO_ROWS)
@pytest.mark.parametrize(
    "rows",
    [
        [[0.0, 0.0], [1.0, 2.0]],
        [[1.0, 2.0], [0.0, 0.0]],
        [[0.0, 0.0], [0.0, 0.0]],
        [[1e-160, 0.0], [-1.0, 0.5]],
        [[1e-13, 0.0], [-1.0, 0.5]],
        [[1.0, 2.0], [1.0, 2.0]],
        [[1.0, 0.0], [0.0, 1.0]],
    ],
    ids=["zero 1", "zero 2", "both zero", "below 1e-150", "below 1e-12 of the other", "identical", "orthogonal"],
)
def test_base_weights_for_zero_and_for_agreeing_rows(rule: str, rows: list[list[float]]) -> None:
    result = harmonize(gram_of(np.array(rows)), rule, weights=[0.25, 2.0])
    np.testing.assert_array_equal(result.weights, [0.25, 2.0])
    assert result.diagnostics["beta"] == result.diagnostics["phi"] == 0.0


def test_opposed_rows_stop_and_the_fallback_says_so() -> None:
    for rule in ("gh", "ghpp", "ghpp_rotation"):
        rows = np.array([[1.0, 0.0], [-2.0, 0.0]])
        result = harmonize(gram_of(rows), rule)
        np.testing.assert_array_equal(result.weights, [3.0, 1.5])
        np.testing.assert_array_equal(result.weights @ rows, [0.0, 0.0])
        assert result.diagnostics["s_min_active"] == float(rule != "gh")
        assert result.diagnostics["min_margin_cosine"] == 0.0


def test_fallback_begins_at_s_min() -> None:
    just_inside, just_outside = (gram_of(pair_at(math.pi - math.asin(s), 1, 2)) for s in (0.0501, 0.0499))
    assert harmonize(just_inside, "ghpp").diagnostics["s_min_active"] == 0.0
    outside = harmonize(just_outside, "ghpp")
    assert outside.diagnostics["s_min_active"] == 1.0
    np.testing.assert_array_equal(outside.weights, harmonize(just_outside, "gh").weights)
    assert harmonize(just_outside, "ghpp", s_min=0.01).diagnostics["s_min_active"] == 0.0


def test_max_weight_bounds_and_brings_conflict_back() -> None:
    rows = TABLE["D"][0]
    bounded = harmonize(gram_of(rows), "ghpp", max_weight=5.0)
    assert bounded.weights == pytest.approx([5.0, 2.00997512], rel=1e-6)
    assert bounded.diagnostics["min_margin_cosine"] < -0.1


def test_diagnostics_agree_with_the_vectors() -> None:
    rows = TABLE["C"][0]
    base = np.array([0.5, 2.0])
    result = harmonize(gram_of(rows), "ghpp", weights=base)
    direction, plain = result.weights @ rows, base @ rows
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = result.diagnostics
    assert found["conflicts"] == 1.0
    assert found["conflict_share"] == 1.0
    assert found["min_cosine"] == pytest.approx(unit[0] @ unit[1])
    assert found["min_margin_cosine"] == pytest.approx((unit @ direction / np.linalg.norm(direction)).min())
    assert found["cos_mean"] == pytest.approx(direction @ plain / np.linalg.norm(direction) / np.linalg.norm(plain))
    assert found["phi"] == pytest.approx(math.acos(unit[0] @ unit[1]) - math.pi / 2)
    a, b = np.linalg.norm(rows, axis=1)
    assert found["magnitude_similarity"] == pytest.approx(2 * a * b / (a * a + b * b))
    np.testing.assert_allclose(result.weights, base * [found["tau1"], found["tau2"]], rtol=1e-15)


def test_metrics_of_several_rows() -> None:
    rows = np.array([[1.0, 0.0, 0.0], [-0.6, 0.8, 0.0], [-0.6, -0.7, math.sqrt(0.15)]])
    result = harmonize(gram_of(rows), "mean")
    assert result.weights == pytest.approx([1 / 3] * 3)
    assert result.diagnostics["conflicts"] == 3.0
    assert result.diagnostics["conflicts_after"] == 1.0  # the plain sum of these rows is (-.2, .1, .387)
    assert result.diagnostics["cos_mean"] == pytest.approx(1.0)
    single = harmonize([[4.0]], "mean")
    assert single.weights.tolist() == [1.0]
    assert single.diagnostics["min_cosine"] == 1.0
    assert single.diagnostics["conflict_share"] == 0.0
    zero = metrics.conflict_metrics(np.zeros((2, 2)), np.ones(2), np.ones(2))
    assert zero["min_cosine"] == zero["min_margin_cosine"] == zero["cos_mean"] == 0.0


GOOD = [[1.0, -0.5], [-0.5, 1.0]]


@pytest.mark.parametrize(
    ("gram", "error", "words"),
    [
        ([[1.0, 2.0]], ConfigError, r"must be square.*\(1, 2\)"),
        ([1.0, 2.0], ConfigError, r"must be square.*\(2,\)"),
        (np.zeros((0, 0)), ConfigError, r"must be square.*\(0, 0\)"),
        (np.float64(1.0), ConfigError, r"must be square.*\(\)"),
        ([["a", "b"], ["c", "d"]], ConfigError, "real numbers"),
        ([[1.0], [1.0, 2.0]], ConfigError, "real numbers"),
        ([[1j, 0], [0, 1]], ConfigError, "real numbers"),
        ([[1.0, -0.5], [-0.4, 1.0]], NumericError, "symmetric.*0.1"),
        ([[1.0, math.nan], [math.nan, 1.0]], NumericError, r"finite.*nan at \(0, 1\)"),
        ([[1.0, 0.0], [0.0, math.inf]], NumericError, r"finite.*inf at \(1, 1\)"),
        ([[1.0, 0.0], [0.0, -0.1]], NumericError, r"not negative.*-0.1 at \(1, 1\)"),
        ([[1.0, -2.0], [-2.0, 1.0]], NumericError, "exceed the product of the lengths"),
        (np.eye(3), ConfigError, "`gh` is defined for two rows only. Found 3 rows.*between tasks"),
        ([[1.0]], ConfigError, "two rows only. Found 1 rows"),
    ],
)
def test_bad_gram(gram: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        harmonize(gram, "gh")


@pytest.mark.parametrize("gram", [np.full((2, 2), np.nan), np.zeros((2, 3)), -np.eye(2)])
def test_update_checks_what_it_is_given(gram: np.ndarray) -> None:
    """The engine calls ``update`` without ``harmonize``."""
    for rule in ("mean", "gh"):
        with pytest.raises((ConfigError, NumericError)):
            make_harmonizer(rule, {}).update(GramStatistics(gram_NN=gram, weights_N=np.ones(2)), {}, None)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        ({"rule": "pcgard"}, ConfigError, "Unknown harmonizer `pcgard`"),
        ({"rule": "ghp"}, ConfigError, "Did you mean `gh"),
        ({"rule": "ghpp", "lamb": 0.5}, ConfigError, "Unknown option `lamb` of harmonizer `ghpp`. Did you mean `lam`"),
        ({"rule": "gh", "lam": 0.5}, ConfigError, "Unknown option `lam` of harmonizer `gh`. It takes no options"),
        ({"rule": "ghpp", "lam": 1.5}, ConfigError, r"`lam` of `ghpp` must be a number in \[0, 1\]. Found `lam = 1.5`"),
        ({"rule": "ghpp", "lam": math.nan}, ConfigError, "must be a number"),
        (
            {"rule": "ghpp", "lam": "0.5"},
            ConfigError,
            r"`lam` must be a number, got '0.5' \(harmonizer `ghpp`\). The default is 0.5.",
        ),
        ({"rule": "ghpp", "lam": True}, ConfigError, "`lam` must be a number, got True"),
        ({"rule": "ghpp_paper", "lam": -0.1}, ConfigError, "`lam` of `ghpp_paper`"),
        (
            {"rule": "ghpp", "max_weight": [1.0]},
            ConfigError,
            r"`max_weight` must be a number or null, got \[1.0\] \(harmonizer `ghpp`\)",
        ),
        ({"rule": "ghpp", "s_min": -0.1}, ConfigError, "`s_min` of `ghpp`"),
        ({"rule": "ghpp", "max_weight": 0.5}, ConfigError, "a number of at least 1. Found `max_weight = 0.5`"),
        ({"weights": [1.0]}, ConfigError, r"one entry in `base weights` per row. Found shape \(1,\) for 2 rows"),
        ({"weights": [1.0, -1.0]}, ConfigError, "must not be negative"),
        ({"weights": [1.0, math.nan]}, NumericError, "`base weights` must be finite"),
        ({"losses": [1.0, 2.0, 3.0]}, ConfigError, "`losses`"),
    ],
)
def test_bad_arguments(call: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        harmonize(GOOD, **call)


def test_rounding_of_a_cancelled_row_is_a_zero_row() -> None:
    """A row that cancels to nothing can leave a squared length just below zero."""
    result = harmonize([[-1e-14, 1e-12], [1e-12, 1.0]], "ghpp")
    np.testing.assert_array_equal(result.weights, [1.0, 1.0])


def test_integers_float32_and_slight_asymmetry_are_accepted() -> None:
    assert harmonize([[2, -1], [-1, 2]], "gh").weights.tolist() == [1.5, 1.5]
    rows = pair_at(3.0, 1.0, 1.0).astype(np.float32)
    assert np.isfinite(harmonize(rows @ rows.T, "ghpp").weights).all()
    assert harmonize([[2, -1], [-1, 2]], "ghpp", lam=1, max_weight=2).diagnostics["beta"] > 0.5
    assert harmonize([[2.0, -1.0 + 1e-9], [-1.0 - 1e-9, 2.0]], "gh").weights == pytest.approx([1.5, 1.5], rel=1e-15)


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1.0), ("float32", 1e-5), ("float32", 0.0), ("bfloat16", 1.0)])
def test_the_product_of_real_gradients_is_taken_in_its_own_type(dtype: str, apart: float) -> None:
    """`rows @ rows.T` of thousands of float32 numbers is neither symmetric to 1e-8 nor free of negative eigenvalues."""
    torch.manual_seed(0)
    rows = (torch.randn(1, 20_000) + apart * torch.randn(6, 20_000)).to(getattr(torch, dtype)).requires_grad_()
    gram = rows @ rows.T
    exact = harmonize((rows.double() @ rows.double().T).detach().numpy(), "upgrad").weights
    for given in (gram, gram.to_sparse(), *([gram.detach().numpy()] if dtype == "float32" else [])):
        assert harmonize(given, "upgrad").weights == pytest.approx(exact, rel=1e-3 if dtype == "float32" else 0.1)
    with pytest.raises(NumericError, match="must be symmetric"):
        harmonize((gram.detach() + torch.triu(torch.ones(6, 6)) * gram.detach().max()).float(), "upgrad")


@pytest.mark.parametrize("rule", ["dualproj", "upgrad", "nash", "mgda"])
def test_rows_that_are_nearly_one_have_no_negative_eigenvalue(rule: str) -> None:
    """Which float32 leaves in the Gram matrix, and at which the solvers' proof of their answers fails."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(1, 20_000, generator=generator) + 1e-5 * torch.randn(8, 20_000, generator=generator)
        rows[3] = -0.9 * rows[0]
        assert np.isfinite(harmonize(rows @ rows.T, rule).weights).all()


def test_asymmetry_is_judged_by_the_type() -> None:
    gram = np.array([[2.0, -1.0], [-1.0, 2.0]])
    gram[0, 1] *= 1 + 1e-5
    assert harmonize(gram.astype(np.float32), "gh").weights == pytest.approx([1.5, 1.5], rel=1e-4)
    with pytest.raises(NumericError, match=r"must be symmetric \(to 1e-08"):
        harmonize(gram, "gh")


def test_every_rule_describes_itself_and_is_frozen() -> None:
    assert set(HARMONIZERS) >= {"mean", *TWO_ROWS}
    for rule in HARMONIZERS:
        harmonizer = make_harmonizer(rule, {})
        assert isinstance(harmonizer, Harmonizer)
        assert harmonizer.name == rule
        assert "\n" not in harmonizer.summary
        assert harmonizer.guarantee in ("proven", "n = 2 only", "no")
        assert harmonizer.source
        assert isinstance(harmonizer.two_rows, bool)
        with pytest.raises(FrozenInstanceError):
            harmonizer.lam = 0.1
    assert make_harmonizer("gh", {}).default_weights(2).tolist() == [1.0, 1.0]
    assert make_harmonizer("mean", {}).default_weights(4).tolist() == [0.25] * 4
    assert "Warning" in (HARMONIZERS.get("ghpp_paper").__doc__ or "")
