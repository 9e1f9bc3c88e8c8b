"""Workers that die, hang, raise or answer with NaN, and a coordinator that dies: on a real Ray, by real signals.

Every test asserts that its fault fired (the plug-in leaves a mark), and compares with a run in which it did not.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from difc_ray import cli
from difc_ray.config import Config
from difc_ray.distributed.engine import RayEngine
from difc_ray.errors import DataError, DifcError, NumericError, WorkerError
from difc_ray.global_step import StepRecord, TrainState
from difc_ray.local_step import Statistics, Token
from difc_ray.preparation import prepare
from tests.fault_plugin import marks
from tests.runs import digest, faulty_config, our_actors, run_inline, same_records, write_yaml

pytestmark = pytest.mark.ray

STEPS = 6
RUNS = itertools.count()


@pytest.fixture(scope="module")
def engine(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayEngine]:
    config = faulty_config(tmp_path_factory.mktemp("nothing"), cluster={"cpus_per_worker": 0.5})
    notices: list[str] = []
    engine = RayEngine(config, "first", lambda: False, notices.append)
    engine.connect()
    engine.start(prepare(config, None).state)
    yield engine
    engine.close()
    assert our_actors() == []


def on_ray(engine: RayEngine, config: Config, steps: int = STEPS) -> tuple[TrainState, list[StepRecord], list[str]]:
    """So many steps, chunk by chunk as the loop asks for them: state, records, notices."""
    notices: list[str] = []
    engine.notice = notices.append
    engine.begin(config, f"run-{next(RUNS)}", prepare(config, None).state)
    records: list[StepRecord] = []
    while len(records) < steps:
        records += engine.advance(min(4, steps - len(records)))
    return engine.snapshot(), records, notices


def undisturbed(config: Config, steps: int = STEPS) -> tuple[TrainState, list[StepRecord]]:
    """The same run without faults, in this process."""
    options = {**config.dataset_options, "faults": []}
    return run_inline(config.model_copy(update={"dataset_options": options}), steps)


def fault(kind: str, domain: str, step: int, where: str = "batch", **more: Any) -> dict[str, Any]:
    return {"kind": kind, "domain": domain, "step": step, "where": where, **more}


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
    assert len(notices) == 3
    for (name, step), notice in zip((("a", 1), ("c", 3), ("b", 4)), notices, strict=True):
        assert f"domain `{name}`" in notice
        assert f"at step {step};" in notice
        assert "restart 1/3" in notice
        pid = marked_pid(tmp_path, f"kill-{name}-{step}-0")
        assert f"pid {pid}" in notice
        assert not psutil.pid_exists(pid)
    assert digest(undisturbed(config, STEPS - 1)[0]) != digest(state)  # the digest sees a lost step


def test_worker_that_dies_while_it_evaluates(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("exit", "b", 2, "evaluation"))
    state, _, notices = on_ray(engine, config, 3)
    jobs = [("a", "val"), ("b", "val"), ("c", "val"), ("d", "all"), ("b", "test")]
    found = engine.evaluate(jobs)
    assert marks(tmp_path) == ["evaluation-exit-b-2-0"]
    assert len(notices) == 1
    assert "domain `b`" in notices[0]
    assert found == engine.evaluate(jobs)
    assert [(m.domain, m.split) for m in found] == jobs
    assert engine.advance(1)[0].step == 3
    assert digest(engine.snapshot()) == digest(undisturbed(config, 4)[0]) != digest(state)


def test_worker_that_hangs(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("stop", "b", 2), cluster={"step_timeout_s": 3})
    began = time.monotonic()
    state, records, notices = on_ray(engine, config)
    print(f"a hung worker with a limit of 3 s: {time.monotonic() - began:.1f} s; {notices}")
    expected, expected_records = undisturbed(config)
    assert marks(tmp_path) == ["batch-stop-b-2-0"]
    assert digest(state) == digest(expected)
    assert same_records(records, expected_records)
    assert engine.restarts == {"a": 0, "b": 1, "c": 0}
    assert re.search(r"domain `b`: no answer within 3 s .*step_timeout_s.* at step 2; restart 1/3", notices[0])
    pid = marked_pid(tmp_path, "stop-b-2-0")
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_replacement_that_answers_differently(engine: RayEngine, tmp_path: Path) -> None:
    """The lost worker's statistics were used by nobody else: all repeat the step with those of its replacement."""
    dead = "surrogate-kill-b-2-0"
    config = faulty_config(
        tmp_path, fault("kill", "b", 2, "surrogate"), fault("differ", "b", 2, after=dead, times=0)
    )
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


# ---- exceptions in a worker ----------------------------------------------------------------------------------------


