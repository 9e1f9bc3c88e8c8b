"""A run that was interrupted and resumed ends as one that was not: weights, optimizer, accuracies, every record.

The interruption is a real SIGINT that the data set sends to this process in the middle of a step, so the run ends by
itself after that step, as with Ctrl-C. How a state comes to Ray and back: test_faults.py.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import Config
from difc_ray.errors import CheckpointError, Interrupted
from tests.checkpoints import names
from tests.fault_plugin import CHANGED, marks
from tests.faults import End, Notices, end_of, fault, faulty_config, resume, train

pytestmark = pytest.mark.slow

STEPS, EVALUATED, SAVED = 12, 4, 3
"""The run, and how often it is evaluated and saved."""

CHANGES: dict[str, Any] = {
    "sources": ["a", "b"],
    "target": "d",
    "model_options": {"hidden": [16], "dropout": 0.3},
    "alignment": {"estimator": "hutchinson", "probe_sets": "released", "anneal": {"steps": 6, "weight_after": 3.0}},
    "optimizer": {"name": "adamw", "schedule": "cosine", "warmup_steps": 2, "lr": 0.01},
    "loss": "difc",
    "loss_options": {"confusion_from": 0.1, "reweight_from": 0.6},
    "steps": STEPS,
    "eval_every": EVALUATED,
    "checkpoint": {"every": SAVED, "keep": 10},
    "engine": "inline",
}
"""Everything that could be forgotten between two steps: dropout, probes, annealing, schedule, moments, margins."""


def config_of(folder: Path, *faults: dict[str, Any], **changes: Any) -> Config:
    return faulty_config(folder, *faults, **{**CHANGES, **changes})


def interruption(after: int) -> dict[str, Any]:
    """A signal in the middle of the step that makes it so many."""
    return fault("signal", "b", after - 1, number=signal.SIGINT)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> End:
    return end_of(train(config_of(tmp_path_factory.mktemp("marks")), tmp_path_factory.mktemp("straight")).run_dir)


def interrupted(folder: Path, *after: int, **changes: Any) -> Path:
    """A run that was interrupted after so many steps, resumed, interrupted again ...; its folder."""
    run_dir = folder / "runs" / "test"
    config = config_of(folder, *map(interruption, after), **changes)
    for count, steps in enumerate(after):
        with pytest.raises(Interrupted, match=f"SIGINT after step {steps};") as caught:
            train(config, folder) if count == 0 else resume(run_dir)
        assert caught.value.code == 130
        assert (run_dir / "checkpoints" / f"step-{steps:08d}").is_dir()
    assert marks(folder) == sorted(f"batch-signal-b-{steps - 1}-0" for steps in after)
    return run_dir


@pytest.mark.parametrize("after", [1, SAVED, EVALUATED, 6, 11, STEPS])
def test_resumed_is_straight(straight: End, tmp_path: Path, after: int) -> None:
    run_dir = interrupted(tmp_path, after)
    assert not (run_dir / "summary.json").exists()
    resume(run_dir)
    assert end_of(run_dir) == straight


def test_resumed_again_and_again(straight: End, tmp_path: Path) -> None:
    run_dir = interrupted(tmp_path, 1, 4, 6, 7)
    resume(run_dir)
    assert end_of(run_dir) == straight


def test_negative_control(straight: End, tmp_path: Path) -> None:
    """The comparison sees another seed, and one step less."""
    other = end_of(train(config_of(tmp_path, seed=1, name="other"), tmp_path).run_dir)
    assert {name for name in straight.weights if other.weights[name] == straight.weights[name]} == set()
    shorter = end_of(train(config_of(tmp_path, steps=STEPS - 1, name="shorter"), tmp_path).run_dir)
    assert shorter.weights != straight.weights
    assert shorter.state != straight.state


def test_resumed_with_more_steps(tmp_path: Path) -> None:
    """A finished run goes on: the schedule must not depend on the length."""
    ends = {"confusion_from": 0.0, "reweight_from": 1.0}
    constant = {"optimizer": {"schedule": "constant"}, "loss_options": ends}
    longer = end_of(train(config_of(tmp_path, name="longer", **constant), tmp_path).run_dir)
    short = train(config_of(tmp_path, steps=2 * EVALUATED, **constant), tmp_path).run_dir
    assert end_of(short).weights != longer.weights
    resume(short, f"steps={STEPS}")
    assert end_of(short) == End(longer.weights, longer.state, {**longer.summary, "name": "test"}, longer.records)
    with pytest.raises(CheckpointError, match="`steps` cannot change"):
        resume(interrupted(tmp_path / "cosine", 2), "steps=20")


# ---- checkpoints that are damaged ----------------------------------------------------------------------------------


def truncate(checkpoint: Path) -> None:
    os.truncate(checkpoint / "weights.safetensors", 100)


def flip(checkpoint: Path) -> None:
    content = bytearray((checkpoint / "state.safetensors").read_bytes())
    content[-5] ^= 4
    (checkpoint / "state.safetensors").write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, flip])
def test_newest_checkpoint_is_damaged(straight: End, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    run_dir = interrupted(tmp_path, 8)
    damage(run_dir / "checkpoints" / "step-00000008")
    notices = Notices()
    resume(run_dir, notices=notices)
    (said,) = (line for line in notices.lines if "step-00000008" in line)
    assert "rejected" in said
    assert said.endswith("using 6")
    assert end_of(run_dir) == straight


def test_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    run_dir = interrupted(tmp_path, 4)
    found = names(run_dir / "checkpoints")
    for checkpoint in (run_dir / "checkpoints").glob("step-*"):
        truncate(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        resume(run_dir)
    assert caught.value.exit_code == 6
    for step in (0, 3, 4):
        assert f"step-{step:08d}: " in str(caught.value)
    with pytest.raises(CheckpointError):
        resume("auto", f"output={run_dir.parent}")  # not a silent new start
    assert names(run_dir / "checkpoints") == found
    assert names(run_dir.parent) == ["test"]


# ---- another run ---------------------------------------------------------------------------------------------------


def test_changed_configuration(tmp_path: Path) -> None:
    run_dir = interrupted(tmp_path, 2)
    changes = ("model=mlp", "harmonize.rule=mean", "seed=3", "sources=a,c", "eval_every=6", "cluster.step_timeout_s=9")
    with pytest.raises(CheckpointError) as caught:
        resume(run_dir, *changes)
    assert caught.value.exit_code == 6
    for key, was, now in (("model", "faulty_mlp", "mlp"), ("harmonize.rule", "ghpp", "mean"), ("seed", "0", "3")):
        (line,) = (line for line in str(caught.value).splitlines() if f"`{key}`" in line)
        assert f"`{was}`" in line
        assert f"`{now}`" in line
    assert "`sources`" in str(caught.value)
    assert "eval_every" not in str(caught.value)
    assert "step_timeout_s" not in str(caught.value)


def test_changed_data(tmp_path: Path) -> None:
    """The same configuration, and other images behind it."""
    run_dir = interrupted(tmp_path, 2)
    (tmp_path / CHANGED).touch()
    with pytest.raises(CheckpointError, match=r"(?s)data must be that of the run.*fingerprint") as caught:
        resume(run_dir)
    assert caught.value.exit_code == 6
    (tmp_path / CHANGED).unlink()
    resume(run_dir)


def test_auto_takes_the_newest_run(straight: End, tmp_path: Path) -> None:
    train(config_of(tmp_path, name="finished", steps=3), tmp_path)
    run_dir = interrupted(tmp_path, 3)
    resume("auto", f"output={run_dir.parent}")
    assert end_of(run_dir) == straight
    shutil.rmtree(run_dir)
