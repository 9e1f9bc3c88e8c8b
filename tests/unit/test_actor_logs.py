"""The lines of an actor: what they hold, what they do not, and what becomes of them when a file goes wrong."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from difc_ray import actor_logs
from difc_ray.actor_logs import (
    PACKAGE,
    ActorLog,
    JsonLines,
    Who,
    begin_log,
    end_log,
    now_at,
    reports_errors,
)
from difc_ray.config import Config
from difc_ray.errors import NumericError
from tests.faults import Notices, end_of, fault, faulty_config, resume, train, without_faults

KEYS = {
    "time", "monotonic", "level", "run", "actor", "domain", "part", "step", "attempt", "event", "message", "pid",
    "node",
}  # fmt: skip
WORKER = Who(run="r", actor="worker", domain="photo", part=2)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[ActorLog]:
    """A worker's log that the package writes to."""
    log = ActorLog(tmp_path / WORKER.file, JsonLines(WORKER, {"hunter22"}), logging.INFO)
    level = PACKAGE.level
    PACKAGE.addHandler(log)
    PACKAGE.setLevel(logging.INFO)
    yield log
    PACKAGE.removeHandler(log)
    PACKAGE.setLevel(level)
    log.close()


def test_a_line_says_who_where_and_when(opened: ActorLog, tmp_path: Path) -> None:
    PACKAGE.info("up", extra={"event": "started"})
    now_at(7, 1)
    PACKAGE.warning("late by %d s", 3)
    PACKAGE.error("gone", extra={"domain": "art", "step": 5})
    PACKAGE.debug("too fine")
    first, second, third = lines_of(tmp_path / "worker-photo-2.jsonl")
    assert set(first) == KEYS
    assert (first["run"], first["actor"], first["domain"], first["part"]) == ("r", "worker", "photo", 2)
    assert (first["event"], first["message"], first["step"], first["level"]) == ("started", "up", None, "INFO")
    assert first["pid"] == os.getpid()
    when = datetime.fromisoformat(first["time"])
    assert when.utcoffset() == timedelta(0)
    assert abs(datetime.now(when.tzinfo) - when) < timedelta(seconds=30)
    assert first["monotonic"] <= second["monotonic"] <= third["monotonic"]
    assert (second["event"], second["message"], second["step"], second["attempt"]) == ("notice", "late by 3 s", 7, 1)
    assert (third["event"], third["domain"], third["step"]) == ("error", "art", 5)


def test_no_line_holds_a_secret(opened: ActorLog, tmp_path: Path) -> None:
    try:
        raise RuntimeError("the store said hunter22")
    except RuntimeError:
        PACKAGE.exception("http://me:pass1234@host/?token=abcdef refused")
    text = (tmp_path / WORKER.file).read_text()
    assert "the store said ***" in text
    assert "http://***@host/?token=*** refused" in text
    assert not [secret for secret in ("hunter22", "pass1234", "abcdef") if secret in text]


def test_a_replacement_begins_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / WORKER.file
    path.write_text('{"event": "started"}\n{"event": "hal')
    log = ActorLog(path, JsonLines(WORKER), logging.INFO)
    log.emit(logging.makeLogRecord({"msg": "again", "levelno": logging.INFO, "levelname": "INFO"}))
    log.close()
    torn = path.read_text().splitlines()
    assert torn[:2] == ['{"event": "started"}', '{"event": "hal']
    assert json.loads(torn[2])["message"] == "again"


