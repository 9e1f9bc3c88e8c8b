"""The suite itself: the order of its files in a parallel run, and the ports that it takes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests import ports
from tests.longest import LONGEST

ROOT = Path(__file__).parents[2]


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
