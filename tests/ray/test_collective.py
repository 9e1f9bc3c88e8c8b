"""The transport `collective`: the bits of a single process, and no more bytes than a ring all-reduce."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from difc_ray.config import Config
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.errors import ClusterError
from difc_ray.runs.setup import prepare
from tests.fault_plugin import marks
from tests.faults import fault, faulty_config
from tests.runs import PENALTIES, digest, run_inline, same_records, small_config

pytestmark = pytest.mark.ray

STEPS = 4
COLLECTIVE: dict[str, Any] = {"transport": "collective", "cpus_per_worker": 0.5}


def started(config: Config) -> RayEngine:
    engine = RayEngine(config, "first", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    return engine


@pytest.fixture(scope="module")
def engine(ray_session: None) -> Iterator[RayEngine]:
    engine = started(small_config(cluster=COLLECTIVE))
    yield engine
    engine.close()


def workers_of(engine: RayEngine) -> list[Any]:
    found: list[Any] = ray.get(engine._coordinator.__ray_call__.remote(lambda coordinator: coordinator.pool.workers))
    return found


CASES: dict[str, dict[str, Any]] = {
    "plain": {"alignment": PENALTIES["none"]},
    "exact": {"alignment": PENALTIES["hutchinson-exact"], "harmonize": {"rule": "ghpp"}},
    "released": {"alignment": PENALTIES["hutchinson-released"], "harmonize": {"rule": "gh"}},
    "hgp": {"alignment": PENALTIES["hgp"], "harmonize": {"rule": "pcgrad", "between": "both"}},
    "mixed": {"objective": "mixup", "harmonize": {"rule": "mean"}},
    "discriminator": {"alignment": PENALTIES["dann_domain"], "harmonize": {"rule": "ghpp"}},
    "annealed": {
        "model": "lenet", "model_options": {"dropout": 0.5},
        "optimizer": {"name": "adamw", "schedule": "cosine", "warmup_steps": 2, "weight_decay": 0.1,
                      "decay_norms_and_biases": False, "clip_norm": 0.5},
        "alignment": {"anneal": {"steps": 2, "weight_after": 50.0, "rescale_loss": True, "reset_optimizer": True}},
    },
    "target": {
        "loss": "difc", "loss_options": {"confusion_from": 0.0, "reweight_from": 0.6}, "target": "mnistm",
        "sampler": "class_balanced", "augment": "light",
    },
    "per_domain": {"model": "resnet18", "batch_norm": "per_domain", "batch_size": 4},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_bits_of_a_single_process(engine: RayEngine, case: str) -> None:
    steps = 2 if case == "per_domain" else STEPS
    config = small_config(**CASES[case])
    expected, expected_records = run_inline(config, steps)
    engine.begin(config, case, prepare(config, None).state)
    records = engine.advance(steps)
    assert digest(engine.snapshot()) == digest(expected)
    assert same_records(records, expected_records)
    assert not any(record.skipped for record in records)


def test_a_run_goes_on_from_a_snapshot(engine: RayEngine) -> None:
    config = small_config(**CASES["exact"])
    engine.begin(config, "whole", prepare(config, None).state)
    engine.advance(2)
    middle = engine.snapshot()
    engine.begin(config, "rest", middle)
    engine.advance(2)
    assert digest(engine.snapshot()) == digest(run_inline(config, 4)[0])
    assert middle.step == 2


def test_evaluation_between_steps_changes_nothing(engine: RayEngine) -> None:
    """Another state is evaluated with the same model, and the next step must find the parameters again."""
    config = small_config(target="mnistm")
    start = prepare(config, None).state
    engine.begin(config, "evaluated", start)
    jobs = [("mnist", "val"), ("mnistm", "all")]
    before = engine.evaluate(jobs, prepare(config, None).state.model_state())
    assert engine.evaluate(jobs) == before
    engine.advance(2)
    after = engine.evaluate(jobs)
    assert after != before
    assert engine.evaluate(jobs, prepare(config, None).state.model_state()) == before
    engine.advance(2)
    assert digest(engine.snapshot()) == digest(run_inline(config, 4)[0])


@pytest.mark.parametrize(
    ("penalty", "between", "rows"), [("none", "domains", 1), ("hutchinson-exact", "domains", 1), ("hgp", "both", 2)]
)
def test_bytes_are_those_of_a_ring_all_reduce(engine: RayEngine, penalty: str, between: str, rows: int) -> None:
    """Per worker: its rows less its own shard of them, and its shard of the direction to everybody else."""
    config = small_config(model="lenet", alignment=PENALTIES[penalty], harmonize={"rule": "mean", "between": between})
    state = prepare(config, None).state
    engine.begin(config, penalty, state)
    size, k = state.theta_P.numel(), 3
    ring = 4 * size * (k - 1) / k
    for record in engine.advance(2):
        assert len(record.sent_bytes) == k
        assert max(record.sent_bytes) <= 1.05 * (rows + 1) * ring
        assert np.sum(record.sent_bytes) == k * (rows + 1) * ring, "every byte that must travel has been counted"
    for worker in workers_of(engine):
        received, peak = ray.get(
            worker.__ray_call__.remote(lambda own: (own._received.numel(), own.step.rows_RP.shape))
        )
        assert peak == (rows, size)
        assert received <= 1.05 * rows * size, "the memory besides its rows is as much again"


def test_a_row_that_is_not_finite_is_named_and_the_step_skipped(engine: RayEngine, tmp_path: Path) -> None:
    spoiled = fault("infinite", "b", 1, "gradient")
    config = faulty_config(tmp_path, spoiled, cluster=COLLECTIVE)
    engine.begin(config, "infinite", prepare(config, None).state)
    records = engine.advance(3)
    found = digest(engine.snapshot())
    assert len(marks(tmp_path)) == 1
    (mark,) = tmp_path.iterdir()
    mark.unlink()
    expected, expected_records = run_inline(config, 3)
    assert same_records(records, expected_records)
    assert found == digest(expected)
    assert records[1].skipped.startswith("domain `b`: the classification gradient has 1 non-finite value(s), first in")


def test_workers_that_differ_are_noticed_and_follow_the_first(engine: RayEngine) -> None:
    """As on different hardware, where the optimizer's step may round differently."""
    config, notes = small_config(optimizer={"name": "sgd", "lr": 0.1}), []
    engine.notice = notes.append
    engine.begin(config, "drift", prepare(config, None).state)
    engine.advance(1)
    first = engine.snapshot()
    assert notes == []
    ray.get(workers_of(engine)[2].__ray_call__.remote(lambda worker: worker.theta_P[7].add_(1e-6)))
    assert digest(engine.snapshot()) == digest(first)
    engine.advance(1)
    assert digest(engine.snapshot()) == digest(run_inline(config, 2)[0])
    assert [note for note in notes if "the parameters of `fonts` differ from those of `mnist`" in note]


