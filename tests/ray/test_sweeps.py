"""Sweeps on Ray Tune: every trial is the run that it stands for, whatever the scheduler, a fault or the display do."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from difc_ray.cli.execution import execute
from difc_ray.sweeps.folder import SweepFolder, TrialRecord
from difc_ray.sweeps.space import read_space
from difc_ray.sweeps.trials import base_config
from tests.checkpoints import raw
from tests.faults import end_of, fault, nothing_more
from tests.sweeps import Collected, Swept, alone, assert_same_end, space_file, sweep

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("ray_session"),
    pytest.mark.filterwarnings("default"),  # MLflow and its database warn
]


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(ray_session: None) -> Iterator[None]:
    """No actor and no placement group more than before all sweeps of this file."""
    with nothing_more():
        yield


GOOD, KILLED, BAD, DEADLY, MISLED, BUGGY = range(6)
"""Trials of the sweep with ASHA, in their order."""

TRIALS = [
    [0.02, []],
    [0.021, [fault("kill", "a", 7)]],
    [1e-7, []],
    [0.019, [fault("kill", "b", 3, times=0)]],
    [0.022, [fault("data", "b", 5)]],
    [0.0225, [fault("raise", "b", 6, times=0)]],
]


CAUSES = {
    DEADLY: "the trial's process died (SYSTEM_ERROR",
    MISLED: "Image 7 must be readable",
    BUGGY: "RuntimeError: a bug of the user's",
}
"""Those that fail, and why."""


@dataclass(frozen=True)
class Halved:
    """A sweep with ASHA from the command line, recorded in MLflow."""

    code: int
    said: str
    path: Path
    folder: SweepFolder
    client: MlflowClient
    records: list[TrialRecord]

    def runs(self) -> tuple[Any, dict[int, Any]]:
        """The MLflow runs: parent, and children by trial."""
        experiment = self.client.get_experiment_by_name("difc_ray")
        found = self.client.search_runs([experiment.experiment_id])
        (parent,) = [run for run in found if run.data.tags.get("kind") == "sweep"]
        children = {int(run.data.tags["sweep.trial"]): run for run in found if run is not parent}
        assert len(children) == len(found) - 1
        return parent, children


@pytest.fixture(scope="module")
def halved(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Halved:
    folder = tmp_path_factory.mktemp("halved")
    uri = f"sqlite:///{folder / 'store.db'}"
    path = space_file(
        folder,
        {"tracking": {"mode": "on", "uri": uri}},
        space={"optimizer.lr, dataset_options.faults": {"grid": TRIALS}},
        scheduler={"asha": {"grace_period": 4, "reduction_factor": 2}},
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = execute(["tune", str(path), "name=s", "--register", "best-of-s"])
    found = SweepFolder(folder / "runs" / "s")
    return Halved(code, said.getvalue(), path, found, MlflowClient(uri, registry_uri=uri), found.records())


def test_asha_stops_the_bad_and_keeps_the_good(halved: Halved) -> None:
    assert [record.status for record in halved.records] == ["finished", "finished", "stopped", *["failed"] * 3]
    assert [record.step for record in halved.records][:3] == [16, 16, 4]
    stopped = halved.folder.summary(BAD)
    assert stopped is not None
    assert (stopped["stopped"], stopped["steps"]) == ("asha at step 4", 4)
    assert halved.records[BAD].reason == "asha at step 4"
    for number in (GOOD, KILLED):
        summary = halved.folder.summary(number)
        assert summary is not None
        assert "stopped" not in summary
        assert summary["steps"] == 16
    assert halved.folder.summary(DEADLY) is None


@pytest.mark.parametrize("number", [GOOD, KILLED])
def test_a_trial_is_the_run_that_it_stands_for(halved: Halved, number: int, tmp_path: Path) -> None:
    """Also one whose process was killed after seven steps and that went on from its checkpoint."""
    base = base_config(read_space(halved.path), None, [])
    expected = alone(tmp_path, base, halved.records[number].point)
    assert_same_end(end_of(halved.folder.run_dir(number)), expected)


def test_what_failed_is_told_with_its_cause(halved: Halved) -> None:
    """The others went on, and the exit code says that not all is well."""
    assert halved.code == 7, halved.said
    lines = [" ".join(line.split()) for line in halved.said.splitlines()]
    for number, words in CAUSES.items():
        assert words in halved.records[number].reason
        assert [line for line in lines if f"trial {number} (" in line and words in line], halved.said
    assert "trial 1 has lost its process; it is continued" in halved.said
    assert "2 finished, 1 stopped, 3 failed" in halved.said
    marks = sorted(path.name for path in halved.path.parent.glob("batch-*"))
    assert marks == [
        "batch-data-b-5-0", "batch-kill-a-7-0", "batch-kill-b-3-0", "batch-kill-b-3-1", "batch-raise-b-6-0",
        "batch-raise-b-6-1",
    ]  # fmt: skip
    assert not (halved.folder.path / "ray").exists()


def test_mlflow_has_the_sweep_and_its_trials_nested(halved: Halved) -> None:
    parent, children = halved.runs()
    assert parent.info.status == "FINISHED"
    assert {n: run.info.status for n, run in children.items()} == {
        GOOD: "FINISHED", KILLED: "FINISHED", BAD: "KILLED", **dict.fromkeys(CAUSES, "FAILED"),
    }  # fmt: skip
    for number, run in children.items():
        tags, point = run.data.tags, halved.records[number].point
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["sweep"], tags["sweep.point"], tags["rule"], tags["seed"]) == ("s", str(number), "mean", "0")
        assert json.loads(tags["sweep.values"]) == point.values
        assert float(run.data.params["optimizer.lr"]) == point.values["optimizer.lr"]
    assert all(children[number].data.tags["error"] for number in CAUSES)
    assert children[BAD].data.tags["sweep.stopped"] == "asha at step 4"
    assert "mlflow.parentRunId" not in parent.data.tags
    assert parent.data.tags["error"] == "3 of 6 trials failed"
    assert parent.data.tags["sweep.scheduler"] == "asha"
    assert parent.data.tags["domains"] == "a,b"


def test_mlflow_has_the_space_and_the_best_model(halved: Halved) -> None:
    parent, _ = halved.runs()
    files = {file.path for file in halved.client.list_artifacts(parent.info.run_id)}
    assert {"space.yaml", "config.yaml", "best.yaml", "result.json"} <= files
    best = json.loads((halved.folder.path / "result.json").read_text())["best"]
    assert parent.data.tags["sweep.best"] == str(best)
    held = yaml.safe_load((halved.folder.path / "best.yaml").read_text())
    assert held["optimizer"]["lr"] == halved.records[best].point.values["optimizer.lr"]
    (version,) = halved.client.search_model_versions("name = 'best-of-s'")
    assert version.run_id == parent.info.run_id


def test_resuming_a_sweep_runs_only_what_has_failed(halved: Halved) -> None:
    """What has ended is not touched; a fault that is over lets its trial finish.

    The checkpoints of another one are of a newer version: it starts anew beside its folder, where nothing is lost.
    """
    (halved.folder.run_dir(BUGGY) / "notes.txt").write_text("mine")
    for manifest in halved.folder.run_dir(BUGGY).glob("checkpoints/step-*/manifest.json"):
        manifest.write_text(manifest.read_text().replace('"schema": 1', '"schema": 2'))
    kept = {path: path.stat().st_mtime_ns for n in (GOOD, KILLED, BAD) for path in halved.folder.run_dir(n).rglob("*")
            if "tracking" not in path.parts and path.is_file()}  # fmt: skip
    again = sweep(halved.path, "name=s", "tracking.mode=off", "trial.max_failures=0", resume=True)
    assert again.statuses() == ["finished", "finished", "stopped", "failed", "finished", "failed"]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    aside = halved.folder.path / "aside" / f"{BUGGY:05d}-1"
    assert (aside / "notes.txt").read_text() == "mine"
    assert [notice for notice in again.display.notices if f"trial {BUGGY}" in notice and str(aside) in notice]
    assert_same_end(end_of(halved.folder.run_dir(MISLED)), alone(halved.path.parent, again.base, again.points[MISLED]))


def test_actors_go_on_to_the_next_trial_and_to_the_same_weights(tmp_path: Path) -> None:
    """Ray-engine trials: the second one on the workers of the first; afterwards nothing of them is left."""
    watch = [fault("wait", "a", 2, seconds=0, times=0)]
    path = space_file(
        tmp_path,
        {"trial": {"engine": "ray", "concurrent": 1}, "steps": 8, "dataset_options": {"faults": watch}},
        space={"optimizer.lr": {"grid": [0.01, 0.03]}},
    )
    with nothing_more():
        done = sweep(path)
    assert done.statuses() == ["finished", "finished"], done.result.failed
    first, second = (int((tmp_path / f"batch-wait-a-2-{n}").read_text()) for n in range(2))
    assert first == second
    for point in done.points:
        assert_same_end(end_of(done.folder.run_dir(point.number)), alone(tmp_path, done.base, point))


RANGES = {"optimizer.lr": (1e-5, 0.1), "alignment.alpha": (0.01, 1.0)}


def test_a_branch_has_its_parents_weights_and_its_own_values(tmp_path: Path) -> None:
    """There is room for one trial: the population takes turns, which leaves nothing to chance."""
    path = space_file(
        tmp_path,
        {"objective": "hutchinson", "trial": {"engine": "inline", "cpus": 4}},
        space={key: {"loguniform": list(ends)} for key, ends in RANGES.items()},
        scheduler={"pbt": {"perturbation_interval": 4, "quantile_fraction": 0.5}},
        samples=4,
    )
    done = sweep(path)
    assert done.statuses() == ["finished"] * 4
    lineages = {record.point.number: record.lineage for record in done.result.records}
    compared = 0
    for number, lineage in lineages.items():
        for branch in lineage:
            assert set(branch["values"]) == set(RANGES)
            assert all(low <= branch["values"][key] <= high for key, (low, high) in RANGES.items())
        if not lineage:
            continue
        last = lineage[-1]
        step, parent = last["step"], last["from"]
        assert done.result.records[number].point.values == last["values"]
        config = yaml.safe_load((done.folder.run_dir(number) / "config.yaml").read_text())
        assert (config["optimizer"]["lr"], config["alignment"]["alpha"]) == tuple(last["values"][key] for key in RANGES)
        if any(branch["step"] >= step for branch in lineages[parent]):
            continue  # the parent has since taken over another state
        child, source = (done.folder.run_dir(n) / "checkpoints" / f"step-{step:08d}" for n in (number, parent))
        assert weights(child) == weights(source)
        held = [yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] for folder in (child, source)]
        assert held[0] == last["values"]["optimizer.lr"] != held[1]
        compared += 1
    assert compared, lineages


def weights(checkpoint: Path) -> dict[str, bytes]:
    return {name: raw(tensor) for name, tensor in load_file(checkpoint / "weights.safetensors").items()}


def test_leave_one_domain_out_is_blind_to_the_target(tmp_path: Path) -> None:
    """What a fold may not see is not even loaded into a batch; the choice is that of a computation by hand."""
    watch = [fault("wait", name, 0, seconds=0, times=0) for name in "abcd"]
    watch += [fault("wait", name, -1, where="evaluation", seconds=0, times=0) for name in "d"]
    path = space_file(
        tmp_path,
        {"sources": ["a", "b", "c"], "steps": 4, "dataset_options": {"faults": watch}},
        space={"optimizer.lr": {"grid": [1e-6, 0.03]}},
        selection="leave_one_domain_out",
        metric="selection/score",
        mode="max",
    )
    done = sweep(path)
    assert done.statuses() == ["finished"] * 8
    trained = Counter(mark.name.split("-")[2] for mark in tmp_path.glob("batch-wait-*"))
    assert trained == {"a": 6, "b": 6, "c": 6}  # of eight trials, two leave each out
    held_out: dict[int, list[float]] = {}
    for point in done.points:
        summary = done.folder.summary(point.number)
        assert summary is not None
        seen = set(summary["accuracy"])
        keys = {key for values in done.folder.evaluations(point.number).values for key in values}
        reported = {key.split("/")[-2 if "/recall/" in key else -1] for key in keys}
        if not point.fold:
            assert seen == {*"abcd"}
            continue
        assert seen == {*"abc"}
        assert set(summary["accuracy"][point.fold]) == {"all"}
        assert reported == {*"abc", "score"} - {point.fold}
        held_out.setdefault(point.setting, []).append(summary["accuracy"][point.fold]["all"])
    means = {setting: math.fsum(values) / 3 for setting, values in held_out.items()}
    best = max(means, key=lambda setting: means[setting])
    assert means[best] > min(means.values())
    assert (done.result.chosen.rule, done.result.chosen.point) == ("leave_one_domain_out", str(best))
    assert done.result.chosen.score == pytest.approx(means[best], abs=1e-12)
    assert {choice.rule for choice in done.result.choices} == {"train_domain_val", "leave_one_domain_out", "oracle"}


class Broken(Collected):
    """A display that raises whatever it is told."""

    def phase(self, text: str) -> None:
        super().phase(text)
        raise RuntimeError("no screen")

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        super().trial(record, values)
        raise RuntimeError("no table")

    def notice(self, message: str) -> None:
        super().notice(message)
        raise RuntimeError("no line")


@pytest.fixture(scope="module")
def suggested(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Trials that the searcher makes up, before a display that raises."""
    folder = tmp_path_factory.mktemp("suggested")
    path = space_file(
        folder,
        {"steps": 8},
        space={"optimizer.lr": {"loguniform": [1e-3, 0.1]}},
        searcher="optuna",
        samples=2,
        seeds=[3, 5],
    )
    return sweep(path, display=Broken())


def test_seeds_of_a_suggested_setting_share_its_values(suggested: Swept) -> None:
    points = [record.point for record in suggested.result.records]
    assert [(point.setting, point.seed) for point in points] == [(0, 3), (0, 5), (1, 3), (1, 5)]
    assert points[0].values == points[1].values != points[2].values == points[3].values
    assert all(1e-3 <= point.values["optimizer.lr"] <= 0.1 for point in points)
    for point in points:
        config = yaml.safe_load((suggested.folder.run_dir(point.number) / "config.yaml").read_text())
        assert (config["seed"], config["optimizer"]["lr"]) == (point.seed, point.values["optimizer.lr"])


def test_a_display_that_raises_does_not_end_the_sweep(suggested: Swept) -> None:
    """It is told all the same."""
    assert suggested.statuses() == ["finished"] * 4
    assert suggested.display.phases[0] == "starting Ray"
    ended = [record.point.number for record, _ in suggested.display.trials if record.status == "finished"]
    assert sorted(ended) == [0, 1, 2, 3]
