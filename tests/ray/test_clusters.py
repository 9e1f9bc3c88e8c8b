"""Placement and preflight on a real cluster of two (later three) nodes, by command lines."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.shell import SENTENCE
from tests.programs import carried_out, short_folder
from tests.runs import small_config, train
from tests.waiting import PATIENCE_S

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RUN = [
    "sources=mnist,fonts",
    "model=mlp",
    "batch_size=8",
    "steps=4",
    "eval_every=4",
    "target=null",
    "tracking.mode=off",
]
WHERE = ["cluster.bundles.mnist.resources.site_b=1", "cluster.bundles.fonts.labels.zone=east"]
AT_A = [f"cluster.bundles.{name}.resources.site_a=0.3" for name in ("mnist", "fonts")]
LOCAL = "/proc/self/cwd"
"""A folder that is another one on each node."""


@dataclass(frozen=True)
class Told:
    code: int
    out: str
    err: str
    seconds: float


def todo(folder: Path) -> list[dict[str, Any]]:
    shared = [*RUN, f"output={folder / 'runs'}"]
    wanting = ["doctor", "--cluster", *shared]
    return [
        {"name": "doctor", "arguments": [*wanting, *WHERE]},
        {"name": "train", "arguments": ["train", *shared, "name=placed", "cluster.gpus_per_worker=0", *WHERE]},
        {"name": "resource", "arguments": ["train", *shared, "cluster.bundles.fonts.resources.site_c=1"]},
        {"name": "label", "arguments": ["train", *shared, "cluster.bundles.fonts.labels.zone=north"]},
        {"name": "GPUs", "arguments": ["train", *shared, "cluster.gpus_per_worker=2"]},
        {"name": "output", "arguments": ["train", *RUN, f"output={LOCAL}/runs"]},
        {"name": "taken", "hold": True, "arguments": ["train", *shared, *WHERE, "cluster.start_timeout_s=8"]},
        {"name": "everything", "odd": True,
         "arguments": ["doctor", "--cluster", *RUN, f"output={LOCAL}/runs", f"root={LOCAL}/data",
                       "cluster.gpus_per_worker=0"]},
        {"name": "kept away", "odd": True, "arguments": [*wanting, *AT_A, f"root={LOCAL}/data"]},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with short_folder("two") as path:
        yield path


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Told]:
    (folder / "here" / "data").mkdir(parents=True)
    done = carried_out("tests.two_nodes", folder, todo(folder), 3 * PATIENCE_S, COLUMNS="200")
    return {name: Told(**one) for name, one in done.items()}


def sentences(answer: Told) -> list[str]:
    assert answer.code == 4, answer
    lines = answer.err.splitlines()
    assert all(SENTENCE.fullmatch(line) for line in lines), lines
    return lines


def test_domains_live_on_the_nodes_they_name_and_nothing_else_changes(told: dict[str, Told], folder: Path) -> None:
    answer = told["train"]
    assert (answer.code, answer.err) == (0, "")
    run = folder / "runs" / "placed"
    facts = json.loads((run / "summary.json").read_text())["engine"]
    at = dict(pair.split("@") for pair in facts["placement"].split(", "))
    assert facts["nodes"] == "2"
    assert at["mnist"] != at["fonts"]
    assert json.loads(facts["bundles"])[1] == {"CPU": 1.0, "site_b": 1.0}
    plan = re.search(r"plan: pack, 1 CPU \| .*", answer.out)
    assert plan is not None
    assert "mnist (site_b 1)" in plan[0]
    assert "fonts (label zone=east)" in plan[0]
    assert plan[0] in (run / "run.log").read_text()

    config = yaml.safe_load((run / "config.yaml").read_text())
    alone = small_config(**config | {"output": str(folder / "alone"), "engine": "inline"})
    assert weights_of(train(alone).run_dir) == weights_of(run)


def weights_of(run_dir: Path) -> str:
    return hashlib.sha256((run_dir / "checkpoints" / "step-00000004" / "weights.safetensors").read_bytes()).hexdigest()


def test_doctor_shows_nodes_and_plan(told: dict[str, Told]) -> None:
    answer = told["doctor"]
    assert (answer.code, answer.err) == (0, ""), answer
    rows = [line for line in answer.out.splitlines() if "site_" in line and line.startswith("│")]
    assert len(rows) == 2
    assert all("as here" in row and "yes" in row and "not needed" in row for row in rows)
    assert "2 node(s), nothing wrong" in answer.out
    assert re.search(r"plan +pack, 1 CPU; 2 GPU\(s\) idle.*mnist \(site_b 1\)", answer.out), "site_b has no GPU"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resource", ("domain `fonts` must have a node with site_c 1", "site_a 1", "site_b 1", "--resources=")),
        ("label", ("domain `fonts` must have a node with label zone=north", "zone=east", "zone=west", "--labels=")),
        ("GPUs", ("GPU: wanted 4, available 2", "`cluster.gpus_per_worker`")),
        ("output", ("must see the folder of the runs", f"`{LOCAL}/runs` on this machine only")),
    ],
)
def test_what_cannot_be_is_refused_at_once(name: str, words: tuple[str, ...], told: dict[str, Told]) -> None:
    (line,) = sentences(told[name])
    assert all(word in line for word in words), line
    assert told[name].seconds < 100  # `cluster.start_timeout_s` is 120


def test_what_others_use_is_waited_for(told: dict[str, Told]) -> None:
    answer = told["taken"]
    (line,) = sentences(answer)
    assert "within 8 s, got the state" in line
    assert "site_b: wanted 1, free 0 of 1" in line
    waits = [text for text in answer.out.splitlines() if text.startswith("note: waiting")]
    assert 1 <= len(waits) <= 8, answer.out
    assert all("resources that others use" in text and "site_b: wanted 1, free 0 of 1" in text for text in waits)
    assert 8 <= answer.seconds < 100


def test_a_third_node_with_everything_wrong(told: dict[str, Told]) -> None:
    """Another torch, other folders: by name, with the remedy; the second node lacks the folders only."""
    answer = told["everything"]
    assert answer.code == 4
    problems = [line for line in answer.out.splitlines() if line.startswith("problem")]
    assert len([line for line in problems if "torch 9.9.9" in line and "must have the driver's versions" in line]) == 1
    assert len([line for line in problems if "must see the folder of the runs" in line]) == 2
    assert len([line for line in problems if "must have the dataset's folder" in line]) == 2
    assert len(problems) == 5, problems
    rows = {
        row: cells for row in ("site_a", "site_b", "odd") for cells in answer.out.splitlines() if f" {row} 1 " in cells
    }
    assert "torch 9.9.9" in rows["odd"]
    assert rows["site_b"].count(" no ") == rows["odd"].count(" no ") == 2
    assert rows["site_a"].count(" yes ") == 2


def test_data_may_be_absent_where_no_domain_lives(told: dict[str, Told]) -> None:
    """The only complaint is about the versions of a node that could take the coordinator."""
    (problem,) = [line for line in told["kept away"].out.splitlines() if line.startswith("problem")]
    assert "torch 9.9.9" in problem
