"""bf16: what is rounded (the featurizer), and what is not (head, statistics, rows, Gram, parameters)."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from difc_ray.runs.setup import prepare
from difc_ray.step.evaluation import evaluate_domain
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, ModelState, Token
from tests.runs import digest, run_inline, small_config

TOKEN = Token(run="r", attempt=0, step=1, domain="mnist")


def local(precision: str) -> tuple[LocalStep, ModelState]:
    config = small_config(model="lenet", precision=precision)
    model, loss = model_of(config)
    return LocalStep(config, load_domain(config, "mnist"), model, loss), prepare(config, None).state.model_state()


def test_the_featurizer_rounds_and_the_head_does_not() -> None:
    """The features are those that autocast gives; everything behind them is float32 arithmetic on them."""
    step, state = local("bf16")
    step.load_state(state)
    batch = step.domain.batch(0, 1, 8)
    seen = {}
    step.model.featurizer[0].register_forward_hook(lambda module, given, out: seen.update(conv=out.dtype))
    step.model.head.register_forward_hook(lambda module, given, out: seen.update(head=out.dtype))
    features = step.model.features(batch.images)
    logits = step.model(batch.images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = step.model.featurizer(batch.images)
    assert seen == {"conv": torch.bfloat16, "head": torch.float32}
    assert features.dtype == logits.dtype == torch.float32
    assert torch.equal(features, rounded.float())
    assert torch.equal(logits, features @ step.model.head.weight.T + step.model.head.bias)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_statistics_and_rows_are_float32(precision: str) -> None:
    step, state = local(precision)
    found = step.statistics(state, TOKEN)
    rows = step.rows(TOKEN, {name: np.ones_like(vector) for name, vector in found.vectors.items()})
    assert {vector.dtype for vector in found.vectors.values()} == {np.dtype(np.float32)}
    assert rows.rows_RP.dtype == np.float32
    assert {parameter.dtype for parameter in step.model.parameters()} == {torch.float32}
    head = step.layout.slices["head.weight"].start
    exact = torch.tensor(rows.rows_RP[0, head:])
    assert not torch.equal(exact, exact.bfloat16().float())
    np.testing.assert_allclose(found.vectors["g"], rows.rows_RP[0, head:], rtol=1e-5, atol=1e-7)


def test_a_bf16_run_is_near_the_float32_run_and_repeats() -> None:
    changes = {"model": "lenet", "steps": 6, "harmonize": {"rule": "ghpp"}}
    exact, records = run_inline(small_config(**changes), 6)
    rounded, near = run_inline(small_config(**changes, precision="bf16"), 6)
    again, _ = run_inline(small_config(**changes, precision="bf16"), 6)
    assert digest(rounded) == digest(again) != digest(exact)
    assert rounded.theta_P.dtype == torch.float32
    for one, other in zip(records, near, strict=True):
        assert one.losses != other.losses
        assert list(one.losses.values()) == pytest.approx(list(other.losses.values()), rel=0.02)


def test_evaluation_computes_in_the_precision_of_training() -> None:
    found = {}
    for precision in ("float32", "bf16"):
        step, state = local(precision)
        step.load_state(state)
        found[precision] = evaluate_domain(step.model, step.loss, step.domain, "val").loss
    assert found["float32"] != found["bf16"]
    assert found["float32"] == pytest.approx(found["bf16"], rel=0.02)


@pytest.mark.process
@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "30000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
    ids=["default", "the user's", "the user's policy"],
)
def test_threads_do_not_spin_for_long(given: dict[str, str], expected: str) -> None:
    """It is said before torch is loaded, which reads it then."""
    environ = {n: value for n, value in os.environ.items() if n not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    program = "import sys, os, difc_ray; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environ | given, check=True
    )
    assert done.stdout == f"{expected} False\n"