@pytest.mark.parametrize(("transport", "penalty"), [("object_store", "hgp"), ("collective", "hutchinson-exact")])
def test_two_workers_per_domain_divide_a_ragged_batch(ray_session: None, transport: str, penalty: str) -> None:
    """One long step, so that the rounding of the parameters does not count; and all examples are evaluated once."""
    changes = {"alignment": PENALTIES[penalty], "batch_size": 7, "optimizer": {"name": "sgd", "lr": 10.0},
               "sources": ["mnist", "fonts"], "target": "mnistm"}  # fmt: skip
    config = small_config(**changes, cluster={"transport": transport, "cpus_per_worker": 0.25, "replicas": 2})
    start = prepare(config, None).state
    whole, records = run_inline(small_config(**changes), 1)
    engine = started(config)
    try:
        (record,) = engine.advance(1)
        found = engine.snapshot()
        metrics = engine.evaluate([("mnist", "val"), ("mnist", "test"), ("mnistm", "all")])
        placed = engine.facts["placement"]
    finally:
        engine.close()
    moved, expected = found.theta_P - start.theta_P, whole.theta_P - start.theta_P
    assert float((moved - expected).norm() / expected.norm()) < 1e-6
    np.testing.assert_allclose(record.weights, records[0].weights, rtol=1e-5)
    assert [(m.domain, m.split) for m in metrics] == [("mnist", "val"), ("mnist", "test"), ("mnistm", "all")]
    assert "mnist #1@" in placed
    assert "fonts #2@" in placed


def test_nccl_needs_a_gpu_for_every_worker(ray_session: None) -> None:
    engine = RayEngine(
        small_config(cluster={**COLLECTIVE, "backend": "nccl"}), "nccl", lambda: False, lambda text: None
    )
    engine.connect()
    with pytest.raises(ClusterError, match=r"needs a GPU of its own for every domain worker, got 0 GPU for each"):
        engine.start(prepare(engine.config, None).state)
    assert ray.available_resources().get("CPU", 0) > 0
