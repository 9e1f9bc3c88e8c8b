"""Runs that cannot be continued or evaluated, and runs that fail: exit code, sentence, log, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from safetensors.torch import save as serialised

from difc_ray.runs.checkpoint import run_lock
from tests.cli import user_module
from tests.cli.shell import Cli, assert_sentences, files_below, table_rows

CONFIG, NUMERIC, CHECKPOINT, WORKERS = 2, 5, 6, 7


def newest(run_dir: Path) -> Path:
    """The newest checkpoint."""
    return max((run_dir / "checkpoints").glob("step-*"))


def keep_newest_only(run_dir: Path) -> Path:
    """Removes all checkpoints but the newest, and the summary that would name it."""
    for path in sorted((run_dir / "checkpoints").glob("step-*"))[:-1]:
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    (run_dir / "summary.json").unlink()
    return newest(run_dir)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def of_the_future(path: Path) -> None:
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "schema": 99}))


DAMAGES: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "a file is missing": (lambda c: (c / "state.json").unlink(), ("`state.json` is missing",)),
    "a file is empty": (lambda c: (c / "weights.safetensors").write_bytes(b""), ("`weights.safetensors` is empty",)),
    "a file is text": (lambda c: (c / "manifest.json").write_text("hello"), ("`manifest.json` is not JSON",)),
    "truncated": (lambda c: truncate(c / "weights.safetensors"), ("`weights.safetensors` is truncated",)),
    "one bit": (lambda c: flip(c / "state.safetensors"), ("sha256 mismatch",)),
    "newer schema": (lambda c: of_the_future(c / "manifest.json"), ("schema version 99", "upgrade")),
    "53 pickle": (
        lambda c: (c / "weights.safetensors").write_bytes(pickle.dumps({"a": 1})),
        ("not a difc_ray checkpoint", "contains Python objects"),
    ),
}


@pytest.mark.parametrize("command", ["evaluate", "train"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_49_no_valid_checkpoint(damage: str, command: str, cli: Cli, trained: Path) -> None:
    harm, words = DAMAGES[damage]
    checkpoint = keep_newest_only(trained)
    harm(checkpoint)
    before = files_below(trained)
    answer = cli("evaluate", str(trained)) if command == "evaluate" else cli("train", f"resume={trained}", "steps=9")
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("at least one checkpoint must be valid, got none", checkpoint.name, *words))
    assert files_below(trained) == before


def test_49_a_damaged_checkpoint_is_named_and_the_previous_one_used(cli: Cli, trained: Path) -> None:
    """Also: `resume=auto` finds runs where the file says that they lie."""
    elsewhere = trained.parent.rename(trained.parents[1] / "elsewhere") / "first"
    (trained.parents[1] / "run.yaml").write_text("output: elsewhere\n")
    newest(elsewhere).joinpath("manifest.json").unlink()
    answer = cli("train", "-c", "run.yaml", "resume=auto", "steps=7", "tracking.mode=off")
    assert answer.code == 0, answer.err
    assert "checkpoint step-00000006 rejected (`manifest.json` is missing" in answer.out
    assert f"note: the newest run is `{elsewhere}`: it goes on from step 4" in answer.out
    assert json.loads((elsewhere / "summary.json").read_text())["steps"] == 7


def test_resume_auto_without_a_run_begins_one_and_says_so(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "squares.py").write_text(user_module.TEXT)
    answer = cli("train", "resume=auto", "engine=inline", "name=n", "tracking.mode=off", *user_module.SETTINGS)
    assert answer.code == 0, answer.err
    assert f"note: there is no run with a checkpoint in `{tmp_path / 'runs'}`" in answer.out
    assert (tmp_path / "runs" / "n" / "summary.json").exists()


def test_a_run_that_is_continued_keeps_its_place_and_its_steps(cli: Cli, trained: Path) -> None:
    before = files_below(trained)
    for argument, code, words in (
        ("name=new", CONFIG, ("`name` must be that of the run which is continued, got `new`", "Leave `name` out")),
        ("output=other", CONFIG, ("`output` must be that of the run which is continued",)),
        ("steps=4", CHECKPOINT, ("must be more than those taken, got `steps=4`", "stands at step 6", "`steps=10`")),
    ):
        answer = cli("train", f"resume={trained}", "engine=inline", argument)
        assert answer.code == code
        assert_sentences(answer, words)
    assert files_below(trained) == before


def test_the_settings_of_a_run_that_was_continued_begin_a_new_one(cli: Cli, trained: Path) -> None:
    """`resume` is a command for one time: it does not stand in the run's `config.yaml`."""
    rest = ("engine=inline", "tracking.mode=off")
    assert cli("train", f"resume={trained}", "steps=8", *rest).code == 0
    answer = cli("train", "-c", str(trained / "config.yaml"), "name=new", "output=other", *rest)
    assert answer.code == 0, answer.err
    assert json.loads((trained.parents[1] / "other" / "new" / "summary.json").read_text())["steps"] == 8


@pytest.mark.parametrize("resume", ["auto", "runs/first"])
def test_a_complete_run_is_not_done_again(resume: str, cli: Cli, trained: Path) -> None:
    before, summary = files_below(trained), json.loads((trained / "summary.json").read_text())
    answer = cli("train", f"resume={resume}", "engine=inline")
    assert (answer.code, answer.err) == (0, "")
    assert f"note the run `{trained}` is complete at step 6; raise `steps` to train on" in answer.out
    assert table_rows(answer.out)["mnistm"][3] == f"{summary['accuracy']['mnistm']['all']:.1%}"
    assert files_below(trained) == before


