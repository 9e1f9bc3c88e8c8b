"""The logs of all actors of a run on a real Ray, with workers that die, raise and dawdle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from difc_ray.engines.ray.stragglers import WINDOW
from difc_ray.errors import WorkerError
from tests.fault_plugin import marks
from tests.faults import Notices, end_of, fault, faulty_config, marked_pid, resume, train, without_faults
from tests.unit.test_actor_logs import KEYS, lines_of

pytestmark = pytest.mark.ray

SECRET = "open-sesame-4711"
HALF = {"cpus_per_worker": 0.5}


def logs_of(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of every actor, by the name of its file; each is complete, and of its own actor."""
    found = {path.stem: lines_of(path) for path in (run_dir / "logs").iterdir()}
    for name, lines in found.items():
        for line in lines:
            assert set(line) >= KEYS
            assert line["run"] == run_dir.name
            assert name.split("-")[0] == line["actor"]
    return found


def events(lines: list[dict[str, Any]]) -> list[str]:
    return [line["event"] for line in lines if line["event"] not in ("message", "notice")]


def so_far(lines: list[dict[str, Any]]) -> list[str]:
    """Without the last word: who cannot say it within half a second of being told to end, is ended."""
    found = events(lines)
    return found[:-1] if found[-1] == "ended" else found


def test_a_run_with_a_worker_killed_a_step_skipped_and_a_domain_that_dawdles(ray_session: None, tmp_path: Path) -> None:
    faults = [fault("kill", "b", 4), fault("nan", "a", 6), fault("wait", "c", -1, times=0, seconds=0.3)]
    config = faulty_config(tmp_path, *faults, steps=WINDOW + 2, cluster={"replicas": 1})
    options = {**config.dataset_options, "api_token": SECRET}
    config = config.model_copy(update={"dataset_options": options})
    notices = Notices()
    result = train(config, tmp_path, notices)
    assert "batch-kill-b-4-0" in marks(tmp_path)
    logs = logs_of(result.run_dir)
    assert set(logs) == {"driver", "coordinator", "worker-a", "worker-b", "worker-c"}
    assert so_far(logs["coordinator"]) == ["started", "restart", "replaced", "step skipped", "slow"]
    _, restart, replaced, skipped, slow = logs["coordinator"][:5]
    dead = marked_pid(tmp_path, "kill-b-4-0")
    assert (restart["domain"], restart["step"]) == (replaced["domain"], replaced["step"]) == ("b", 4)
    assert f"worker process {dead} died" in restart["message"]
    assert (skipped["step"], skipped["attempt"]) == (6, 1)
    assert (slow["domain"], slow["step"]) == ("c", WINDOW - 1)
    assert [line for line in notices.lines if line == slow["message"] and "of it waiting for data" in line]
    assert so_far(logs["worker-a"]) == so_far(logs["worker-c"]) == ["started"]
    assert so_far(logs["worker-b"]) == ["started", "started"]
    first, *others = logs["worker-b"]
    assert first["pid"] == dead
    assert dead not in {other["pid"] for other in others}
    assert "ended" in [event for name in logs if name != "driver" for event in events(logs[name])]
    assert {line["domain"] for line in logs["worker-b"]} == {"b"}
    assert events(logs["driver"]) == ["started", "step skipped", "ended"]
    told = [line["message"] for line in logs["driver"] if line["event"] == "notice"]
    assert [line for line in notices.lines if "skipped" not in line] == told
    for path in (result.run_dir / "logs").iterdir():
        assert SECRET not in path.read_text()
        lines = path.read_text().splitlines()
        assert len([line for line in lines if ": waiting " not in line]) < 12  # none for every step


def test_a_bug_is_reported_by_the_worker_that_has_it(ray_session: None, tmp_path: Path) -> None:
    config = faulty_config(tmp_path, fault("raise", "a", 2, times=0), sources=["a", "b"])
    with pytest.raises(WorkerError, match="twice in a row"):
        train(config, tmp_path)
    logs = logs_of(tmp_path / "runs" / "test")
    assert events(logs["worker-a"])[:2] == ["started", "error"]
    error = logs["worker-a"][1]
    assert (error["message"], error["step"]) == ("RuntimeError: a bug of the user's", 2)
    assert "go_wrong" in error["traceback"]
    assert "error" in events(logs["coordinator"])
    assert "error" in events(logs["driver"])
    assert "go_wrong" in json.dumps([line for line in logs["driver"] if line["event"] == "error"])
    assert so_far(logs["worker-b"]) == ["started"]


@pytest.mark.parametrize("transport", ["object_store", "collective"])
def test_a_repeated_step(ray_session: None, tmp_path: Path, transport: str) -> None:
    dead = "surrogate-kill-b-2-0"
    faults = [fault("kill", "b", 2, "surrogate"), fault("differ", "b", 2, after=dead, times=0)]
    config = faulty_config(tmp_path, *faults, steps=4, cluster={"transport": transport}, log_level="debug")
    result = train(config, tmp_path)
    logs = logs_of(result.run_dir)
    assert "redo" in events(logs["coordinator"])
    redo = next(line for line in logs["coordinator"] if line["event"] == "redo")
    assert redo["step"] == 2
    assert [line["step"] for line in logs["coordinator"] if line["event"] == "step"] == [0, 1, 2, 3]
    asked = [(line["step"], line["attempt"]) for line in logs["worker-a"] if line["event"] == "step"]
    assert [step for step, _ in asked] == [0, 1, 2, 2, 3]
    assert [attempt for _, attempt in asked] == sorted(attempt for _, attempt in asked)


def test_a_folder_of_logs_that_cannot_be_made(ray_session: None, tmp_path: Path) -> None:
    """The actors write into the session's."""
    config, notices = faulty_config(tmp_path, sources=["a", "b"], name="broken"), Notices()
    first = train(config.model_copy(update={"steps": 2, "engine": "inline"}), tmp_path).run_dir
    shutil.rmtree(first / "logs")
    (first / "logs").write_text("a file in its place")
    resume(first, "steps=5", "engine=ray", notices=notices)
    straight = without_faults(config).model_copy(update={"name": "straight", "engine": "inline"})
    assert end_of(first).weights == end_of(train(straight, tmp_path).run_dir).weights
    said = (first / "run.log").read_text()
    places = [Path(line.split("its log is ")[1].split(" on ")[0]) for line in said.splitlines() if "its log" in line]
    assert {place.name for place in places} == {
        f"difc_ray-{first.name}-{actor}.jsonl" for actor in ("coordinator", "worker-a", "worker-b")
    }
    for place in places:
        assert so_far(lines_of(place)) == ["started"]
