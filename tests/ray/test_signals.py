"""Signals to a driver that is a process of its own, as a person, a scheduler or the kernel sends them.

A fault makes a batch wait for a minute where the signal is to come: what ends within seconds has heard it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from safetensors.torch import load_file

from difc_ray.config import Config
from tests.checkpoints import ROOT, environment, names, raw
from tests.fault_plugin import marks
from tests.faults import alive, eventually, fault, faulty_config, our_actors, our_groups, resume, train, written

pytestmark = pytest.mark.ray

HEARD_S = 2.0
"""How soon a signal must be heard."""

ENDED_S = 15.0
"""How soon the process must have ended after it, the last records for MLflow sent, on a busy machine."""

SMALL: dict[str, Any] = {
    "sources": ["a", "b"],
    "model_options": {"hidden": [16]},
    "steps": 20,
    "eval_every": 20,
    "checkpoint": {"every": 4, "keep": 10},
    "engine": "ray",
}


@dataclass
class Driver:
    """`difc-ray train` as a process."""

    config: Config
    folder: Path
    process: subprocess.Popen[bytes] = field(init=False)
    family: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        file = written(self.config, self.folder)
        with (self.folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "difc_ray", "train", "--config", str(file)],
                cwd=ROOT, env=environment(), stdout=said, stderr=said,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / "test"

    def wait_for(self, text: str = "", mark: str = "") -> None:
        """Until it has said something, or a fault has left its mark."""

        def arrived() -> bool:
            assert self.process.poll() is None, self.said
            return text in self.said and (not mark or (self.folder / mark).exists())

        eventually(arrived, 60)
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.family = {child.pid: " ".join(child.cmdline())[:60] for child in children}

    def send(self, number: signal.Signals) -> float:
        """Sends a signal; when that was, as files are dated."""
        self.process.send_signal(number)
        return time.time()

    def ended(self, within_s: float) -> int:
        """Its exit code. Nothing that it started has stayed."""
        code = self.process.wait(within_s)
        eventually(lambda: not any(map(alive, self.family)), 5)
        return code

    def mlflow_status(self) -> str:
        """Its run in MLflow's own store."""
        run_id = json.loads(next((self.run_dir / "tracking").glob("run*.json")).read_text())["run_id"]
        return status_of(self.folder, run_id)


def status_of(folder: Path, run_id: str) -> str:
    with closing(sqlite3.connect(folder / "store.db")) as store:
        ((status,),) = store.execute("select status from runs where run_uuid = ?", (run_id,))
    return str(status)
