"""Search spaces: what a file may say, and the sentence on everything that it may not."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from difc_ray.config import DataProblems
from difc_ray.errors import ConfigError
from difc_ray.sweeps.find import find_space
from difc_ray.sweeps.space import read_space
from difc_ray.sweeps.trials import trial_config
from tests.spaces import checked, good, text_of, written

SHIPPED = sorted((Path(__file__).parents[2] / "tune_spaces").glob("*.yaml"))

SENTENCE = re.compile(r".+, got .+ \(.+\)\. .+[.?`)]", re.DOTALL)


def complaints(path: Path, arguments: Sequence[str] = (), file: Path | None = None) -> list[str]:
    """What is wrong, a sentence each."""
    with pytest.raises((ConfigError, DataProblems)) as refused:
        checked(path, arguments, file)
    return list(getattr(refused.value, "problems", [str(refused.value)]))


def test_there_are_spaces_to_start_with() -> None:
    assert {"lambda_alpha_beta", "smoke"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_space_is_valid(path: Path) -> None:
    """Against the configuration as it is, with a sentence for people and an engine that every machine has room for."""
    space, base, found = checked(path)
    assert space.description
    assert found or space.searcher == "optuna"
    assert len({point.number for point in found}) == len(found)
    for point in found[:3]:
        assert trial_config(base, point, Path("/")).seed == point.seed


UNREAD: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown key of the file": (text_of(sample="3"), ("unknown key `sample`", "line 4", "Did you mean `samples`?")),
    "unknown config key": (
        text_of(config="{step: 40}"), ("unknown key `step`", "line 1", "Did you mean `steps`?"),
    ),
    "unknown searched key": (
        text_of(space="{alignment.alhpa: {uniform: [0, 1]}}"),
        ("unknown key `alignment.alhpa`", "line 2", "Did you mean `alignment.alpha`?"),
    ),
    "duplicate YAML key": (text_of() + "samples: 5\n", ("`samples`", "line 4")),
    "duplicate searched key": (
        text_of(space="\n  steps: {grid: [1]}\n  harmonize.lam: {grid: [0]}\n  harmonize.lam: {grid: [1]}"),
        ("harmonize.lam", "line 5"),
    ),
    "duplicate grid value": (
        text_of(space="{harmonize.lam: {grid: [0, 0.5, 0]}}"), ("every value of `harmonize.lam` must be given once",),
    ),
    "duplicate seed": (text_of(seeds="[1, 2, 1]"), ("every seed must be given once", "[1, 2, 1]", "line 4")),
    "negative seed": (text_of(seeds="[-1]"), ("`seeds` must be a list of integers in [0, 2^63)", "[-1]")),
    "seeds of text": (text_of(seeds="[a]"), ("`seeds` must be a list of integers",)),
    "no seeds": (text_of(seeds="[]"), ("`seeds` must be a list of integers", "[]")),
    "empty space": (text_of(space="{}"), ("`space` must name at least one key to search", "{}")),
    "no space": (text_of(space=None), ("`space` must name at least one key to search", "got nothing")),
    "range the wrong way round": (
        text_of(space="{alignment.alpha: {uniform: [1, 0.5]}}"),
        ("`uniform` of `alignment.alpha` must be two ends, the lower one first", "[1, 0.5]"),
    ),
    "range of nothing": (text_of(space="{alignment.alpha: {uniform: [1, 1]}}"), ("the lower one first",)),
    "range of three": (text_of(space="{alignment.alpha: {uniform: [1, 2, 3]}}"), ("two finite numbers [low, high]",)),
    "infinite range": (text_of(space="{alignment.alpha: {uniform: [1, .inf]}}"), ("two finite numbers [low, high]",)),
    "range of text": (text_of(space="{alignment.alpha: {uniform: ['1', 2]}}"), ("two finite numbers [low, high]",)),
    "randint of fractions": (text_of(space="{batch_size: {randint: [1.5, 4]}}"), ("two integers [low, high)",)),
    "loguniform from 0": (
        text_of(space="{alignment.alpha: {loguniform: [0, 1]}}"),
        ("`loguniform` of `alignment.alpha` must be above 0 at both ends", "[0, 1]"),
    ),
    "searched alone and with another": (
        text_of(space="{harmonize.lam: {grid: [0]}, 'model, harmonize.lam': {grid: [[mlp, 1]]}}"),
        ("`harmonize.lam` must be searched once", "Remove one"),
    ),
    "keys together in a range": (
        text_of(space="{'alignment.alpha, alignment.beta': {uniform: [0, 1]}}"),
        ("keys that change together", "`alignment.alpha, alignment.beta`", "with 2 values in each"),
    ),
    "keys together with a value too few": (
        text_of(space="{'alignment.alpha, alignment.beta': {grid: [[0, 1], [2]]}}"),
        ("keys that change together", "[[0, 1], [2]]"),
    ),
    "unknown key among those together": (
        text_of(space="{'alignment.alpha, beta': {grid: [[0, 1]]}}"),
        ("unknown key `beta`", "Did you mean `alignment.beta`?"),
    ),
    "unknown distribution": (
        text_of(space="{alignment.alpha: {logunifrom: [1, 2]}}"),
        ("`alignment.alpha` must have one distribution", "Did you mean `loguniform`?"),
    ),
    "two distributions": (
        text_of(space="{alignment.alpha: {uniform: [0, 1], choice: [1]}}"), ("must have one distribution",),
    ),
    "a plain value": (text_of(space="{alignment.alpha: 1}"), ("must have one distribution", "got 1")),
    "grid of nothing": (text_of(space="{alignment.alpha: {grid: []}}"), ("must be a list of values", "[]")),
    "choice that is no list": (text_of(space="{alignment.alpha: {choice: 1}}"), ("must be a list of values",)),
    "samples: 0": (text_of(samples="0"), ("`samples` must be an integer >= 1", "got 0", "line 3")),
    "samples of a half": (text_of(samples="2.5"), ("`samples` must be an integer >= 1", "2.5")),
    "samples: true": (text_of(samples="true"), ("`samples` must be an integer >= 1", "true")),
    "samples missing with a range": (text_of(samples=None), ("`samples` must say how many settings", "got nothing")),
    "samples of a whole grid": (
        text_of(space="{harmonize.lam: {grid: [0, 1]}}", searcher="grid"),
        ("`searcher: grid` takes every setting once",),
    ),
    "unknown scheduler": (text_of(scheduler="ahsa"), ("`scheduler` must be a known one", "Did you mean `asha`?")),
    "two schedulers": (text_of(scheduler="{asha: {}, pbt: {}}"), ("`scheduler` must be one scheduler",)),
    "no name of a scheduler": (text_of(scheduler="{}"), ("`scheduler` must be one scheduler",)),
    "unknown option": (
        text_of(scheduler="{asha: {grace: 10}}"),
        ("unknown option `grace` of the scheduler `asha`", "Known: brackets, grace_period, max_t, reduction_factor"),
    ),
    "option of a scheduler without any": (text_of(scheduler="{none: {a: 1}}"), ("unknown option", "takes no options")),
    "options that are no mapping": (text_of(scheduler="{asha: 3}"), ("the options of `asha` must be a mapping",)),
    "reduction of one": (
        text_of(scheduler="{asha: {reduction_factor: 1}}"), ("`reduction_factor` of `asha` must be a number > 1",),
    ),
    "grace of a half": (
        text_of(scheduler="{asha: {grace_period: 1.5}}"), ("`grace_period` of `asha` must be an integer >= 1",),
    ),
    "a quantile above a half": (
        text_of(scheduler="{pbt: {quantile_fraction: 0.6}}"), ("must be a number in (0, 0.5]", "0.6"),
    ),
    "unknown searcher": (
        text_of(searcher="optun"), ("`searcher` must be one of random, grid, optuna", "Did you mean `optuna`?"),
    ),
    "unknown mode": (text_of(mode="maximum"), ("`mode` must be one of max, min", "Did you mean `max`?")),
    "unknown selection": (text_of(selection="test"), ("`selection` must be one of train_domain_val",)),
    "metric that is no text": (text_of(metric="3"), ("`metric` must be text",)),
    "config that is no mapping": (text_of(config="3"), ("`config` must be a mapping",)),
    "searched seed": (
        text_of(space="{seed: {grid: [0, 1]}}"), ("`seed` belongs to the sweep", "Write `seeds: [0, 1, 2]`."),
    ),
    **{
        f"searched {key}": (text_of(space=f"{{{key}: {{grid: [1, 2]}}}}"), (f"`{key}` belongs to the sweep", "config"))
        for key in ("name", "output", "engine", "eval_every", "selection", "tracking.mode", "trial.cpus",
                    "cluster.address")
    },
}  # fmt: skip
"""Files that are refused before anything of the configuration is looked at."""

MISFITS: dict[str, tuple[str, tuple[str, ...]]] = {
    "an end that breaks the key's own rule": (
        text_of(space="{harmonize.lam: {uniform: [0, 2]}}"), ("`harmonize.lam`", "[0, 1]", "line 2"),
    ),
    "a value that breaks the key's own rule": (
        text_of(space="{harmonize.rule: {grid: [mean, pcgard]}}", samples=None), ("pcgard", "Did you mean `pcgrad`?"),
    ),
    "metric that no run reports": (
        text_of(metric="val/acuracy/mnist"),
        ("`metric` must be one that every trial reports", "Did you mean `val/accuracy/mnist`?"),
    ),
    "metric of the target": (text_of(metric="all/accuracy/mnistm"), ("`metric` must be one that every trial reports",)),
    "mode wrong for a loss": (
        text_of(metric="val/loss/mnist"),
        ("`mode` must be `min` for the metric `val/loss/mnist`", "Write `mode: min`."),
    ),
    "mode wrong for a score": (text_of(mode="min"), ("`mode` must be `max` for the metric `selection/score`",)),
    "searcher grid with a continuous range": (
        text_of(searcher="grid", samples=None),
        ("`searcher: grid` needs a list of values for `alignment.alpha`", "`loguniform`"),
    ),
    "optuna with a grid": (
        text_of(searcher="optuna", space="{harmonize.lam: {grid: [0, 1]}}"),
        ("`searcher: optuna` chooses values", "`choice`"),
    ),
    "optuna among lists": (
        text_of(searcher="optuna", space="{sources: {choice: [[mnist, fonts], [mnist, optdigits]]}}"),
        ("`searcher: optuna` chooses among text and numbers", "searcher: random"),
    ),
    "optuna with folds": (
        text_of(searcher="optuna", selection="leave_one_domain_out"),
        ("`leave_one_domain_out` needs settings that are known",),
    ),
    "searched and under config": (
        text_of(config="{steps: 40, eval_every: 10, alignment.alpha: 1}"),
        ("`alignment.alpha` must be searched or set, not both", "under `config`", "line 2"),
    ),
    "searched with another and under config": (
        text_of(config="{steps: 40, alignment.beta: 1}", space="{'alignment.alpha,alignment.beta': {grid: [[0, 1]]}}"),
        ("`alignment.beta` must be searched or set, not both", "line 2"),
    ),
    "searched and in a section under config": (
        text_of(config="{steps: 40, eval_every: 10, alignment: {alpha: 1}}"),
        ("`alignment.alpha` must be searched or set",),
    ),
    "ASHA with one evaluation": (
        text_of(scheduler="asha", config="{steps: 40, eval_every: 40}"),
        ("`asha` needs more than one evaluation per trial", "`eval_every=40` and `steps=40`"),
    ),
    "grace below an evaluation": (
        text_of(scheduler="{asha: {grace_period: 5}}"),
        ("`grace_period` must be in steps, at least `eval_every`", "5, with"),
    ),
    "grace of all steps": (text_of(scheduler="{asha: {grace_period: 40}}"), ("less than a trial's steps", "40, with")),
    "max_t beyond the steps": (
        text_of(scheduler="{asha: {max_t: 41}}"), ("`max_t` must be at most `steps`", "41 and 40"),
    ),
    "median with one evaluation": (
        text_of(scheduler="median", config="{steps: 8, eval_every: 9}"), ("`median` needs more than one evaluation",),
    ),
    "PBT on a key that it must not perturb": (
        text_of(scheduler="pbt", space="{batch_size: {randint: [4, 8]}}"), ("`pbt` perturbs numbers", "`batch_size`"),
    ),
    "PBT on a list": (
        text_of(scheduler="pbt", space="{alignment.alpha: {choice: [0.1, 1]}}"), ("`pbt` perturbs numbers of a range",),
    ),
    "PBT with seeds": (text_of(scheduler="pbt", seeds="[0, 1]"), ("`pbt` needs a population", "2 seeds")),
    "PBT of one": (text_of(scheduler="pbt", samples="1"), ("`pbt` needs a population", "`samples: 1`")),
    "PBT with a part of its population": (
        text_of(scheduler="pbt", config="{steps: 40, eval_every: 10, trial.concurrent: 3}"),
        ("`pbt` needs its whole population", "`trial.concurrent=3` for `samples: 4`"),
    ),
    "PBT too often": (
        text_of(scheduler="{pbt: {perturbation_interval: 3}}"), ("`perturbation_interval` must be in steps",),
    ),
    "leave one domain out with a scheduler": (
        text_of(scheduler="asha", selection="leave_one_domain_out"),
        ("`leave_one_domain_out` compares trials that are trained to the end", "the scheduler `asha`"),
    ),
    "a resumed run": (text_of(config="{resume: runs/x}"), ("resume",)),
}  # fmt: skip
"""Files that can be read, and do not fit the configuration or themselves."""


@pytest.mark.parametrize("case", [*UNREAD, *MISFITS])
def test_bad_input_is_one_sentence(case: str, tmp_path: Path) -> None:
    text, words = (UNREAD | MISFITS)[case]
    found = complaints(written(tmp_path, text))
    assert len(found) == 1, found
    assert SENTENCE.fullmatch(found[0]), found
    assert all(word in found[0] for word in words), (found, words)
    assert "base configuration" not in found[0]


def test_a_space_that_cannot_be_read_is_called_a_space(tmp_path: Path) -> None:
    for text in ("", "- 1\n", "a: [\n", "a: !!python/object:os.system x\n"):
        (problem,) = complaints(written(tmp_path, text))
        assert "given.yaml" in problem
        assert "config file" not in problem


@pytest.mark.parametrize("given", ["smok", "no/such.yaml"])
def test_a_space_that_is_not_there(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Known: ablation, lambda_alpha_beta, .*long_tail, rules, smoke"):
        find_space(given)
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "own.yaml").write_text(text_of())
    with pytest.raises(ConfigError, match="leave_one_domain_out, long_tail, own, rules, smoke"):
        find_space(given)
    assert find_space("own") == Path("tune_spaces/own.yaml") == find_space("own.yaml")


def test_the_spaces_that_come_with_the_package_are_found_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for shipped in SHIPPED:
        assert find_space(shipped.stem).read_text() == shipped.read_text()
    (tmp_path / "tune_spaces").mkdir()
    (tmp_path / "tune_spaces" / "smoke.yaml").write_text(text_of())
    assert find_space("smoke") == Path("tune_spaces/smoke.yaml")  # one's own comes first


@pytest.mark.process
def test_the_wheel_has_the_spaces(tmp_path: Path) -> None:
    """Built as `pip` does, and used from a folder where nothing else is."""
    source, empty, installed = tmp_path / "source", tmp_path / "empty", tmp_path / "installed"
    root = SHIPPED[0].parents[1]
    skipped = shutil.ignore_patterns("__pycache__", "*.pyc")
    for folder in ("difc_ray", "tune_spaces"):
        shutil.copytree(root / folder, source / folder, symlinks=True, ignore=skipped)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, source)
    empty.mkdir()
    options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "-q", "-w", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(source), *options], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    code = "from difc_ray.sweeps.find import find_space; print(find_space('smoke'))"
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    found = subprocess.run([sys.executable, "-c", code], cwd=empty, env=environment, check=True, capture_output=True)
    assert found.stdout.decode().strip() == str(installed / "difc_ray" / "tune_spaces" / "smoke.yaml")


def test_a_key_is_searched_or_set_by_the_user(tmp_path: Path) -> None:
    """On the command line or in the configuration file; both at once are one problem."""
    path, nested = written(tmp_path, text_of()), tmp_path / "nested.yaml"
    nested.write_text("alignment: {alpha: 2}\n")
    for arguments, file in ((["alignment.alpha=2"], None), ([], nested), (["alignment.alpha=2"], nested)):
        (problem,) = complaints(path, arguments, file)
        assert "`alignment.alpha` must be searched or set, not both" in problem
        assert "by the user" in problem
    space, base, found = checked(path, ["alignment.beta=2"])
    assert base.alignment.beta == 2
    assert len(found) == space.samples


def test_all_problems_of_a_file_are_said_at_once(tmp_path: Path) -> None:
    text = text_of(samples="0", seeds="[1, 1]", mode="up", scheduler="ahsa", space="{alpha: {uniform: [1, 0]}}", a="1")
    found = complaints(written(tmp_path, text))
    assert len(found) == 6, found
    for words in ("`samples`", "every seed", "`mode`", "`scheduler`", "`alpha`", "unknown key `a`"):
        assert any(words in problem for problem in found), (words, found)
    misfits = complaints(
        written(tmp_path, text_of(mode="min", searcher="grid", samples=None, scheduler="{asha: {max_t: 99}}"))
    )
    assert len(misfits) == 3, misfits


def test_a_setting_that_its_key_refuses_is_looked_for_in_the_space(tmp_path: Path) -> None:
    """A value under `config` that its key refuses is looked for in the file of the space."""
    (problem,) = complaints(written(tmp_path, text_of(config="{steps: 0}")))
    assert "`steps`" in problem
    assert "given.yaml" in problem


def test_what_is_left_out_has_defaults(tmp_path: Path) -> None:
    space, base, found = good(tmp_path, space="{harmonize.lam: {grid: [0, 1]}}", samples=None)
    assert (space.metric, space.mode, space.scheduler, space.searcher) == ("selection/score", "max", "none", "random")
    assert (space.samples, space.seeds, space.selection) == (1, (0,), "train_domain_val")
    assert (base.steps, base.model) == (40, "mlp")
    assert [dict(point.values) for point in found] == [{"harmonize.lam": 0}, {"harmonize.lam": 1}]


def test_the_digest_is_that_of_the_meaning(tmp_path: Path) -> None:
    """Comments, layout and order aside."""
    one = good(tmp_path, mode="max")[0]
    same = read_space(written(tmp_path, "# c\nmode:   max\n" + text_of().replace("[0.001, 10]", "[ 1.0e-3,  10 ]")))
    other = good(tmp_path, mode="max", samples="5")[0]
    assert one.digest == same.digest != other.digest
