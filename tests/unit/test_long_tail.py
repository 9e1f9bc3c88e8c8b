"""Margins, class weights and balanced batches on long-tailed Fashion articles, a small part of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from difc_ray.config import Config
from difc_ray.engines.inline import InlineEngine
from difc_ray.objectives.losses.ldam import ldam_margins
from difc_ray.runs.setup import prepare
from difc_ray.step.factory import load_domain, loader_of
from tests.published import needs_fashion
from tests.runs import small_config

pytestmark = needs_fashion()

STEPS = 150


def long_tailed(**changes: Any) -> Config:
    """Two sources of 1,500 articles, classes from 50 to 1."""
    common: dict[str, Any] = {
        "dataset": "fashion", "dataset_options": {"imbalance": 0.02, "limit": 1500}, "sources": ["plain", "photo"],
        "target": "sketch", "model": "lenet", "batch_size": 32, "steps": STEPS, "optimizer": {"lr": 2e-3},
        "alignment": {"alpha": 0, "beta": 0},
    }  # fmt: skip
    return small_config(**{**common, **changes})


def counts_of(config: Config) -> np.ndarray:
    return sum((load_domain(config, name).class_counts("train") for name in config.sources), np.zeros(10, dtype=int))


def rare_recall(config: Config) -> tuple[float, np.ndarray]:
    """Mean recall of the three rarest classes on the sources' test splits after a run, and the margins at its end."""
    engine = InlineEngine(config, "r", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    engine.advance(STEPS)
    rare = np.argsort(counts_of(config))[:3]
    found = [np.array(m.per_class)[rare] for m in engine.evaluate([(name, "test") for name in config.sources])]
    return float(np.mean(found)), engine.snapshot().loss.get("margins", np.zeros(10))


def test_margins_follow_the_tail() -> None:
    config = long_tailed(loss="ldam")
    counts = counts_of(config)
    assert counts.max() / counts.min() > 30
    margins = prepare(config, None).state.loss["margins"]
    assert margins.tolist() == ldam_margins(counts, 0.3).tolist()
    assert margins.argmax() == counts.argmin()


def test_balanced_batches_of_a_long_tail() -> None:
    config = long_tailed(sampler="domain_class_balanced")
    domain = load_domain(config, "plain")
    loader = loader_of(config, domain, torch.device("cpu"))
    size = domain.size("train")
    drawn = np.concatenate([loader.batch(step).labels.numpy() for step in range(-(-size // 32))])[:size]
    shares = np.bincount(drawn, minlength=10)
    assert shares.max() - shares.min() <= 1


@pytest.mark.slow
def test_margins_and_weights_find_the_rare_classes() -> None:
    plain, _ = rare_recall(long_tailed())
    options = {"reweight_from": 0.0, "confusion_from": 0.5}
    ldam, base = rare_recall(long_tailed(loss="ldam", loss_options=options))
    assert ldam > plain + 0.1
    difc, margins = rare_recall(long_tailed(loss="difc", loss_options=options))
    assert difc > plain + 0.1
    bumps = np.sort(margins - base)[::-1]
    ranked = bumps[bumps > 0]
    np.testing.assert_allclose(ranked, 0.02 / 2.0 ** np.arange(len(ranked)), rtol=1e-9)
    assert len(ranked) >= 5  # the classes that are predicted at all


@pytest.mark.parametrize("loss", ["cross_entropy", "difc"])
def test_the_target_is_not_in_the_margins(loss: str) -> None:
    """Its labels are never looked at: a run with another target has the same base margins."""
    config = long_tailed(loss=loss, sources=["plain", "rotated"], target="photo")
    other = long_tailed(loss=loss, sources=["plain", "rotated"], target="sketch")
    one, two = (prepare(each, None).state.loss for each in (config, other))
    assert {name: array.tolist() for name, array in one.items()} == {n: array.tolist() for n, array in two.items()}