def test_a_complete_run_without_its_summary_is_evaluated(cli: Cli, trained: Path) -> None:
    (trained / "summary.json").write_text("{}")
    answer = cli("train", "resume=auto", "engine=inline", "tracking.mode=off")
    assert (answer.code, answer.err) == (0, "")
    assert "is complete at step 6" in answer.out
    assert json.loads((trained / "summary.json").read_text())["steps"] == 6


def test_a_run_by_its_name_alone(cli: Cli, trained: Path) -> None:
    answer = cli("train", f"resume={trained.name}")
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("must be `auto` or a run folder", "Did you mean `resume=runs/first`?"))


def test_options_below_those_of_the_run_are_placed_where_they_were_given(cli: Cli, trained: Path) -> None:
    answer = cli("train", f"resume={trained}", "model_options.hidden=8")
    assert answer.code == CONFIG
    assert_sentences(answer, ("must suit model `mlp`, got {hidden: 8} (command line; base configuration)",))


@pytest.mark.parametrize(
    ("settings", "lines"),
    [
        ("model=lenet", [("`model` cannot change", "got `lenet` (the run has `mlp`)")]),
        ("seed=1 batch_size=9", [("`seed` cannot", "`1` (the run has `0`)"), ("`batch_size` cannot", "`9`")]),
        ("target=null", [("`target` cannot change",)]),
        ("harmonize.rule=gh", [("`harmonize.rule` cannot change",)]),
        ("sources=mnist,fonts", [("`sources` cannot change", "the run has `mnist,optdigits,fonts`")]),
    ],
)
def test_51_resume_with_another_configuration(
    settings: str, lines: list[tuple[str, ...]], cli: Cli, trained: Path
) -> None:
    before = files_below(trained)
    answer = cli("train", f"resume={trained}", "engine=inline", *settings.split())
    assert answer.code == CHECKPOINT
    assert_sentences(answer, *lines)
    assert files_below(trained) == before


def test_51_resume_with_other_data(cli: Cli, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration is the same, the content of the files behind it is not."""
    monkeypatch.setattr("difc_ray.runs.setup.data_fingerprint", lambda domains: "0" * 64)
    before = files_below(trained)
    answer = cli("train", f"resume={trained}", "steps=9")
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("the data must be that of the run", "got fingerprint 000000000000"))
    assert files_below(trained) == before


def test_50_checkpoint_of_another_model(cli: Cli, trained: Path) -> None:
    answer = cli("evaluate", str(trained), "model=lenet")
    assert answer.code == CHECKPOINT
    assert_sentences(
        answer, ("a checkpoint must be of the same model", "`featurizer.0.weight`", "absent in the checkpoint")
    )


def test_52_weights_that_are_not_finite(cli: Cli, trained: Path) -> None:
    """Written by a program that had no check of its own, sums and all."""
    folder = keep_newest_only(trained)
    weights = load_file(folder / "weights.safetensors")
    weights["head.bias"][0] = float("nan")
    content = serialised(weights, metadata={"format": "pt"})
    (folder / "weights.safetensors").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    answer = cli("evaluate", str(trained))
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("step 6 contains non-finite values in `head.bias`",))


def test_a_run_that_is_being_trained(cli: Cli, trained: Path) -> None:
    with run_lock(trained):
        before = files_below(trained)
        answer = cli("train", f"resume={trained}", "steps=9")
        assert files_below(trained) == before
    assert answer.code == CHECKPOINT
    assert_sentences(answer, ("one process at a time", f"pid {os.getpid()} on host", "Stop that one"))


SURPRISE = """
from torch import nn
from difc_ray.models import MODELS, Model

class Surprise(nn.Module):
    def forward(self, images):
        raise ValueError("line one [not markup]\\nline two")

@MODELS.register("surprise")
def surprise(image_shape, n_outputs, options):
    return Model(Surprise(), nn.Linear(4, n_outputs))
"""


def test_an_unexpected_error_has_its_traceback_in_the_log(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text(SURPRISE)
    answer = cli("train", "plugins=surprise", "model=surprise", "engine=inline", "name=s", "tracking.mode=off")
    assert answer.code == 1
    log = tmp_path / "runs" / "s" / "run.log"
    assert_sentences(answer, ("got ValueError: line one [not markup] line two", "surprise.py, line 7", f"`{log}`"))
    assert "Traceback (most recent call last)" in log.read_text()
    assert 'raise ValueError("line one' in log.read_text()


def test_numbers_that_are_not_finite(cli: Cli, tmp_path: Path) -> None:
    answer = cli(
        "train", "engine=inline", "model=mlp", "name=n", "tracking.mode=off", "optimizer.lr=1e30", "on_nonfinite=abort",
        "checkpoint.every=1",
    )  # fmt: skip
    assert answer.code == NUMERIC, answer
    assert len(answer.errors) == 1
    assert all(words in answer.err for words in ("Step 1", "domain `mnist`", "Lower `optimizer.lr`"))
    assert "Traceback" in (tmp_path / "runs" / "n" / "run.log").read_text()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_workers_that_fail_for_good(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "surprise.py").write_text(SURPRISE)
    answer = cli(
        "train", "plugins=surprise", "model=surprise", "name=w", "tracking.mode=off", "cluster.max_worker_restarts=0",
        "sources=mnist,optdigits", "target=null", "cluster.cpus_per_worker=1",
    )  # fmt: skip
    assert answer.code == WORKERS, answer
    assert len(answer.errors) == 1
    assert all(words in answer.err for words in ("step 0", "ValueError: line one", "max_worker_restarts"))
    assert re.search(r"Domain `(mnist|optdigits)`", answer.err)  # both fail; one is heard first
    assert "Traceback" in (tmp_path / "runs" / "w" / "run.log").read_text()
