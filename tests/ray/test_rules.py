"""Every rule in the running system: one step each, Ray = reference, memory in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from difc_ray.engines.ray.engine import RayEngine
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.runs.setup import prepare
from difc_ray.runs.state import Progress, make_snapshot, train_state
from tests.runs import digest, run_inline, same_records, small_config

pytestmark = pytest.mark.ray

CASES: dict[str, dict[str, Any]] = {rule: {"rule": rule} for rule in HARMONIZERS.names()}
CASES["ema"] = {"rule": "ema", "options": {"inner": "pcgrad", "decay": 0.5}}
CASES |= {
    "flat_dualproj, rest by Hutchinson": {"rule": "flat_dualproj", "curvature": {"rest": "hutchinson"}},
    "flat_dualproj, adaptive": {"rule": "flat_dualproj", "curvature": {"adaptive": True}},
    "flat_dualproj, products": {"rule": "flat_dualproj", "curvature": {"kind": "hvp", "order": 2}},
}
STATEFUL = ("ema", "group_dro", "uncertainty", "flat_dualproj, adaptive", "flat_dualproj, products")


@pytest.fixture(scope="module")
def engine(ray_session: None) -> Iterator[RayEngine]:
    config = small_config(cluster={"cpus_per_worker": 0.5})
    running = RayEngine(config, "rules", lambda: False, lambda text: None)
    running.connect()
    running.start(prepare(config, None).state)
    yield running
    running.close()


@pytest.mark.parametrize("case", CASES)
def test_ray_equals_the_reference(engine: RayEngine, case: str) -> None:
    config = small_config(harmonize=CASES[case])
    expected, records = run_inline(config, 2)
    assert not any(record.skipped for record in records)
    engine.begin(config, case, prepare(config, None).state)
    assert same_records(engine.advance(2), records)
    assert digest(engine.snapshot()) == digest(expected)


@pytest.mark.parametrize("case", STATEFUL)
def test_memory_is_part_of_the_checkpoint(case: str) -> None:
    config = small_config(harmonize=CASES[case], steps=6)
    straight, _ = run_inline(config, 6)
    half, _ = run_inline(config, 3)
    layout = prepare(config, None).layout
    restored = train_state(make_snapshot(config, half, layout, Progress(), {}), layout)
    assert {**restored.harmonizer, **restored.curvature}, "the rule keeps nothing: the test would see no loss of memory"
    resumed, _ = run_inline(config, 3, restored)
    assert digest(resumed) == digest(straight)


def test_no_flatness_is_the_plain_projection() -> None:
    """λ = 0: M = 1, so the flat rule takes the direction of `dualproj`."""
    flat, flat_records = run_inline(small_config(harmonize={"rule": "flat_dualproj", "flatness": 0}), 3)
    plain, _ = run_inline(small_config(harmonize={"rule": "dualproj"}), 3)
    np.testing.assert_allclose(flat.theta_P.numpy(), plain.theta_P.numpy(), rtol=1e-6, atol=1e-7)
    assert all(weight == 0 for weight in flat_records[0].weights[:3])


def test_flatness_shortens_the_sharp_directions() -> None:
    """dᵀDd of the first direction falls as λ grows."""
    sharpness = []
    for flatness in (0.0, 1.0, 100.0):
        config = small_config(
            harmonize={"rule": "flat_dualproj", "flatness": flatness},
            optimizer={"name": "sgd", "lr": 1.0, "momentum": 0}, alignment={"alpha": 0, "beta": 0},
        )  # fmt: skip
        start = prepare(config, None).state.theta_P.clone()
        state, _ = run_inline(config, 1)
        step_P = (state.theta_P - start).double()
        sharpness.append(float((step_P.square() * state.curvature["diagonal"].double()).sum() / step_P.square().sum()))
    assert sharpness[0] > sharpness[1] > sharpness[2]