def test_exception_that_comes_twice_is_fatal(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("raise", "c", 1, "surrogate", times=0))
    with pytest.raises(WorkerError, match="Domain `c`, step 1: RuntimeError: a bug of the user's") as caught:
        on_ray(engine, config)
    assert "twice" in str(caught.value)
    log = Path(re.search(r"traceback is in (\S+)\.", str(caught.value))[1])  # type: ignore[index]
    assert "a bug of the user's" in log.read_text()
    assert marks(tmp_path) == ["surrogate-raise-c-1-0", "surrogate-raise-c-1-1"]


def test_exception_that_comes_once_is_survived(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("raise", "c", 1))
    state, _, notices = on_ray(engine, config, 3)
    assert marks(tmp_path) == ["batch-raise-c-1-0"]
    assert "RuntimeError: a bug of the user's at step 1; restart 1/3" in notices[0]
    assert digest(state) == digest(undisturbed(config, 3)[0])


def test_our_own_errors_come_as_themselves(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("data", "a", 2))
    with pytest.raises(DataError, match="^Image 7 must be readable"):
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
    assert dataclasses.replace(after, step=2, skipped=[]).step == before.step
    assert digest(dataclasses.replace(after, step=2, skipped=[])) == digest(before)

    jumped, jumped_records = undisturbed(config, 2)
    jumped, jumped_records = run_inline(without_faults(config), 3, dataclasses.replace(jumped, step=3))
    assert torch.equal(state.theta_P, jumped.theta_P)
    assert [r.values["lr"] for r in records[3:]] == [r.values["lr"] for r in jumped_records]
    assert not torch.equal(state.theta_P, undisturbed(config)[0].theta_P)


def test_notice_of_a_skipped_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {**as_arguments(faulty_config(tmp_path, fault("nan", "c", 3))), "engine": "inline", "output": str(tmp_path)}
    assert cli.execute(["train", "--config", str(write_yaml(tmp_path / "c.yaml", config))]) == 0
    assert "step 3 skipped: domain `c`: the loss is nan" in capsys.readouterr().out
    assert marks(tmp_path) == ["batch-nan-c-3-0"]


def test_nonfinite_step_aborts(engine: RayEngine, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("nan", "a", 1, times=0), on_nonfinite="abort")
    with pytest.raises(NumericError, match=r"^Step 1: domain `a`: the loss is nan\.") as on_cluster:
        on_ray(engine, config)
    with pytest.raises(NumericError) as inline:
        run_inline(config, 1)  # the first step is fine
        run_inline_all(config)
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
        run_inline_all(config)
    assert str(inline.value) == str(caught.value)


# ---- ends of whole runs --------------------------------------------------------------------------------------------


def test_worker_that_dies_every_time(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = faulty_config(tmp_path, fault("kill", "a", 1, times=0), cluster={"max_worker_restarts": 2}, **ALONE)
    code, said = train(config, tmp_path, capsys)
    assert code == WorkerError.exit_code == 7
    assert "Domain `a` failed at step 1 and has used its 2 restart(s): worker died" in said
    assert f"pid {marked_pid(tmp_path, 'kill-a-1-2')}" in said
    assert marks(tmp_path) == [f"batch-kill-a-1-{n}" for n in range(3)]
    nothing_left()


def test_coordinator_that_dies(ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = faulty_config(tmp_path, fault("kill_coordinator", "a", 2), **ALONE)
    began = time.monotonic()
    code, said = train(config, tmp_path, capsys)
    print(f"coordinator killed: the run had ended after {time.monotonic() - began:.1f} s")
    assert marks(tmp_path) == ["batch-kill_coordinator-a-2-0"]
    assert code == 4
    assert "The coordinator is gone" in said
    assert "resume=auto" in said
    nothing_left()


ALONE: dict[str, Any] = {"sources": ["a"], "objective": "erm", "harmonize": {"rule": "mean"}}
"""One domain: two actors, which start faster than four."""


def train(config: Config, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """`difc-ray train` in this process on the session's Ray: exit code and what it said on standard error."""
    values = {**as_arguments(config), "output": str(folder / "runs"), "engine": "ray"}
    code = cli.execute(["train", "--config", str(write_yaml(folder / "config.yaml", values))])
    return code, capsys.readouterr().err


def as_arguments(config: Config) -> dict[str, Any]:
    """The configuration as a file has it."""
    values: dict[str, Any] = config.model_dump(mode="json")
    return values


def without_faults(config: Config) -> Config:
    return config.model_copy(update={"dataset_options": {}})


def run_inline_all(config: Config) -> None:
    """Chunk by chunk until an error."""
    from difc_ray.reference import InlineEngine

    engine = InlineEngine(config, "reference", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    for _ in range(config.steps):
        engine.advance(2)


def marked_pid(folder: Path, ending: str) -> int:
    """Who left the mark."""
    (found,) = folder.glob(f"*-{ending}")
    return int(found.read_text())


def nothing_left() -> None:
    """No actor, no placement group."""
    eventually(lambda: our_actors() == [])
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} <= {"REMOVED", "CREATED"}


def eventually(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
