"""A trial that the scheduler has stopped stays stopped, whatever ends its last evaluation."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import Config
from difc_ray.engines.inline import InlineEngine
from difc_ray.step.evaluation import SplitMetrics
from difc_ray.step.worker import ModelState
from difc_ray.sweeps.folder import SweepFolder
from difc_ray.sweeps.space import read_space
from difc_ray.sweeps.trial import LOOK_S, Engines, SweepInfo, Trial
from difc_ray.sweeps.trials import base_config, check_sweep
from difc_ray.tracking.journal import read_records
from tests.sweeps import space_file

pytestmark = pytest.mark.ray

COMMAND = "difc-ray tune space.yaml --resume name=s"


class InterruptedThere(InlineEngine):
    """The sweep's interruption arrives while the evaluation at the end of a stopped trial is under way."""

    sweep: Path
    armed = False

    def evaluate(self, jobs: Sequence[tuple[str, str]], state: ModelState | None = None) -> list[SplitMetrics]:
        if self.armed and state is not None:
            (self.sweep / "interrupted").touch()
            time.sleep(2 * LOOK_S)
        return super().evaluate(jobs, state)


class Alone(Trial):
    """Tune's side of a trial without Tune: told by hand what Tune would tell it."""

    number = 0

    def setup(self, config: dict[str, Any], info: SweepInfo | None = None) -> None:
        super().setup(config["config"], config["info"])

    @property
    def trial_name(self) -> str:
        return f"trial-{self.number:05d}"


class Arming(Engines):
    """Hands out the engine above."""

    last: InterruptedThere

    def make(
        self, config: Config, run: str, interrupted: Callable[[], bool], notice: Callable[[str], None]
    ) -> InterruptedThere:
        self.last = InterruptedThere(config, run, interrupted, notice)
        self.last.sweep = config.output.parent
        return self.last


def test_an_interrupted_end_of_a_stopped_trial_is_made_up_for(tmp_path: Path, ray_session: None) -> None:
    here = Path.cwd()
    tracking = {"mode": "on", "uri": f"sqlite:///{tmp_path / 'store.db'}"}
    path = space_file(
        tmp_path, {"tracking": tracking, "checkpoint": {"every": 100, "keep": 3}},
        space={"optimizer.lr": {"grid": [0.02, 0.03]}}, scheduler={"asha": {"grace_period": 4}},
    )  # fmt: skip
    space = read_space(path)
    base = base_config(space, None, ["name=s"])
    points = check_sweep(space, base, [])
    folder = SweepFolder(base.output / "s")
    folder.create(space, base, points, "")
    info = SweepInfo(
        folder=folder.path, base=base, points=dict(enumerate(points)), seeds=(0,), metric=space.metric, mode="min",
        scheduler="asha", parent="", cwd=os.getcwd(), resume=COMMAND,
    )  # fmt: skip
    config = {"config": {"point": {"number": 0, "values": points[0].values}}, "info": info}
    trial = Alone(config)
    trial.engines = engines = Arming()
    assert trial.step()["step"] == 4
    assert trial.step()["step"] == 8
    engines.last.armed = True
    trial._leave(1)  # Tune goes on to another trial: ASHA has stopped this one
    record = folder.record(0)
    assert record is not None
    assert (record.status, record.stopping, record.stops_at) == ("interrupted", "asha at step 8", 8)
    assert f"in the final evaluation; the checkpoint is written. Continue with `{COMMAND}`." in record.reason
    assert folder.summary(0) is None
    tags: dict[str, str] = {}
    for entry in read_records(folder.run_dir(0) / "metrics.jsonl"):
        tags |= entry.data.get("tags", {})
    assert (tags["sweep.status"], COMMAND in tags["mlflow.note.content"]) == ("interrupted", True)

    folder.interrupted.unlink()
    again = Alone(config)
    assert again.step() == {"__duplicate__": True, "number": 0, "done": True}
    record = folder.record(0)
    assert record is not None
    assert (record.status, record.reason, record.step) == ("stopped", "asha at step 8", 8)
    summary = folder.summary(0)
    assert summary is not None
    assert (summary["steps"], summary["stopped"]) == (8, "asha at step 8")
    assert folder.evaluations(0).steps == [4, 8]
    entries = list(read_records(folder.run_dir(0) / "metrics.jsonl"))
    for entry in entries:
        tags |= entry.data.get("tags", {})
    assert (tags["sweep.status"], tags["sweep.stopped"]) == ("stopped", "asha at step 8")
    assert "has come to its end" in tags["mlflow.note.content"]
    assert [entry.data["run_name"] for entry in entries if entry.kind == "start"] == ["s-00000"] * 2
    assert entries[-1].data["status"] == "KILLED"
    again.cleanup()
    assert Path.cwd() == here
