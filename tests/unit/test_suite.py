"""The suite itself: its tiers, the order of its files in a parallel run, and the ports that it takes."""

from __future__ import annotations

import ast
import re
import socket
import sys
from pathlib import Path

import pytest

from tests import ports
from tests.longest import LONGEST
from tests.processes import STARTED
from tests.tiers import FIXTURES, OUTSIDE, PROMISES, is_core

ROOT = Path(__file__).parents[2]


def selections() -> dict[str, str | None]:
    """What each target of the Makefile that runs pytest selects by marks; None: everything."""
    found: dict[str, str | None] = {}
    for target, command in re.findall(r"^([a-z-]+):.*\n\t.* -m pytest(.*)$", (ROOT / "Makefile").read_text(), re.M):
        marks = re.search(r' -m (?:"([^"]+)"|(\w+))', command)
        found[target] = (marks[1] or marks[2]) if marks else None
    return found


def test_what_the_first_tier_leaves_out_is_the_rest() -> None:
    inner_loop = f"not ({' or '.join((*OUTSIDE, 'slow'))})"
    assert selections() == {"test": "core", "test-rest": "not core", "test-all": None, "test-fast": inner_loop}
    targets = re.findall(r"^make (\S+)$", (ROOT / ".ci" / "run").read_text(), re.M)
    assert [name for name in targets if name.startswith("test")] == ["test", "test-rest"]


def test_every_test_is_in_one_tier(request: pytest.FixtureRequest) -> None:
    """Decided by its name and the marks that it was given, before pytest looked at them."""
    for item in request.session.items:
        marks = {mark.name for mark in item.iter_markers()}
        assert ("core" in marks) == is_core(item.nodeid, marks), item.nodeid
        assert {FIXTURES[name] for name in getattr(item, "fixturenames", ()) if name in FIXTURES} <= marks, item.nodeid


@pytest.mark.parametrize("promise", PROMISES)
def test_every_promise_is_proved_in_the_first_tier(promise: str) -> None:
    """The tests are where tests/tiers.py looks for them; a test that is renamed or cut is renamed or replaced there."""
    assert PROMISES[promise]
    for name in PROMISES[promise]:
        path, _, test = name.partition("::")
        nodes = ast.parse((ROOT / path).read_text()).body
        tests = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test")}
        assert (test in tests) if test else tests, f"{name}: tests/tiers.py must name the test that proves it now"


def test_processes_that_a_test_starts_are_remembered() -> None:
    """A test without a mark of those is then failed by the fixture that looks for what it leaves."""
    before = list(STARTED)
    sys.audit("subprocess.Popen", sys.executable, ["python", "-c", "1"], None, None)
    sys.audit("subprocess.Popen", "/bin/bash", ["bash", "-n"], None, None)
    found = STARTED[len(before) :]
    del STARTED[len(before) :]
    assert found == [f"{sys.executable}: ['python', '-c', '1']"]


def test_the_longest_files_are_there_and_come_first(request: pytest.FixtureRequest) -> None:
    assert [name for name in LONGEST if not (ROOT / name).is_file()] == []
    files = list(dict.fromkeys(item.nodeid.partition("::")[0] for item in request.session.items))
    long = [name for name in LONGEST if name in files]
    assert files[: len(long)] == long


def test_ports_are_different_and_below_those_of_the_system() -> None:
    found = {ports.free_port() for _ in range(20)}
    assert len(found) == 20
    assert max(found) < ports.end_of_ours()


def test_a_port_that_is_taken_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = ports.free_port()
    monkeypatch.setattr(ports, "_taken", set())
    monkeypatch.setattr(ports, "end_of_ours", lambda: ours + 1)
    monkeypatch.setattr(ports, "SPAN", 1)
    with socket.create_server(("127.0.0.1", ours)), pytest.raises(OSError, match=rf"{ours} to {ours} is free"):
        ports.free_port()
    assert ports.free_port() == ours


@pytest.mark.parametrize(("told", "end"), [("32768\t60999\n", 32768), ("20000 65535", 20000), ("1024 65535", 32768)])
def test_what_the_system_says_of_its_ports(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str, end: int
) -> None:
    monkeypatch.setattr(ports, "EPHEMERAL", tmp_path / "range")
    assert ports.end_of_ours() == ports.USUAL
    ports.EPHEMERAL.write_text(told)
    assert ports.end_of_ours() == end
