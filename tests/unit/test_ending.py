"""How a run that is told to stop ends, in words."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from difc_ray.errors import ClusterError, Interrupted, ended
from difc_ray.runs.signals import Signals
from difc_ray.runs.train import final_status, run_log
from difc_ray.runs.trial_context import TrialContext
from difc_ray.tracking import Tracker, entries
from tests.runs import small_config


@pytest.mark.parametrize(("text", "whole"), [("a", "a."), ("a.", "a."), ("is it?", "is it?"), ("no!", "no!")])
def test_one_mark_ends_a_sentence(text: str, whole: str) -> None:
    assert ended(text) == whole


def test_a_signal_while_something_failed(tmp_path: Path) -> None:
    signals = Signals()
    signals.number = signal.SIGINT
    with (
        pytest.raises(Interrupted) as caught,
        final_status(Tracker(tmp_path, None, "e"), signals, tmp_path, TrialContext()),
    ):
        raise ClusterError("The actors were still starting.")
    assert str(caught.value) == (
        "Stopped by SIGINT before the step in hand was taken. The actors were still starting. Continue with "
        f"`difc-ray train resume={tmp_path}`."
    )


@pytest.mark.parametrize(
    ("error", "status", "traceback"), [(SystemExit(1), "KILLED", False), (KeyError("x"), "FAILED", True)]
)
def test_a_process_that_is_told_to_end_is_no_failure(
    tmp_path: Path, error: BaseException, status: str, traceback: bool
) -> None:
    """Ray ends the processes of trials so when their sweep is gone; a bug has its traceback in the run's log."""
    tracker = Tracker(tmp_path, None, "e")
    tracker.start(run_name="r", params={}, tags={})
    with (
        pytest.raises(type(error)),
        run_log(tmp_path, small_config(), str),
        final_status(tracker, Signals(), tmp_path, TrialContext()),
    ):
        raise error
    (end,) = entries(tmp_path / "metrics.jsonl", "finish")
    assert end["status"] == status
    text = (tmp_path / "run.log").read_text()
    assert ("Traceback" in text) == traceback
