"""Workers that die, hang, raise or answer with NaN, and a coordinator that dies: on a real Ray, by real signals.

Every test asserts that its fault fired (the plug-in leaves a mark), and compares with a run in which it did not.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from difc_ray.config import Config
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine
from difc_ray.errors import ClusterError, DataError, NumericError, WorkerError
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import StepRecord, TrainState
from tests.fault_plugin import marks
from tests.faults import (
    ALONE,
    Notices,
    fault,
    faulty_config,
    marked_pid,
    nothing_more,
    train,
    without_faults,
)
from tests.processes import alive
from tests.runs import digest, run_inline, same_records
from tests.waiting import eventually

pytestmark = pytest.mark.ray

STEPS = 6
RUNS = itertools.count()


@pytest.fixture(scope="module")
def engine(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    config = faulty_config(tmp_path_factory.mktemp("nothing"), cluster={"cpus_per_worker": 0.5})
    notices: list[str] = []
    with nothing_more():
        engine = RayEngine(config, "first", lambda: False, notices.append)
        engine.connect()
        engine.start(prepare(config, None).state)
        yield engine
        engine.close()


def restarts_in(notices: list[str]) -> list[str]:
    """Without those of waiting, which a busy machine adds."""
    return [notice for notice in notices if "restart" in notice]


def on_ray(
    engine: RayEngine, config: Config, steps: int = STEPS, state: TrainState | None = None
) -> tuple[TrainState, list[StepRecord], list[str]]:
    """So many steps, chunk by chunk as the loop asks for them: state, records, notices."""
    notices: list[str] = []
    engine.notice = notices.append
    engine.begin(config, f"run-{next(RUNS)}", state or prepare(config, None).state)
    records: list[StepRecord] = []
    while len(records) < steps:
        records += engine.advance(min(4, steps - len(records)))
    return engine.snapshot(), records, notices


def undisturbed(config: Config, steps: int = STEPS) -> tuple[TrainState, list[StepRecord]]:
    """The same run without faults, in this process."""
    return run_inline(without_faults(config), steps)


def inline_to_the_end(config: Config) -> None:
    """All steps in this process, chunk by chunk: errors come after the records that precede them."""
    engine = InlineEngine(config, "reference", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    for _ in range(config.steps):
        engine.advance(2)


# ---- workers that die ----------------------------------------------------------------------------------------------


def test_three_workers_killed_in_three_places(engine: RayEngine, tmp_path: Path) -> None:
    """In `statistics`, between `statistics` and `rows`, and during the exchange of an HGP step: no step is lost."""
    config = faulty_config(
        tmp_path,
        fault("kill", "a", 1),
        fault("kill", "c", 3, "surrogate"),
        fault("kill", "b", 4, "respond"),
        objective="faulty_hgp",
        alignment={"detach_mean": False},
    )
    began = time.monotonic()
    state, records, notices = on_ray(engine, config)
    print(f"three deaths: {time.monotonic() - began:.1f} s; {notices}")
    expected, expected_records = undisturbed(config)
    assert marks(tmp_path) == ["batch-kill-a-1-0", "respond-kill-b-4-0", "surrogate-kill-c-3-0"]
    assert digest(state) == digest(expected)
    assert same_records(records, expected_records)
    assert engine.restarts == {"a": 1, "b": 1, "c": 1}
    notices = restarts_in(notices)
    assert len(notices) == 3
    for (name, step), notice in zip((("a", 1), ("c", 3), ("b", 4)), notices, strict=True):
        assert f"domain `{name}`" in notice
        assert f"at step {step};" in notice
        assert "restart 1/3" in notice
        pid = marked_pid(tmp_path, f"kill-{name}-{step}-0")
        assert f"worker process {pid} died (SYSTEM_ERROR: " in notice
        assert not alive(pid)
    assert digest(undisturbed(config, STEPS - 1)[0]) != digest(state)  # the digest sees a lost step


def test_worker_that_dies_while_it_evaluates(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("exit", "b", 2, "evaluation"))
    state, _, notices = on_ray(engine, config, 3)
    jobs = [("b", "val"), ("b", "test")]
    found = engine.evaluate(jobs)
    assert marks(tmp_path) == ["evaluation-exit-b-2-0"]
    (notice,) = restarts_in(notices)
    assert "domain `b`" in notice
    assert found == engine.evaluate(jobs)
    assert [(m.domain, m.split) for m in found] == jobs
    assert engine.advance(1)[0].step == 3
    assert digest(engine.snapshot()) == digest(undisturbed(config, 4)[0]) != digest(state)


def test_a_restart_after_the_last_step_is_in_the_summary(ray_session: None, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("exit", "a", 1, "evaluation"), **ALONE, steps=2, eval_every=2)
    result = train(config, tmp_path)
    assert marks(tmp_path) == ["evaluation-exit-a-1-0"]
    assert result.summary["restarts"] == {"a": 1}


def test_worker_that_hangs(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("stop", "b", 2), cluster={"step_timeout_s": 8})
    began = time.monotonic()
    state, records, notices = on_ray(engine, config)
    print(f"a hung worker with a limit of 8 s: {time.monotonic() - began:.1f} s; {notices}")
    expected, expected_records = undisturbed(config)
    assert marks(tmp_path) == ["batch-stop-b-2-0"]
    assert digest(state) == digest(expected)
    assert same_records(records, expected_records)
    assert engine.restarts == {"a": 0, "b": 1, "c": 0}
    assert re.search(
        r"domain `b`: no answer within \d+ s .*step_timeout_s.* at step 2; restart 1/3", "\n".join(notices)
    )
    pid = marked_pid(tmp_path, "stop-b-2-0")
    eventually(lambda: not alive(pid))


def test_replacement_that_answers_differently(engine: RayEngine, tmp_path: Path) -> None:
    """The lost worker's statistics were used by nobody else: all repeat the step with those of its replacement."""
    dead = "surrogate-kill-b-2-0"
    config = faulty_config(tmp_path, fault("kill", "b", 2, "surrogate"), fault("differ", "b", 2, after=dead, times=0))
    before, _ = run_inline(config.model_copy(update={"dataset_options": {}}), STEPS)
    state, records, notices = on_ray(engine, config)
    assert dead in marks(tmp_path)
    assert "batch-differ-b-2-0" in marks(tmp_path)
    assert engine.restarts == {"a": 0, "b": 1, "c": 0}
    assert any("domain `b`" in n and "at step 2; restart 1/3" in n for n in notices)
    assert any("answers step 2 with other bits" in n and "all domains repeat the step" in n for n in notices)
    expected, expected_records = run_inline(config, STEPS)  # the mark is there: the batch differs from the beginning
    assert digest(state) == digest(expected) != digest(before)
    assert same_records(records, expected_records)


