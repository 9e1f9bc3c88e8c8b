"""The configuration of a run comes back from MLflow as it was, or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import Config, ConfigProblems, flat, load_config, resolve
from difc_ray.errors import ConfigError
from difc_ray.runs.configuration import _recorded_values, repeated_config, repetition_warnings
from difc_ray.runs.setup import prepare, run_tags
from difc_ray.tracking import MlflowTracker, RecordedRun, Tracker, UploadSettings, resolve_uri
from difc_ray.tracking.names import clean_params
from difc_ray.tracking.runs import KEY_TAG, answer
from tests.mlflow.test_round_trip import client
from tests.runs import small_config

pytestmark = [pytest.mark.mlflow, pytest.mark.filterwarnings("default")]

UNUSUAL = [
    "name=first",
    "sources=fonts,mnist",
    "target=null",
    "model=mlp",
    "model_options.hidden=[7, 5]",
    "optimizer.lr=0.30000000000000004",
    "optimizer.betas=0.5,0.99999999",
    "alignment.alpha=1e-300",
    "alignment.detach_mean=true",
    "harmonize.rule=mgda",
    "harmonize.weights=0.1,0.30000000000000004",
    "harmonize.options={lower_bounds: [0.1, 0.2], steps: 7, tolerance: 1e-9}",
    "cluster.object_store_mb=null",
    "seed=9223372036854775807",
    "steps=12",
]


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The store of the runs in this folder, which this process asks itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("difc_ray.tracking.reading._ask", answer)
    return resolve_uri(None, tmp_path / "runs", {})


def moved(config: Config) -> dict[str, str]:
    """The values of a configuration, except for those that say where its run is kept."""
    return {key: text for key, text in flat(config).items()
            if key not in ("name", "output", "resume") and not key.startswith("tracking.")}  # fmt: skip


def test_unusual_values_come_back_after_a_resume(tmp_path: Path, uri: str, quick: UploadSettings) -> None:
    first = resolve(load_config(None, UNUSUAL))
    went_on = resolve(load_config(None, [*UNUSUAL[:-1], "steps=20", "eval_every=7", "resume=runs/first"]))
    for resume, config in ((False, first), (True, went_on)):  # the second uploader sends both
        folder = tmp_path / "runs" / "first"
        tracker = (
            MlflowTracker(folder, uri, "repeat", resume=True, settings=quick) if resume
            else Tracker(folder, uri, "repeat")
        )  # fmt: skip
        tracker.start(run_name="first", params=flat(config), tags={})
        summary = tracker.finish("FINISHED")
    assert (summary.pending, summary.refused) == (0, 0)

    config, run = repeated_config(str(summary.run_id), ["tracking.mode=off"])
    again = resolve(config)
    assert run.params["steps"] == "12"
    assert moved(again) == moved(went_on)
    assert moved(again) != moved(first)
    assert again.harmonize.options == {"lower_bounds": [0.1, 0.2], "steps": 7, "tolerance": 1e-9}
    assert (again.resume, again.tracking.mode) == (None, "off")
    assert str(again.name).startswith("digits-mgda-")
    changed, _ = repeated_config(str(summary.run_id), ["steps=3", "harmonize.options.steps=9", "name=other"])
    assert (changed.steps, changed.name, changed.seed) == (3, "other", 2**63 - 1)
    assert changed.harmonize.options == {"lower_bounds": [0.1, 0.2], "steps": 9, "tolerance": 1e-9}


def recorded(params: Mapping[str, str]) -> RecordedRun:
    return RecordedRun(run_id="r", store="s", params=dict(params), tags={})


def test_nested_options_come_back() -> None:
    options: dict[str, Any] = {
        "deep": {"er": {"list": [1, "1", 1.0, True, None, {"a b": "x=y"}], "none": None}, "empty": {}, "text": ""},
        "a b": "…", "yes": "no", "number": "012", "tiny": 5e-324, "space": " x ",
    }  # fmt: skip
    config = Config(dataset_options=options, model_options={"plain": options["deep"]}, plugins=("a.b", "c"))
    values = _recorded_values(recorded(clean_params(flat(config))), ())
    assert Config.model_validate(values).model_copy(update={"output": config.output}) == config
    assert repr(values["dataset_options"]) == repr(options)  # 1, 1.0 and True are equal, but not the same


def test_what_mlflow_does_not_hold_in_full_is_refused() -> None:
    config = Config(dataset_options={"token": "t0p", "long": "x" * 7000}, model_options={"url": "s3://me:t0p@host/x"})
    params = clean_params(flat(config)) | {"future": "1"}
    del params["optimizer.lr"], params["trial.cpus"]
    with pytest.raises(ConfigProblems) as found:
        _recorded_values(recorded(params), ())
    expected = (
        "got `dataset_options.long`, of which MLflow has only the first 6000 characters",
        "got `dataset_options.token`, which hides a secret",
        "got `future`, which this version does not know",
        "got `model_options.url`, which hides a secret",
        "got none called `optimizer.lr`",
    )
    problems = sorted(found.value.problems)
    assert len(problems) == len(expected)
    assert all(words in problem for words, problem in zip(expected, problems, strict=True)), problems
    assert "Give it, such as `optimizer.lr=0.001`" in problems[-1]
    given = ("dataset_options.token", "dataset_options.long", "model_options", "optimizer.lr")
    del params["future"]
    assert _recorded_values(recorded(params), given)["steps"] == 300


def test_what_else_differs_is_said() -> None:
    start = prepare(small_config(), None)
    same = run_tags(start, {"threads": "1"})
    assert repetition_warnings(start, {"threads": "1"}, same) == []
    assert repetition_warnings(start, {"threads": "1"}, {}) == []
    other = same | {"engine.threads": "4", "version.torch": "1.0", "dataset.fingerprint": "f" * 64, "seed": "9"}
    early, bits = repetition_warnings(start, {"threads": "1"}, other | {"sweep.stopped": "asha at step 40"})
    assert "stopped early (asha at step 40)" in early
    assert (
        f"(threads per process 4 -> 1, data ffffffffffff -> {same['dataset.fingerprint'][:12]}, torch 1.0 -> " in bits
    )


def test_runs_that_cannot_be_repeated(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=r"runs/mlflow.db`, which does not exist \(command line\)\. Name the store"):
        repeated_config("0" * 32, [])
    assert not (tmp_path / "runs").exists()
    (tmp_path / "runs").mkdir()
    store = client(uri)
    sweep = store.create_run("0", tags={KEY_TAG: "k", "kind": "sweep"}).info.run_id
    foreign = store.create_run("0").info.run_id
    for run_id, words in (("0" * 32, "knows nothing"), ("a/b", "knows nothing"), (sweep, "which is a sweep"),
                          (foreign, "another program")):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            repeated_config(run_id, [])
    with pytest.raises(ConfigError, match=r"no answer from `http://127\.0\.0\.1:9`.* cannot be reached"):
        repeated_config(sweep, ["tracking.uri=http://127.0.0.1:9"])
    with pytest.raises(ConfigError, match="repeated or resumed"):
        repeated_config(sweep, ["resume=auto"])
