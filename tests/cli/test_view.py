"""What a person sees while a run trains."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from difc_ray.cli.view import PlainView
from difc_ray.global_step import StepRecord
from tests.cli.shell import FAST, environment
from tests.runs import small_config

CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(arguments: list[str], columns: int, cwd: Path, **variables: str) -> tuple[int, str]:
    """Exit code, and all that a process wrote to a terminal of that width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {name: value for name, value in environment().items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "difc_ray", *arguments], cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs,
        env={**env, "TERM": "xterm-256color", **variables}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # nobody has the other end any more
            break
        if not part:
            break
        parts.append(part)
    os.close(ours)
    return process.wait(30), b"".join(parts).decode().replace("\r", "")


def test_on_a_narrow_terminal(tmp_path: Path) -> None:
    code, text = on_a_terminal(
        ["train", "engine=inline", *FAST, "name=n", "tracking.mode=off"], 60, tmp_path, NO_COLOR="1"
    )
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)  # NO_COLOR
    plain = CONTROL.sub("", text)
    live = plain[plain.index("loading data") : plain.rindex("accuracy")]
    assert "training" in live
    assert "6/6" in live
    assert re.search(r"\n +domain +loss +validation *\n +mnist +\d\.\d{3} +\d+\.\d% *\n", live)
    assert re.search(r"conflicts \d+%  \d+ ms/step = compute \d+ \+ transport 0 \+", live)
    assert "mnistm" not in live
    table = [line for line in plain[plain.rindex("accuracy") :].splitlines() if "│" in line]
    assert len(table) == 4
    assert max(map(len, table)) <= 60


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(tmp_path: Path) -> None:
    code, text = on_a_terminal(
        ["train", "engine=inline", *FAST, "name=n", "tracking.mode=off"], 80, tmp_path, TERM="dumb"
    )
    assert code == 0
    assert "\x1b" not in text
    assert "step 6/6  validation mnist" in text


def test_lines_say_when_steps_were_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    """Means are over the steps that were taken; messages stay on one line."""
    view = PlainView(small_config())
    losses = dict.fromkeys(view.config.sources, 1.0)
    taken = StepRecord(step=3, losses=losses, row_cosines=(-0.5,), seconds={"step": 0.02, "compute": 0.015})
    left_out = StepRecord(step=4, losses=dict.fromkeys(view.config.sources, float("nan")), skipped="not finite")
    view.steps([taken, left_out])
    view.notice("two\nlines [bold]")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "step 5/5  loss mnist 1.000 optdigits 1.000 fonts 1.000  conflicts 100%  "
        "20 ms/step = compute 15 + transport 0 + coordinator 0",
        "note: two lines [bold]",
    ]