# ---- state ---------------------------------------------------------------------------------------------------------


def test_state_goes_from_engine_to_engine(engine: RayEngine, tmp_path: Path) -> None:
    """As when a run is interrupted and resumed under the other engine: moments, schedule, dropout and probes go on."""
    config = faulty_config(
        tmp_path,
        model_options={"hidden": [512], "dropout": 0.3},
        optimizer={"name": "adamw", "schedule": "cosine", "warmup_steps": 2},
        alignment={"estimator": "hutchinson", "probe_sets": "released"},
    )
    first, _, _ = on_ray(engine, config, 2)
    second, _ = run_inline(config, 2, first)
    third, records, _ = on_ray(engine, config, 2, second)
    assert [record.step for record in records] == [4, 5]
    assert digest(third) == digest(run_inline(config, STEPS)[0])


# ---- exceptions in a worker ----------------------------------------------------------------------------------------


def test_exception_that_comes_twice_is_fatal(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("raise", "c", 1, "surrogate", times=0))
    with pytest.raises(WorkerError, match="Domain `c`, step 1: RuntimeError: a bug of the user's") as caught:
        on_ray(engine, config)
    assert "twice" in str(caught.value)
    assert "go_wrong" in "".join(traceback.format_exception(caught.value))  # what goes to the run's log
    assert marks(tmp_path) == ["surrogate-raise-c-1-0", "surrogate-raise-c-1-1"]


def test_exception_that_comes_once_is_survived(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("raise", "c", 1))
    state, _, notices = on_ray(engine, config, 3)
    assert marks(tmp_path) == ["batch-raise-c-1-0"]
    assert "RuntimeError: a bug of the user's at step 1; restart 1/3" in restarts_in(notices)[0]
    assert digest(state) == digest(undisturbed(config, 3)[0])


def test_our_own_errors_come_as_themselves(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("data", "a", 2))
    with pytest.raises(DataError, match=r"^Image 7 must be readable"):
        on_ray(engine, config)
    assert marks(tmp_path) == ["batch-data-a-2-0"]  # asked once: it would not get better


# ---- numbers that are not finite -----------------------------------------------------------------------------------

