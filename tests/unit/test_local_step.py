"""The worker's half of a step: rows, determinism, one-logit heads, dropout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from difc_ray.config import Config
from difc_ray.data import DATASETS, ArrayDomain, Batch
from difc_ray.data.digits import Digits
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, ModelState, Token, held_rows
from tests.runs import digest, run_inline, small_config


@DATASETS.register("parity")
class Parity(Digits):
    """Even against odd digits: two classes, so a head with one logit."""

    @property
    def class_names(self) -> tuple[str, ...]:
        return ("even", "odd")

    def load(self, domain_name: str) -> ArrayDomain:
        digits = super().load(domain_name)
        shape = digits.image_shape
        return ArrayDomain(digits._pixels, domain_name, self.class_names, shape, digits.labels % 2, self.seed)


def local(config: Config, domain: str = "mnist") -> tuple[LocalStep, ModelState]:
    model, loss = model_of(config)
    step = LocalStep(config, load_domain(config, domain), model, loss)
    theta_P = step.layout.flatten(dict(model.named_parameters()))
    return step, ModelState(theta_P=theta_P.numpy(), buffers={})


def token(step: int, domain: str = "mnist") -> Token:
    return Token(run="r", attempt=0, step=step, domain=domain)


def test_first_row_is_the_gradient_of_the_batch_loss() -> None:
    config = small_config(model="lenet")
    step, state = local(config)
    found = step.statistics(state, token(3))
    rows = step.rows(token(3), {name: np.zeros_like(v) for name, v in found.vectors.items()})
    batch = step.domain.batch(config.seed, 3, config.batch_size)
    model, _ = model_of(config)
    value = torch.nn.functional.cross_entropy(model(batch.images), batch.labels)
    value.backward()
    expected = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])
    assert found.loss == pytest.approx(value.item(), rel=1e-6)
    np.testing.assert_allclose(rows.rows_RP[0], expected.numpy(), rtol=1e-4, atol=1e-7)
    assert not rows.rows_RP[1].any()
    head = sum(p.numel() for p in model.head.parameters())
    np.testing.assert_allclose(found.vectors["g"], expected.numpy()[-head:], rtol=1e-4, atol=1e-7)


HEAVY: dict[str, Any] = {"alpha": 3.0, "beta": 5.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"objective": "hgp"},
        {"objective": "coral"},
        {"objective": "irm"},
        {"optimizer": {"l2": 0.3}},
        {"alignment": {"scope": "all", "estimator": "hutchinson"}, "augment": "none"},
        {"alignment": {"scope": "all", "estimator": "hutchinson", "micro_batches": 3}, "augment": "none"},
        {"harmonize": {"rule": "flat_dualproj", "curvature": {"kind": "diagonal", "rest": "hutchinson"}}},
        {"harmonize": {"rule": "flat_dualproj", "curvature": {"kind": "diagonal", "rest": "squared_gradient"}}},
        {"harmonize": {"rule": "flat_dualproj", "curvature": {"kind": "hvp"}}},
    ],
    ids=str,
)
def test_the_row_of_a_domain_is_both_gradients(changes: dict[str, Any]) -> None:
    """``g + a / w``, in one backward pass or two, against the rows of a run that keeps them apart."""
    rows, curvature = {}, {}
    for between in ("domains", "both"):
        given = {**changes, "alignment": {**HEAVY, **changes.get("alignment", {})}}
        given["harmonize"] = {"rule": "mean", "weights": [2, 1, 1], **changes.get("harmonize", {}), "between": between}
        step, state = local(small_config(**given))
        found = step.statistics(state, token(3))
        answers = dict(found.vectors)
        if step.objective.exchanges > 1:
            told = step.objective.broadcasts(1, [answers] * 3, np.array([0.5, 0.25, 0.25]))
            answers |= step.exchange(token(3), 1, told[0]).vectors
        reply = step.rows(token(3), {name: 0.3 + 0.1 * vector for name, vector in answers.items()})
        rows[between], curvature[between] = held_rows(reply), reply.curvature_P
    assert [len(each) for each in rows.values()] == [1, 2]
    g, a = rows["both"].astype(np.float64)
    assert np.abs(a).max() > 0.01 * np.abs(g).max()
    np.testing.assert_allclose(rows["domains"][0], g + a / 0.5, rtol=1e-5, atol=2e-6 * np.abs(g + 2 * a).max())
    np.testing.assert_array_equal(curvature["domains"], curvature["both"])


def test_l2_is_in_the_classification_row_alone() -> None:
    rows = {}
    for l2 in (0.0, 0.3):
        step, state = local(small_config(optimizer={"l2": l2}))
        found = step.statistics(state, token(3))
        rows[l2] = step.rows(token(3), {name: np.ones_like(v) for name, v in found.vectors.items()}).rows_RP
    assert rows[0.0] is not None
    assert rows[0.3] is not None
    np.testing.assert_allclose(rows[0.3][0] - rows[0.0][0], 0.6 * state.theta_P, atol=1e-6)
    np.testing.assert_array_equal(rows[0.3][1], rows[0.0][1])


def test_answers_are_a_function_of_state_and_step() -> None:
    config = small_config(model="lenet", model_options={"dropout": 0.5}, alignment={"estimator": "hutchinson"})
    step, state = local(config)
    first = step.statistics(state, token(5))
    step.statistics(state, token(6))
    torch.manual_seed(123)
    other, _ = local(config)
    again = other.statistics(state, token(5))
    assert first.same_as(again)
    assert not first.same_as(step.statistics(state, token(6)))
    generator = torch.get_rng_state()
    step.statistics(state, token(7))
    assert torch.equal(generator, torch.get_rng_state())


def test_dropout_differs_by_step_and_domain_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images and weights under other dropout masks."""
    labels, indices = torch.zeros(4, dtype=torch.int64), np.zeros(4, dtype=np.int64)
    fixed = Batch(images=torch.ones(4, 3, 28, 28), labels=labels, indices=indices)
    theta = local(small_config(model="lenet", model_options={"dropout": 0.5}))[1]

    def loss_of(step: int, domain: str, seed: int = 0) -> float:
        chosen, _ = local(small_config(model="lenet", model_options={"dropout": 0.5}, seed=seed), domain)
        monkeypatch.setattr(chosen.domain, "batch", lambda *arguments: fixed)
        return chosen.statistics(theta, token(step, domain)).loss

    losses = {loss_of(1, "mnist"), loss_of(2, "mnist"), loss_of(1, "fonts"), loss_of(1, "mnist", seed=1)}
    assert len(losses) == 4
    assert loss_of(1, "mnist") in losses


@pytest.mark.parametrize("penalty", ["gradient", "hutchinson", "hgp"])
def test_one_logit_head_trains_with_every_penalty(penalty: str) -> None:
    config = small_config(
        dataset="parity", loss="bce", batch_size=32, steps=20, optimizer={"lr": 0.01},
        alignment={"penalty": penalty, "alpha": 0.01, "beta": 0.01},
    )  # fmt: skip
    _, records = run_inline(config, 20)
    assert not any(record.skipped for record in records)
    mean = [np.mean([list(record.losses.values()) for record in part]) for part in (records[:5], records[-5:])]
    assert mean[1] < 0.75 * mean[0]
    assert digest(run_inline(config, 5)[0]) == digest(run_inline(config, 5)[0])


def test_asking_for_rows_of_another_step_is_refused() -> None:
    step, state = local(small_config())
    step.statistics(state, token(1))
    with pytest.raises(AssertionError, match="step=2"):
        step.rows(token(2), {})
