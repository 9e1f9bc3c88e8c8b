"""Metrics against scikit-learn and definitions; selection rules."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

from difc_ray.data.domain import Domain
from difc_ray.errors import ConfigError
from difc_ray.objectives.losses import LOSSES
from difc_ray.runs.selection import SELECTORS
from difc_ray.step.evaluation import SplitMetrics, evaluate_domain, metrics_from, worst_domain


def predicted(n: int, n_classes: int, absent: int | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions that are better than chance, and overconfident."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([k for k in range(n_classes) if k != absent], size=n)
    logits = 2.0 * rng.standard_normal((n, n_classes))
    logits[np.arange(n), labels] += 1.5
    return torch.softmax(torch.from_numpy(logits).float(), dim=1), torch.from_numpy(labels).long()


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, n_bins: int) -> float:
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    total = 0.0
    for i in range(n_bins):
        inside = (confidence > i / n_bins) & (confidence <= (i + 1) / n_bins)
        if inside.any():
            total += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    return total


@pytest.mark.parametrize(("n", "n_classes", "absent"), [(250, 10, None), (60, 10, 3), (41, 2, None), (1, 3, None)])
def test_metrics_agree_with_scikit_learn(n: int, n_classes: int, absent: int | None) -> None:
    probabilities, labels = predicted(n, n_classes, absent)
    found = metrics_from(probabilities, labels, "photo", "val", 0.7)
    truth, guess = labels.numpy(), probabilities.numpy().argmax(axis=1)
    assert (found.domain, found.split, found.n, found.loss) == ("photo", "val", n, 0.7)
    assert found.accuracy == pytest.approx((truth == guess).mean(), abs=1e-6)
    assert found.macro_f1 == pytest.approx(sk.f1_score(truth, guess, average="macro"), abs=1e-6)
    assert found.ece == pytest.approx(calibration_error(probabilities.numpy(), truth, 15), abs=1e-6)
    assert np.array_equal(found.confusion, sk.confusion_matrix(truth, guess, labels=range(n_classes)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recall = sk.recall_score(truth, guess, labels=range(n_classes), average=None, zero_division=0)
    expected = [r if (truth == k).any() else math.nan for k, r in enumerate(recall)]
    assert found.per_class == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_types_are_plain_so_that_they_can_be_sent_and_written() -> None:
    found = metrics_from(*predicted(20, 3), "d", "val", 0.5)
    assert [type(value) for value in dataclasses.asdict(found).values()] == [
        str,
        str,
        int,
        *[float] * 4,
        tuple,
        tuple,
        int,
    ]
    assert {type(value) for row in found.confusion for value in row} == {int}


def test_a_probability_rounded_above_one_is_not_taken_for_a_logit() -> None:
    probabilities, labels = predicted(50, 4)
    rounded = probabilities.clone()
    rounded[0] = torch.tensor([1.0 + 1.2e-7, 0.0, 0.0, 0.0])
    exact = rounded.clamp(max=1.0)
    assert float(rounded.max()) > 1
    assert metrics_from(rounded, labels, "d", "val", 0.0) == metrics_from(exact, labels, "d", "val", 0.0)
    expected = calibration_error(exact.numpy(), labels.numpy(), 15)
    assert metrics_from(rounded, labels, "d", "val", 0.0).ece == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("n", [0, 5])
def test_no_samples_or_no_finite_probabilities_give_nan(n: int) -> None:
    probabilities = torch.full((n, 3), math.nan)
    found = metrics_from(probabilities, torch.zeros(n, dtype=torch.int64), "d", "val", 1.0)
    assert found.n == n
    assert all(math.isnan(v) for v in (found.accuracy, found.macro_f1, found.ece, found.loss, *found.per_class))
    assert found.confusion == ((0, 0, 0),) * 3


class Bars(Domain):
    """Class k: row k of the image is bright, with noise."""

    def __init__(self, n: int = 90) -> None:
        rng = np.random.default_rng(0)
        labels = np.arange(n) % 3
        self.images = rng.standard_normal((n, 1, 3, 3)).astype(np.float32)
        self.images[np.arange(n), 0, labels] += 1
        super().__init__("bars", ("a", "b", "c"), (1, 3, 3), labels, 0)

    def images_at(self, indices: np.ndarray) -> np.ndarray:
        return self.images[indices]


@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
@pytest.mark.parametrize("batch_size", [256, 7])
def test_evaluate_domain_is_the_metrics_of_all_examples_at_once(split: str, batch_size: int) -> None:
    domain, loss = Bars(), LOSSES.get("cross_entropy")()
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    indices = domain.split_indices(split)
    logits = model(torch.from_numpy(domain.images[indices])).detach()
    labels = torch.from_numpy(domain.labels[indices])
    found = evaluate_domain(model, loss, domain, split, batch_size)
    assert found.accuracy == pytest.approx(float((logits.argmax(dim=1) == labels).float().mean()), abs=1e-6)
    nll = -torch.log_softmax(logits, dim=1)[torch.arange(len(labels)), labels]
    assert found.loss == pytest.approx(float(nll.double().mean()), rel=1e-5)
    assert (found.domain, found.split, found.n) == ("bars", split, len(indices))
    assert sum(map(sum, found.confusion)) == len(indices)


def test_evaluate_domain_with_one_logit() -> None:
    domain, loss = Bars(), LOSSES.get("bce")()
    domain.class_names, domain.labels = ("a", "b"), domain.labels % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 1))
    right = (model(torch.from_numpy(domain.images))[:, 0] > 0).numpy() == domain.labels
    assert evaluate_domain(model, loss, domain, "all").accuracy == pytest.approx(right.mean(), abs=1e-6)


def test_evaluation_leaves_the_model_as_it_was() -> None:
    """Modes (a frozen layer too), running statistics, gradients and the random generator."""
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(9), nn.Linear(9, 3))
    model.train()
    model[3].eval()
    modes, state = [m.training for m in model.modules()], {k: v.clone() for k, v in model.state_dict().items()}
    generator = torch.get_rng_state()
    first = evaluate_domain(model, LOSSES.get("cross_entropy")(), Bars(), "all")
    assert evaluate_domain(model, LOSSES.get("cross_entropy")(), Bars(), "all") == first
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError):
        evaluate_domain(model, LOSSES.get("cross_entropy")(), Bars(), "all")
    assert model.training


def test_a_diverged_model_has_no_accuracy() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    nn.init.constant_(model[1].weight, math.nan)
    assert math.isnan(evaluate_domain(model, LOSSES.get("cross_entropy")(), Bars(), "val").accuracy)


def test_an_empty_split_is_no_error() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    found = evaluate_domain(model, LOSSES.get("cross_entropy")(), Bars(3), "val")
    assert (found.n, math.isnan(found.accuracy)) == (0, True)


def entry(domain: str, split: str, accuracy: float, n: int = 10) -> SplitMetrics:
    return SplitMetrics(
        domain=domain, split=split, n=n, accuracy=accuracy, macro_f1=0.0, ece=0.0, loss=0.0, per_class=(), confusion=()
    )


def test_worst_domain() -> None:
    good, bad, tied = entry("a", "val", 0.9), entry("b", "val", 0.4), entry("c", "val", 0.4)
    nothing, broken = entry("d", "val", math.nan, n=0), entry("e", "val", math.nan)
    assert worst_domain([good, bad, tied]) is bad
    assert worst_domain([good, nothing, tied, bad]) is tied
    assert worst_domain([good, bad, broken]) is broken
    assert worst_domain([nothing]) is nothing


def table(*entries: SplitMetrics) -> dict[tuple[str, str], SplitMetrics]:
    return {(e.domain, e.split): e for e in entries}


def test_selection_rules_score_what_they_say() -> None:
    seen = table(
        entry("a", "val", 0.9, n=100), entry("b", "val", 0.5), entry("a", "train", 1.0), entry("t", "all", 0.3)
    )
    assert SELECTORS.get("last")().score(seen, 120) == 120
    assert SELECTORS.get("train_domain_val")().score(seen, 120) == pytest.approx(0.7)
    assert SELECTORS.get("oracle")().score(seen, 120) == pytest.approx(0.3)
    assert {name for name in SELECTORS if SELECTORS.get(name).needs_target} == {"oracle"}


def test_the_target_cannot_change_an_honest_score() -> None:
    sources = table(entry("a", "val", 0.9), entry("b", "val", 0.5))
    for name in ("last", "train_domain_val"):
        rule = SELECTORS.get(name)()
        with_target = [rule.score({**sources, **table(entry("t", "all", accuracy))}, 3) for accuracy in (0.0, 1.0)]
        assert with_target == [rule.score(sources, 3)] * 2


def test_empty_splits_are_left_out_and_broken_ones_are_not() -> None:
    rule = SELECTORS.get("train_domain_val")()
    assert rule.score(table(entry("a", "val", 0.9), entry("b", "val", math.nan, n=0)), 1) == pytest.approx(0.9)
    assert math.isnan(rule.score(table(entry("a", "val", 0.9), entry("b", "val", math.nan)), 1))
    assert math.isnan(rule.score({}, 1))


def test_nan_is_never_best_and_ties_keep_the_earlier() -> None:
    rule = SELECTORS.get("train_domain_val")()
    best: float | None = None
    kept = []
    for step, score in enumerate([math.nan, 0.2, 0.5, math.nan, 0.5, 0.4, 0.6]):
        if rule.better(score, best):
            best, _ = score, kept.append(step)
    assert kept == [1, 2, 6]


def test_unknown_rule() -> None:
    with pytest.raises(ConfigError, match=r"Unknown selection rule `orcale`\. Did you mean `oracle`"):
        SELECTORS.get("orcale")