SPOILED = {
    "nan in the images": (fault("nan", "b", 2, times=0), "domain `b`: the loss is nan"),
    "inf in a gradient": (
        fault("infinite", "b", 2, "gradient", times=0),
        "domain `b`: the classification gradient has 1 non-finite value(s), first in `head.weight`",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_nonfinite_step_is_skipped(engine: RayEngine, tmp_path: Path, case: str) -> None:
    """Weights and moments stay, batches and schedule go on; a run that jumps over the step ends in the same weights."""
    spoiled, reason = SPOILED[case]
    schedule = {"schedule": "cosine", "warmup_steps": 2}
    config = faulty_config(tmp_path, spoiled, optimizer=schedule)
    inline, inline_records = run_inline(config, STEPS)
    assert marks(tmp_path)
    state, records, _ = on_ray(engine, config)
    assert digest(state) == digest(inline)
    assert [r.skipped for r in records] == [r.skipped for r in inline_records] == ["", "", reason, "", "", ""]
    assert state.skipped == [2]

    before, _ = undisturbed(config, 2)
    after, _ = run_inline(config, 3)
    assert (after.step, after.skipped) == (3, [2])
    assert digest(dataclasses.replace(after, step=2, skipped=[])) == digest(before)

    jumped, jumped_records = run_inline(without_faults(config), 3, dataclasses.replace(before, step=3))
    assert torch.equal(state.theta_P, jumped.theta_P)
    assert [r.values["lr"] for r in records[3:]] == [r.values["lr"] for r in jumped_records]
    assert not torch.equal(state.theta_P, undisturbed(config)[0].theta_P)


def test_notice_of_a_skipped_step(tmp_path: Path) -> None:
    notices = Notices()
    config = faulty_config(tmp_path, fault("nan", "a", 3), **ALONE, engine="inline")
    result = train(config, tmp_path, notices)
    assert marks(tmp_path) == ["batch-nan-a-3-0"]
    assert notices.lines == ["step 3 skipped: domain `a`: the loss is nan"]
    assert result.summary["skipped_steps"] == 1


def test_nonfinite_step_aborts(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("nan", "a", 1, times=0), on_nonfinite="abort")
    with pytest.raises(NumericError, match=r"^Step 1: domain `a`: the loss is nan\.") as on_cluster:
        on_ray(engine, config)
    run_inline(config, 1)  # the first step is fine
    with pytest.raises(NumericError) as inline:
        inline_to_the_end(config)
    assert str(inline.value) == str(on_cluster.value)
    assert NumericError.exit_code == 5


@pytest.mark.parametrize("consecutive", [4, 5])
def test_nonfinite_steps_in_a_row(engine: RayEngine, tmp_path: Path, consecutive: int) -> None:
    config = faulty_config(tmp_path, *(fault("nan", "b", 1 + n, times=0) for n in range(consecutive)), steps=8)
    if consecutive < 5:
        state, records, _ = on_ray(engine, config, 8)
        assert state.skipped == [1, 2, 3, 4]
        assert digest(state) == digest(run_inline(config, 8)[0])
        assert math.isfinite(records[-1].losses["b"])
        return
    with pytest.raises(NumericError, match=r"^Step 5: domain `b`: the loss is nan\. 5 of the last") as caught:
        on_ray(engine, config, 8)
    with pytest.raises(NumericError) as inline:
        inline_to_the_end(config)
    assert str(inline.value) == str(caught.value)


def test_too_many_nonfinite_steps(tmp_path: Path) -> None:
    """Never two in a row, and more than ten in a thousand."""
    config = faulty_config(tmp_path, *(fault("nan", "b", 2 * n) for n in range(11)), steps=30)
    with pytest.raises(NumericError, match=r"^Step 20: domain `b`: the loss is nan\. 11 of the last 1000"):
        inline_to_the_end(config)
    assert len(marks(tmp_path)) == 11


# ---- ends of whole runs --------------------------------------------------------------------------------------------


def test_worker_that_dies_every_time(engine: RayEngine, tmp_path: Path) -> None:
    """The last test with this engine; that nothing is left of it is asserted where it is closed."""
    config = faulty_config(tmp_path, fault("kill", "a", 1, times=0), cluster={"max_worker_restarts": 2})
    with pytest.raises(WorkerError) as caught:
        on_ray(engine, config)
    assert marks(tmp_path) == [f"batch-kill-a-1-{n}" for n in range(3)]
    assert caught.value.exit_code == 7
    said, last = str(caught.value), marked_pid(tmp_path, "kill-a-1-2")
    assert re.search(rf"omain `a` .*step 1 .*2 restart.*: worker process {last} died \(SYSTEM_ERROR: ", said)


@pytest.fixture
def nothing_left(ray_session: None) -> Iterator[None]:
    """No actor and no placement group more than before."""
    with nothing_more():
        yield


@pytest.mark.usefixtures("nothing_left")
def test_coordinator_that_dies(tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("kill_coordinator", "a", 2), **ALONE)
    began = time.monotonic()
    with pytest.raises(ClusterError, match=r"coordinator died \(SYSTEM_ERROR: .*resume=auto"):
        train(config, tmp_path)
    print(f"coordinator killed: the run had ended after {time.monotonic() - began:.1f} s")
    assert marks(tmp_path) == ["batch-kill_coordinator-a-2-0"]


@pytest.mark.usefixtures("nothing_left")
def test_coordinator_that_hangs(tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("stop_coordinator", "a", 2), cluster={"step_timeout_s": 5}, **ALONE)
    with pytest.raises(ClusterError, match=r"coordinator has not answered for .*resume=auto"):
        train(config, tmp_path)
    assert marks(tmp_path) == ["batch-stop_coordinator-a-2-0"]
