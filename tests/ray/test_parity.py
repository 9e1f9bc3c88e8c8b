"""The distributed engine equals the single process bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from difc_ray.engines.ray.engine import RayEngine
from difc_ray.runs.setup import prepare
from tests.runs import PENALTIES, RULES, digest, run_inline, same_records, small_config

pytestmark = pytest.mark.ray

STEPS = 5


@pytest.fixture(scope="module")
def engine(ray_session: None) -> Iterator[RayEngine]:
    config = small_config(cluster={"cpus_per_worker": 0.5})
    engine = RayEngine(config, "first", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    yield engine
    engine.close()


ALL_PENALTIES = [(penalty, RULES[k % len(RULES)]) for k, penalty in enumerate(PENALTIES)]
ALL_RULES = [(penalty, rule) for penalty in ("hutchinson-exact", "hgp-detached") for rule in RULES]
"""The rule sees only the Gram matrix of the rows: each penalty meets one rule, two penalties meet each of them."""


@pytest.mark.parametrize(("penalty", "rule"), sorted({*ALL_PENALTIES, *ALL_RULES}))
def test_every_penalty_and_every_rule(engine: RayEngine, penalty: str, rule: str) -> None:
    config = small_config(alignment=PENALTIES[penalty], harmonize={"rule": rule})
    expected, expected_records = run_inline(config, STEPS)
    engine.begin(config, f"{penalty}-{rule}", prepare(config, None).state)
    records = engine.advance(STEPS)
    assert digest(engine.snapshot()) == digest(expected)
    assert same_records(records, expected_records)
    assert expected.step == STEPS
    assert not any(record.skipped for record in records)


@pytest.mark.parametrize("between", ["domains", "both"])
def test_views_over_domains(engine: RayEngine, between: str) -> None:
    config = small_config(
        harmonize={"rule": "mean", "between": between, "weights": [0.2, 0.5, 0.3]},
        optimizer={"name": "sgd", "lr": 0.05},
    )
    expected, _ = run_inline(config, STEPS)
    engine.begin(config, between, prepare(config, None).state)
    engine.advance(STEPS)
    assert digest(engine.snapshot()) == digest(expected)


def test_dropout_annealing_and_schedule(engine: RayEngine) -> None:
    config = small_config(
        model="lenet", model_options={"dropout": 0.5},
        optimizer={"name": "adamw", "schedule": "cosine", "warmup_steps": 2},
        alignment={"anneal": {"steps": 3, "weight_after": 50.0, "rescale_loss": True, "reset_optimizer": True}},
    )  # fmt: skip
    expected, _ = run_inline(config, STEPS)
    engine.begin(config, "dropout", prepare(config, None).state)
    engine.advance(STEPS)
    assert digest(engine.snapshot()) == digest(expected)


def test_margins_weights_samplers_and_augmentation(engine: RayEngine) -> None:
    """The target is looked at before the first step, and classes are weighted from the fourth on."""
    config = small_config(
        loss="difc", loss_options={"confusion_from": 0.0, "reweight_from": 0.6}, target="mnistm",
        sampler="class_balanced", augment="light",
    )  # fmt: skip
    start = prepare(config, None).state
    expected, expected_records = run_inline(config, STEPS)
    engine.begin(config, "difc", prepare(config, None).state)
    records = engine.advance(STEPS)
    assert digest(engine.snapshot()) == digest(expected)
    assert same_records(records, expected_records)
    assert (expected.loss["margins"] != start.loss["margins"]).sum() >= 1


@pytest.mark.parametrize("rule", ["mean", "pcgrad"])
def test_batches_mixed_between_domains(engine: RayEngine, rule: str) -> None:
    config = small_config(
        objective="mixup", alignment={"mixup": 2.0}, harmonize={"rule": rule}, model="lenet",
        model_options={"dropout": 0.5}, sampler="class_balanced", augment="light",
    )  # fmt: skip
    expected, expected_records = run_inline(config, STEPS)
    engine.begin(config, f"mixed-{rule}", prepare(config, None).state)
    records = engine.advance(STEPS)
    assert digest(engine.snapshot()) == digest(expected)
    assert same_records(records, expected_records)


@pytest.mark.parametrize(("batch_norm", "precision"), [("per_domain", "float32"), ("freeze", "bf16")])
def test_batch_norm_precision_clipping_and_decay(engine: RayEngine, batch_norm: str, precision: str) -> None:
    config = small_config(
        model="resnet18", batch_norm=batch_norm, precision=precision, batch_size=4, target="mnistm",
        optimizer={"name": "adamw", "weight_decay": 0.1, "decay_norms_and_biases": False, "clip_norm": 0.5,
                   "schedule": "step", "step_every": 1},
    )  # fmt: skip
    expected, expected_records = run_inline(config, 2)
    engine.begin(config, f"{batch_norm}-{precision}", prepare(config, None).state)
    records = engine.advance(2)
    found = engine.snapshot()
    assert digest(found) == digest(expected)
    assert same_records(records, expected_records)
    assert not any(record.skipped for record in records)
    kept = [name for name in found.buffers if name.startswith("fonts/")]
    assert len(kept) == (60 if batch_norm == "per_domain" else 0)
    assert all(not torch.equal(found.buffers[name], found.buffers[name.removeprefix("fonts/")]) for name in kept
               if "num_batches" not in name)  # fmt: skip


def test_evaluation_is_the_same(engine: RayEngine) -> None:
    config = small_config(model="lenet", target="mnistm")
    state = prepare(config, None).state
    from difc_ray.engines.inline import InlineEngine

    inline = InlineEngine(config, "r", lambda: False, lambda text: None)
    inline.connect()
    inline.start(prepare(config, None).state)
    engine.begin(config, "evaluation", state)
    jobs = [("mnist", "val"), ("fonts", "test"), ("mnist", "test"), ("mnistm", "all")]
    assert engine.evaluate(jobs) == inline.evaluate(jobs)


def test_negative_control(engine: RayEngine) -> None:
    config = small_config()
    engine.begin(config, "control", prepare(config, None).state)
    engine.advance(STEPS)
    assert digest(engine.snapshot()) != digest(run_inline(config, STEPS - 1)[0])
    other = small_config(seed=1)
    assert digest(run_inline(other, STEPS)[0]) != digest(run_inline(config, STEPS)[0])
