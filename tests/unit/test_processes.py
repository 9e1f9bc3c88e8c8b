"""Which process is meant, which signals are heard, and whose answer is used."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from difc_ray.engines.ray.processes import end_process
from difc_ray.runs.signals import Signals
from tests.checkpoints import ROOT


@pytest.mark.process
def test_a_process_of_the_same_number_is_left_alone(tmp_path: Path) -> None:
    """Also one in whose command line stands `ray`, as in the home of a Murray."""
    program = tmp_path / "murray" / "sleep"
    program.parent.mkdir()
    shutil.copy("/bin/sleep", program)
    process = subprocess.Popen([program, "600"])
    try:
        started = psutil.Process(process.pid).create_time()
        for other in (0.0, started - 60.0, started + 60.0):
            end_process(process.pid, other)
        assert process.poll() is None
        end_process(process.pid, started)
        assert process.wait(60) == -signal.SIGKILL
        end_process(process.pid, started)  # gone: nothing to do
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_is_heard_and_its_handler_given_back(name: str) -> None:
    number, strayed = signal.Signals[name], []

    def stray(number: int, frame: object) -> None:
        strayed.append(number)

    before = signal.signal(number, stray)
    try:
        with Signals() as signals:
            signal.raise_signal(number)
            assert (signals.interrupted(), signals.name, strayed) == (True, name, [])
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(number)
        assert signal.getsignal(number) == stray
    finally:
        signal.signal(number, before)


def test_what_nohup_keeps_away_is_not_heard() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert not signals.interrupted()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.process
def test_a_stale_answer_is_refused_also_without_assertions() -> None:
    """`python -O` leaves assertions out."""
    code = (
        "from difc_ray.engines.ray.transport import StepInProgress\n"
        "step = StepInProgress(tokens=[('run', 0, 7, 'a')], asked=[[]], answered=[[]])\n"
        "step.check_token(0, ('run', 0, 7, 'a'))\n"
        "try:\n    step.check_token(0, ('run', 0, 6, 'a'))\n"
        "except RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-O", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "stale answer ('run', 0, 6, 'a'), expected ('run', 0, 7, 'a')" in done.stdout
