"""Reading a run back from MLflow, in a child process: the process that trains never imports mlflow."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from difc_ray.errors import ConfigError
from difc_ray.secrets import masked
from difc_ray.tracking.child import uploader_environ
from difc_ray.tracking.names import MAX_KEY, MAX_PARAM
from difc_ray.tracking.runs import ATTEMPT_TAG, KEY_TAG
from difc_ray.tracking.settings import UploadSettings
from difc_ray.tracking.uris import probe, sqlite_path

SWEEP_TAG = ("kind", "sweep")
"""Tag and value of a run that stands for a whole sweep."""
_PATIENCE_S = 5.0
_WHERE_FROM = "Name the store with `tracking.uri=` or MLFLOW_TRACKING_URI"


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """What MLflow holds of a run.

    Args:
        run_id: its id.
        store: the tracking URI, credentials masked.
        params: its parameters, flat.
        tags: its tags.
    """

    run_id: str
    store: str
    params: dict[str, str]
    tags: dict[str, str]

    def settings(self) -> dict[str, str]:
        """The parameters with which the run ended: those of its beginning, and what its last continuation changed."""
        changes = f"resume.{self.tags.get(ATTEMPT_TAG)}."
        changed = {tag.removeprefix(changes): text for tag, text in self.tags.items() if tag.startswith(changes)}
        return self.params | changed


def spoiled(key: str, text: str) -> str | None:
    """Why a parameter cannot be read back as it was, after what ``clean_params`` does to it; None: it can.

    >>> spoiled("steps", "100"), spoiled("dataset_options.token", "***")
    (None, 'which hides a secret')
    """
    if "***" in text:
        return "which hides a secret"
    if len(text) >= MAX_PARAM:
        return f"of which MLflow has only the first {MAX_PARAM} characters"
    return "whose name may have been shortened" if len(key) >= MAX_KEY else None


def read_run(uri: str, run_id: str) -> RecordedRun:
    """The parameters and tags of a run that ``difc-ray`` recorded.

    Args:
        uri: a resolved tracking URI.
        run_id: MLflow's id of the run.

    Raises:
        ConfigError: the store cannot be read or has no such run, or the run is a sweep or another program's.
    """
    shown, rule = masked(uri), "a run to repeat must be in an MLflow store"
    if uri.startswith("sqlite") and not Path(sqlite_path(uri)).is_file():
        raise ConfigError(f"{rule}, got `{shown}`, which does not exist (command line). {_WHERE_FROM}.")
    if trouble := probe(uri, _PATIENCE_S):
        raise ConfigError(f"{rule}, got no answer from `{shown}` (command line). {trouble}")
    answer = _ask(uri, run_id)
    if "absent" in answer:
        raise ConfigError(
            f"{rule}, got `{run_id}`, of which `{shown}` knows nothing (command line). {_WHERE_FROM}; the id of a run "
            "is in its folder, in tracking/run.json."
        )
    if "failed" in answer:
        raise ConfigError(f"{rule}, got no answer from `{shown}` (command line). {answer['failed']}")
    run = RecordedRun(run_id=run_id, store=shown, params=answer["params"], tags=answer["tags"])
    if run.tags.get(SWEEP_TAG[0]) == SWEEP_TAG[1]:
        raise ConfigError(
            f"a run to repeat must be a single run, got `{run_id}`, which is a sweep (command line). Name one of its "
            "trials, which MLflow shows below it."
        )
    if KEY_TAG not in run.tags:
        raise ConfigError(
            f"a run to repeat must be one that difc-ray recorded, got `{run_id}` of another program (command line). "
            "Name another run."
        )
    return run


def _ask(uri: str, run_id: str) -> dict[str, dict[str, str]]:
    """What the child answers: ``params`` and ``tags``, or ``absent`` or ``failed`` with a reason."""
    done = subprocess.run(
        [sys.executable, "-m", "difc_ray.tracking.uploader", "--read", run_id],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        env=uploader_environ(uri, UploadSettings.from_environ()),
    )  # fmt: skip
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError(
            f"MLflow must be importable to read a run, got `{last}` (command line). Check `{sys.executable} -c 'import "
            "mlflow'`."
        )
    answer: dict[str, dict[str, str]] = json.loads(lines[-1])
    return answer
