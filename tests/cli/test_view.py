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

from difc_ray.cli.console import console
from difc_ray.cli.view import LiveView, PlainView, View, open_view
from difc_ray.step.coordinator import StepRecord
from tests.cli import user_module
from tests.cli.shell import environment
from tests.runs import small_config
from tests.waiting import PATIENCE_S

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
    return process.wait(PATIENCE_S), b"".join(parts).decode().replace("\r", "")


@pytest.mark.process
def test_on_a_narrow_terminal(tmp_path: Path) -> None:
    (tmp_path / "squares.py").write_text(user_module.TEXT)
    settings = [setting for setting in user_module.SETTINGS if not setting.startswith(("steps=", "eval_every="))]
    arguments = ["train", "engine=inline", "name=n", "tracking.mode=off", "steps=300", "eval_every=20", *settings]
    code, text = on_a_terminal(arguments, 60, tmp_path, NO_COLOR="1")
    assert code == 0, text
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)  # NO_COLOR
    plain = CONTROL.sub("", text)
    live = plain[plain.index("engine inline") : plain.rindex("accuracy")]
    assert "training" in live
    assert re.search(r"training \S+ +\d+/300", live)
    assert re.search(r"\n +domain +loss +validation *\n +plain +\d\.\d{3} +\d+\.\d% *\n", live)
    assert re.search(r"conflicts \d+%  \d+ ms/step = compute \d+ \+ transport 0 \+", live)
    assert "far" not in live
    table = [line for line in plain[plain.rindex("accuracy") :].splitlines() if "│" in line]
    assert len([line for line in table if "%" in line]) == 3
    assert max(map(len, table)) <= 60


@pytest.mark.parametrize(
    ("terminal", "dumb", "kind"), [(True, False, LiveView), (True, True, PlainView), (False, False, PlainView)]
)
def test_which_view(terminal: bool, dumb: bool, kind: type[View], monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that stays in place needs a terminal that can move its cursor."""
    monkeypatch.setattr(type(console), "is_terminal", terminal)
    monkeypatch.setattr(type(console), "is_dumb_terminal", dumb)
    with open_view(small_config()) as view:
        assert type(view) is kind


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
