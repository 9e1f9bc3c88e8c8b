"""LDAM and DIFC: margins, weights and confusion against the published numbers and by hand."""

from __future__ import annotations

import functools
import math
import operator
from typing import Any

import numpy as np
import pytest
import torch

from difc_ray.engines.inline import InlineEngine
from difc_ray.errors import ConfigError
from difc_ray.objectives.losses import LOSSES, Confusion, Ldam, confusion_of
from difc_ray.objectives.losses.ldam import class_weights, confusion_margins, confusion_scores, ldam_margins
from difc_ray.runs.setup import prepare
from tests.runs import run_inline, small_config

RAF = (1259, 262, 713, 4705, 1885, 682, 2465)
"""Counts of the facial expressions in RAF-DB, as DIFC's authors use them."""


def loss_of(**options: Any) -> Ldam:
    loss = LOSSES.get("ldam")(options)
    assert isinstance(loss, Ldam)
    return loss


def test_margins_of_the_paper() -> None:
    expected = [0.2026, 0.3000, 0.2336, 0.1457, 0.1832, 0.2362, 0.1713]
    np.testing.assert_allclose(ldam_margins(RAF, 0.3), expected, atol=5e-5)
    gamma = 1.207
    np.testing.assert_allclose(ldam_margins(RAF, 0.3), [gamma / n**0.25 for n in RAF], atol=1e-4)


def test_a_class_without_examples_has_no_margin_and_no_weight() -> None:
    assert ldam_margins([10, 0, 160], 0.3).tolist() == [0.3, 0.0, 0.15]
    weights = class_weights([10, 0, 160], 0.999)
    assert weights[1] == 0
    assert weights @ [10, 0, 160] / 170 == pytest.approx(1)


def test_weights_follow_the_effective_number() -> None:
    """In the proportions that the authors give for RAF-DB with β = 0.9999, there scaled to mean 1 over classes."""
    published = np.array([0.658, 3.012, 1.132, 0.208, 0.453, 1.181, 0.356])
    found = class_weights(RAF, 0.9999)
    np.testing.assert_allclose(found / found.mean(), published, atol=6e-4)
    assert found @ RAF / sum(RAF) == pytest.approx(1)
    assert class_weights(RAF, 0.0).tolist() == pytest.approx([1.0] * 7)


def test_value_by_hand() -> None:
    """The true logit lowered by its margin, the others left, the sample weighted."""
    loss = loss_of().with_vectors({"margins": torch.tensor([0.3, 0.1, 0.2]), "weights": torch.tensor([2.0, 0.5, 1.0])})
    logits, labels = torch.tensor([[1.0, 0.0, -1.0], [0.2, 0.4, 0.1]]), torch.tensor([0, 1])
    first = -math.log(math.exp(0.7) / (math.exp(0.7) + math.exp(0.0) + math.exp(-1.0)))
    second = -math.log(math.exp(0.3) / (math.exp(0.2) + math.exp(0.3) + math.exp(0.1)))
    assert float(loss.value(logits, labels)) == pytest.approx((2 * first + 0.5 * second) / 2, rel=1e-6)
    plain = torch.nn.functional.cross_entropy(logits, labels)
    assert float(loss.evaluation_value(logits, labels)) == pytest.approx(float(plain))
    assert torch.equal(loss.predictions(logits), logits.softmax(1))


def test_bumps_halve_in_the_order_of_confusion() -> None:
    scores = np.array([3.0, 9.0, 1.0, 5.0, 2.0, 7.0, 4.0])
    bumps = confusion_margins(np.zeros(7), scores, 0.02)
    order = [1, 5, 3, 6, 0, 4, 2]
    assert bumps[order].tolist() == pytest.approx([0.02, 0.01, 0.005, 0.0025, 0.00125, 0.000625, 0.0003125])
    base = ldam_margins(RAF, 0.3)
    assert (confusion_margins(base, scores, 0.02) - base)[order].tolist() == pytest.approx(bumps[order].tolist())


def test_a_class_that_is_never_predicted_keeps_its_margin() -> None:
    confusion = Confusion(gaps_K=np.array([2.0, 0.0, 3.0]), counts_K=np.array([4.0, 0.0, 4.0]))
    scores = confusion_scores(confusion)
    assert math.isnan(scores[1])
    assert scores[[0, 2]].tolist() == pytest.approx([2.0, 4 / 3])
    assert confusion_margins(np.array([0.1, 0.2, 0.3]), scores, 0.02).tolist() == pytest.approx([0.12, 0.2, 0.31])


def test_a_class_that_is_never_sure_comes_first() -> None:
    """All its samples have p₁ = p₂: infinitely confused, and no NaN."""
    scores = confusion_scores(Confusion(gaps_K=np.array([0.0, 1.0]), counts_K=np.array([3.0, 2.0])))
    assert scores.tolist() == [math.inf, 2.0]
    assert confusion_margins(np.zeros(2), scores, 0.02).tolist() == [0.02, 0.01]