def test_a_log_is_bounded(opened: ActorLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.maxBytes = 20_000
    for number in range(300):
        PACKAGE.warning("%d %s", number, "x" * 500)
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["worker-photo-2.jsonl", "worker-photo-2.jsonl.1"]
    assert sum(file.stat().st_size for file in files) <= 40_000
    kept = [int(line["message"].split()[0]) for file in reversed(files) for line in lines_of(file)]
    assert kept == list(range(300 - len(kept), 300))
    assert actor_logs.MOST_BYTES < 10**7
    PACKAGE.warning("y " * 10**6)
    assert len(lines_of(files[0])[-1]["message"]) == actor_logs.MOST_CHARACTERS


def test_lines_that_cannot_be_written_are_counted(opened: ActorLog, tmp_path: Path) -> None:
    path = tmp_path / WORKER.file
    PACKAGE.info("one")
    opened.close()
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    for _ in range(3):
        PACKAGE.info("on a full disk")
    path.unlink()
    PACKAGE.info("room again")
    PACKAGE.info("and again")
    found = lines_of(path)
    assert [(line["message"], line.get("lost")) for line in found] == [("room again", 3), ("and again", None)]


@pytest.mark.parametrize("name", ["a/b", "..", "café" * 60, "#1", "a b"])
def test_any_domain_has_a_file(tmp_path: Path, name: str) -> None:
    file = tmp_path / Who(run="r", actor="worker", domain=name).file
    file.write_text("")
    assert file.parent == tmp_path
    assert file != tmp_path / Who(run="r", actor="worker", domain=name + "x").file


def test_an_error_is_reported_once_and_goes_on(opened: ActorLog, tmp_path: Path) -> None:
    @reports_errors
    class Base:
        def work(self, number: int) -> int:
            if number < 0:
                raise NumericError("not finite")
            return number

    @reports_errors
    class Derived(Base):
        def work(self, number: int) -> int:
            return super().work(number)

    assert Derived().work(3) == 3
    assert not (tmp_path / WORKER.file).exists()
    with pytest.raises(NumericError, match="not finite"):
        Derived().work(-1)
    (line,) = lines_of(tmp_path / WORKER.file)
    assert (line["event"], line["message"]) == ("error", "NumericError: not finite")
    assert line["traceback"].startswith("Traceback")
    assert "in work" in line["traceback"]


def test_an_actor_that_does_not_see_the_run_writes_elsewhere(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "test"
    session = tmp_path / "session"
    session.mkdir()
    who = Who(run="test", actor="coordinator")
    level, before = PACKAGE.level, list(PACKAGE.handlers)
    try:
        log = begin_log(run_dir, who, {}, elsewhere=session)
        assert log is not None
        end_log(log)
        assert [file.name for file in session.iterdir()] == ["difc_ray-test-coordinator.jsonl"]
        assert actor_logs.place_of(log) == str(session / "difc_ray-test-coordinator.jsonl")
        assert begin_log(run_dir, who, {}, elsewhere=tmp_path / "nowhere") is None
        (session / "difc_ray-test-coordinator.jsonl").unlink()
        (session / "difc_ray-test-coordinator.jsonl").symlink_to(tmp_path / "somebody else's")
        end_log(begin_log(run_dir, who, {}, elsewhere=session))
        assert not (tmp_path / "somebody else's").exists()
        logs = run_dir / "logs"
        logs.mkdir(parents=True)
        (logs / "driver.jsonl").write_text("")
        end_log(log := begin_log(run_dir, who, {}, elsewhere=session))
        assert actor_logs.place_of(log) == ""
        assert lines_of(logs / "coordinator.jsonl")[0]["event"] == "ended"
    finally:
        PACKAGE.setLevel(level)
        PACKAGE.handlers[:] = before


# ---- runs of the inline engine ---------------------------------------------------------------------------------------


def inline(folder: Path, *faults: dict[str, Any], **changes: Any) -> Config:
    return faulty_config(folder, *faults, engine="inline", **changes)


def test_the_driver_of_a_run(tmp_path: Path) -> None:
    result = train(inline(tmp_path, fault("nan", "b", 2)), tmp_path)
    assert [path.name for path in (result.run_dir / "logs").iterdir()] == ["driver.jsonl"]
    lines = lines_of(result.run_dir / "logs" / "driver.jsonl")
    assert [line["event"] for line in lines] == ["started", "step skipped", "ended"]
    assert lines[1]["step"] == 2
    assert "domain `b`" in lines[1]["message"]
    assert PACKAGE.level == logging.NOTSET
    assert not [handler for handler in PACKAGE.handlers if isinstance(handler, ActorLog)]


def test_a_line_for_every_step_only_when_asked_for(tmp_path: Path) -> None:
    result = train(inline(tmp_path, log_level="debug"), tmp_path)
    lines = lines_of(result.run_dir / "logs" / "driver.jsonl")
    assert [line["step"] for line in lines if line["event"] == "step"] == [0, 1, 2, 3, 4]
    assert "step 3" not in (result.run_dir / "run.log").read_text()


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a bug of the user's"):
        train(inline(tmp_path, fault("raise", "a", 3)), tmp_path)
    lines = lines_of(tmp_path / "runs" / "test" / "logs" / "driver.jsonl")
    assert [line["event"] for line in lines] == ["started", "error", "ended"]
    assert "go_wrong" in lines[1]["traceback"]
    assert lines[-1]["message"] == "ended by RuntimeError"


@pytest.mark.parametrize("broken", ["no folder", "full disk"])
def test_a_log_that_cannot_be_written_costs_no_run(tmp_path: Path, broken: str) -> None:
    config, notices = inline(tmp_path), Notices()
    first = train(config.model_copy(update={"steps": 3}), tmp_path).run_dir
    (first / "logs" / "driver.jsonl").unlink()
    if broken == "full disk":
        (first / "logs" / "driver.jsonl").symlink_to("/dev/full")
    else:
        (first / "logs").rmdir()
        (first / "logs").write_text("a file in its place")
    resume(first, "steps=5", notices=notices)
    straight = train(without_faults(config).model_copy(update={"name": "straight"}), tmp_path).run_dir
    assert end_of(first).weights == end_of(straight).weights
    if broken == "full disk":
        assert "could not be written, the last 2 lines are lost" in (first / "run.log").read_text()
    else:
        assert any("`" + str(first / "logs") + "` cannot be written" in line for line in notices.lines)
