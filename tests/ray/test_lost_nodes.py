"""Nodes that are lost or taken away while a run is on them, on a real cluster of several nodes on this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import names
from tests.fault_plugin import marks
from tests.faults import End, end_of, fault, faulty_config, train
from tests.programs import carried_out, short_folder
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

STEPS = 60
CLUSTER = {"cpus_per_worker": 1, "bundles": {"b": {"resources": {"spot": 1}}}, "start_timeout_s": PATIENCE_S}
GONE_S = 40.0
"""How long a run waits for a node that does not come; it must also have started in this time."""


@dataclass(frozen=True)
class Told:
    error: str
    notices: list[str]
    seconds: float
    times: dict[str, float]
    left: list[str]


def config_of(folder: Path, name: str, *faults: dict[str, Any], **changes: Any) -> dict[str, Any]:
    cluster = {**CLUSTER, **changes.pop("cluster", {})}
    config = faulty_config(
        folder / "marks" / name, *faults, sources=["a", "b"], model_options={"hidden": [16]}, steps=STEPS,
        eval_every=STEPS, checkpoint={"every": 100, "keep": 10}, name=name, output=str(folder / "runs"),
        engine="ray", **changes,
    )  # fmt: skip
    values = config.model_dump(mode="json")
    values["cluster"] |= cluster
    return values


def entry(folder: Path, name: str, then: list[list[Any]], *faults: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A run at whose step 3 the nodes begin to change."""
    (folder / "marks" / name).mkdir(parents=True)
    config = config_of(folder, name, *(faults or [HELD]), **changes)
    mark = f"batch-{config['dataset_options']['faults'][0]['kind']}-a-3-0"
    return {"name": name, "config": config, "marks": f"marks/{name}", "mark": mark, "then": then}


HELD = fault("hold", "a", 3, until="released")


def todo(folder: Path) -> list[dict[str, Any]]:
    slow = [fault("wait", "a", -1, times=0, seconds=0.3, until="released"),
            fault("hold", "a", STEPS - 2, until="released")]  # fmt: skip
    return [
        entry(folder, "drained",
              [["drain", 600], ["add", 0], ["told", "will be taken away"], ["remove", 0], ["release", 0]],
              *slow, cluster={"max_worker_restarts": 0}),
        entry(folder, "back", [["remove", 0], ["release", 0], ["wait", 5], ["add", 0]],
              cluster={"transport": "collective"}),
        entry(folder, "gone", [["remove", 0], ["release", 0]], cluster={"start_timeout_s": GONE_S}),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder("lost") as path:
        yield path


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Told]:
    done = carried_out("tests.lost_nodes", folder, todo(folder), 3 * PATIENCE_S)
    found = {name: Told(**one) for name, one in done.items()}
    for name, one in found.items():
        print(f"{name}: {one.seconds:.1f} s; {one.notices}; {one.error}")
        assert any(mark.endswith("-a-3-0") for mark in marks(folder / "marks" / name))
        assert one.left == []
    return found


@pytest.fixture(scope="module")
def straight(folder: Path) -> End:
    """The same run in one process, without faults."""
    (folder / "marks" / "straight").mkdir(parents=True)
    config = faulty_config(
        folder / "marks" / "straight", sources=["a", "b"], model_options={"hidden": [16]}, steps=STEPS,
        eval_every=STEPS, checkpoint={"every": 100, "keep": 10}, engine="inline", name="straight",
    )  # fmt: skip
    return end_of(train(config, folder).run_dir)


def same_end(run_dir: Path, straight: End) -> bool:
    found = end_of(run_dir)
    return (found.weights, found.state, found.records) == (straight.weights, straight.state, straight.records)


def test_the_domain_of_a_lost_node_waits_for_another(told: dict[str, Told], folder: Path, straight: End) -> None:
    """It comes seconds later; rows go from worker to worker, and the state comes from the worker that is left."""
    found = told["back"]
    assert found.error == ""
    assert "transport: collective (gloo), asked for" in found.notices
    assert same_end(folder / "runs" / "back", straight)
    restarts = json.loads((folder / "runs" / "back" / "summary.json").read_text())["restarts"]
    assert restarts == {"a": 0, "b": 1}
    (said,) = (line for line in found.notices if "restart 1/3" in line)
    assert re.search(r"domain `b`: worker process \d+ .* at step \d+; restart 1/3 took .*, on another node", said)


def test_a_node_that_is_taken_away_with_notice(told: dict[str, Told], folder: Path, straight: End) -> None:
    """`cluster.max_worker_restarts` is 0: it counts as none. Checkpoints are written every 100 steps, and then.

    Another node has room.
    """
    found = told["drained"]
    assert found.error == ""
    assert same_end(folder / "runs" / "drained", straight)
    (warned,) = (line for line in found.notices if "will be taken away" in line)
    assert re.search(
        r"node \w{6} will be taken away at [\d:]{8}, with b: the checkpoint of step \d+ is written", warned
    )
    step = int(re.findall(r"step (\d+)", warned)[0])
    saved = folder / "runs" / "drained" / "checkpoints" / f"step-{step:08d}"
    assert saved.name in names(saved.parent)
    assert found.times["drain"] < (saved / "manifest.json").stat().st_mtime < found.times["remove"]
    assert any("counts as no restart" in line for line in found.notices)
    summary = json.loads((folder / "runs" / "drained" / "summary.json").read_text())
    assert summary["restarts"] == {"a": 0, "b": 0}


def test_a_node_that_does_not_come_back(told: dict[str, Told], folder: Path) -> None:
    found = told["gone"]
    assert found.error.startswith(
        f"4 A node must have room for domain `b` within {GONE_S:g} s of the loss of its own at step"
    )
    assert "spot: wanted 1, free 0 of 0" in found.error
    assert "resume=auto" in found.error
    assert not (folder / "runs" / "gone" / "summary.json").exists()
