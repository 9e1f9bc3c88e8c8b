"""Workers that die, hang or raise while they exchange rows themselves: the others have their part of the state.

Every test asserts that its fault fired (the plug-in leaves a mark), and compares with a run in which it did not.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import Config
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import StepRecord, TrainState
from tests.fault_plugin import marks
from tests.faults import fault, faulty_config, marked_pid, nothing_more, without_faults
from tests.processes import alive
from tests.runs import digest, run_inline, same_records
from tests.waiting import eventually

pytestmark = pytest.mark.ray

STEPS = 5
RUNS = itertools.count()
COLLECTIVE = {"cpus_per_worker": 0.5, "transport": "collective", "step_timeout_s": 300}


def config_of(folder: Path, *faults: dict[str, Any], **cluster: Any) -> Config:
    return faulty_config(folder, *faults, cluster={**COLLECTIVE, **cluster})


@pytest.fixture(scope="module")
def engine(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    config = config_of(tmp_path_factory.mktemp("nothing"))
    with nothing_more():
        engine = RayEngine(config, "first", lambda: False, lambda text: None)
        engine.connect()
        engine.start(prepare(config, None).state)
        yield engine
        engine.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[StepRecord]]:
    """Digest and records of the same run in one process."""
    state, records = run_inline(without_faults(config_of(tmp_path_factory.mktemp("marks"))), STEPS)
    return digest(state), records


def on_ray(engine: RayEngine, config: Config, steps: int = STEPS) -> tuple[TrainState, list[StepRecord], list[str]]:
    notices: list[str] = []
    engine.notice = notices.append
    engine.begin(config, f"run-{next(RUNS)}", prepare(config, None).state)
    records: list[StepRecord] = []
    while len(records) < steps:
        records += engine.advance(min(3, steps - len(records)))
    state = engine.snapshot()
    engine.advance(0)  # what was noticed while the snapshot was made
    return state, records, notices


PLACES = (("a", "batch"), ("b", "share"), ("c", "shared"), ("a", "combined"), ("b", "commit"), ("c", "committed"))
"""The first answer; before and after rows are exchanged; the direction is complete; before and after the step."""


def test_a_worker_killed_in_each_phase(engine: RayEngine, tmp_path: Path) -> None:
    """One in every step of a run."""
    faults = [fault("kill", domain, 1 + number, where) for number, (domain, where) in enumerate(PLACES)]
    config = config_of(tmp_path, *faults)
    steps = len(PLACES) + 2
    expected, expected_records = run_inline(without_faults(config), steps)
    began = time.monotonic()
    state, records, notices = on_ray(engine, config, steps)
    print(f"{len(PLACES)} deaths: {time.monotonic() - began:.1f} s; {notices}")
    assert len(marks(tmp_path)) == len(PLACES)
    assert digest(state) == digest(expected)
    assert same_records(records, expected_records)
    assert engine.restarts == {"a": 2, "b": 2, "c": 2}
    for number, (domain, _) in enumerate(PLACES):
        assert not alive(marked_pid(tmp_path, f"kill-{domain}-{1 + number}-0"))


def kill_while_meeting() -> dict[str, tuple[dict[str, Any], ...]]:
    killed = "batch-kill-b-2-0"
    return {
        "another one joins": (fault("kill", "b", 2), fault("kill", "c", 2, "join", after=killed)),
        "the new one joins": (fault("kill", "b", 2), fault("kill", "b", -1, "join", after=killed)),
        "another one gives the state": (fault("kill", "b", 2), fault("kill", "a", 2, "replica", after=killed)),
    }


@pytest.mark.parametrize("when", kill_while_meeting())
def test_a_second_one_killed_while_the_first_is_replaced(
    engine: RayEngine, tmp_path: Path, undisturbed: tuple[str, list[StepRecord]], when: str
) -> None:
    faults = kill_while_meeting()[when]
    began = time.monotonic()
    state, records, notices = on_ray(engine, config_of(tmp_path, *faults))
    took = time.monotonic() - began
    print(f"killed when {when}: {took:.1f} s; {notices}")
    assert len(marks(tmp_path)) == 2
    assert digest(state) == undisturbed[0]
    assert same_records(records, undisturbed[1])
    expected = dict.fromkeys("abc", 0)
    for each in faults:
        expected[each["domain"]] += 1
    assert engine.restarts == expected
    assert took < 150  # and not as long as a group may wait for a member


def test_a_worker_that_hangs(engine: RayEngine, tmp_path: Path, undisturbed: tuple[str, list[StepRecord]]) -> None:
    config = config_of(tmp_path, fault("stop", "b", 2, "shared"), step_timeout_s=8)
    began = time.monotonic()
    state, records, notices = on_ray(engine, config)
    took = time.monotonic() - began
    print(f"stopped: {took:.1f} s; {notices}")
    assert marks(tmp_path) == ["shared-stop-b-2-0"]
    assert digest(state) == undisturbed[0]
    assert same_records(records, undisturbed[1])
    assert engine.restarts == {"a": 0, "b": 1, "c": 0}
    eventually(lambda: not alive(marked_pid(tmp_path, "stop-b-2-0")))


def test_a_worker_that_raises_while_the_others_wait_for_it(
    engine: RayEngine, tmp_path: Path, undisturbed: tuple[str, list[StepRecord]]
) -> None:
    config = config_of(tmp_path, fault("raise", "b", 2, "surrogate"))
    began = time.monotonic()
    state, records, notices = on_ray(engine, config)
    took = time.monotonic() - began
    print(f"raised: {took:.1f} s; {notices}")
    assert marks(tmp_path) == ["surrogate-raise-b-2-0"]
    assert digest(state) == undisturbed[0]
    assert same_records(records, undisturbed[1])
    assert engine.restarts == {"a": 0, "b": 1, "c": 0}
    assert took < 150