def test_confusion_of_samples_by_hand_and_in_parts() -> None:
    source = torch.Generator().manual_seed(1)
    probabilities = torch.softmax(2 * torch.randn(101, 6, generator=source), dim=1)
    gaps, counts = [0.0] * 6, [0] * 6
    for row in probabilities.tolist():
        first, second = sorted(row, reverse=True)[:2]
        gaps[row.index(first)] += first - second
        counts[row.index(first)] += 1
    whole = confusion_of(probabilities)
    assert whole.counts_K.tolist() == counts
    np.testing.assert_allclose(whole.gaps_K, gaps, rtol=1e-12)
    parts = functools.reduce(operator.add, [confusion_of(probabilities[shard::3]) for shard in range(3)])
    assert parts.counts_K.tolist() == counts
    np.testing.assert_allclose(parts.gaps_K, gaps, rtol=1e-12)


def test_schedule_of_weights_and_margins() -> None:
    loss = LOSSES.get("difc")({"confusion_from": 0.5, "reweight_from": 0.25})
    state = loss.begin(np.array([30, 10]), epoch_steps=7, steps=40)
    assert [step for step in range(40) if loss.learns_at(state, step)] == [20, 27, 34]
    assert [step for step in range(40) if "weights" in loss.vectors(state, step)] == list(range(10, 40))
    twice = loss.learn(state, Confusion(gaps_K=np.array([1.0, 2.0]), counts_K=np.array([9.0, 9.0])))
    twice = loss.learn(twice, Confusion(gaps_K=np.array([2.0, 1.0]), counts_K=np.array([9.0, 9.0])))
    assert (twice["margins"] - state["base"]).tolist() == pytest.approx([0.01, 0.02])  # never added up
    never = LOSSES.get("ldam")({"reweight_from": 1})
    assert not any(never.learns_at(never.begin(np.array([30, 10]), 7, 40), step) for step in range(40))
    assert "weights" not in never.vectors(never.begin(np.array([30, 10]), 7, 40), 39)


def test_margins_come_from_the_training_examples_of_all_sources() -> None:
    config = small_config(loss="ldam", sources=["mnist", "fonts"])
    from difc_ray.step.factory import load_domain

    counts = sum(load_domain(config, name).class_counts("train") for name in ("mnist", "fonts"))
    assert prepare(config, None).state.loss["base"].tolist() == ldam_margins(counts, 0.3).tolist()


def test_a_run_without_margins_and_weights_is_plain_cross_entropy() -> None:
    plain, _ = run_inline(small_config(), 4)
    ldam, _ = run_inline(small_config(loss="ldam", loss_options={"max_margin": 0, "reweight_from": 1}), 4)
    assert torch.allclose(plain.theta_P, ldam.theta_P, atol=1e-6)
    margins, _ = run_inline(small_config(loss="ldam"), 4)
    assert not torch.allclose(plain.theta_P, margins.theta_P, atol=1e-5)


def test_shares_of_the_target_are_its_train_split() -> None:
    config = small_config(loss="difc", target="mnistm", model="lenet", alignment={"alpha": 0, "beta": 0})
    engine = InlineEngine(config, "r", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    state, steps = engine.step.state.model_state(), engine.domains.steps
    shares = [local.confusion(state, number, 3) for number, local in enumerate(steps)]
    whole = steps[0].confusion(state, 0, 1)
    total = shares[0] + shares[1] + shares[2]
    assert total.counts_K.tolist() == whole.counts_K.tolist()
    assert total.counts_K.sum() == 2000
    np.testing.assert_allclose(total.gaps_K, whole.gaps_K, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_margin": -1},
            r"`loss_options.max_margin` must be a finite number >= 0, got -1 \(loss `ldam`\). The default is 0.3.",
        ),
        ({"reweight_from": 1.5}, r"`loss_options.reweight_from` must be a number in \[0, 1\], got 1.5"),
        ({"beta": 1.0}, r"`loss_options.beta` must be a number in \[0, 1\), got 1.0"),
        ({"bump": "much"}, r"`loss_options.bump` must be a finite number >= 0, got 'much'"),
        ({"confusion": 1}, r"`loss_options.confusion` must be true or false, got 1"),
        ({"margin": 1}, r"Unknown option `margin` of loss `ldam`. Did you mean `max_margin`\?"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LOSSES.get("ldam")(options)


def test_options_of_a_loss_without_any() -> None:
    with pytest.raises(ConfigError, match=r"Unknown option `margin` of loss `bce`. It takes no options."):
        LOSSES.get("bce")({"margin": 1})


def test_difc_needs_a_target() -> None:
    with pytest.raises(ConfigError, match=r"loss `difc` looks at the target's images"):
        small_config(loss="difc", target=None)
