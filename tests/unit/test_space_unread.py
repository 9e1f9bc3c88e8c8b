"""A space that searches what nothing reads would train the same run again and again: it is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from difc_ray.config import ConfigProblems
from tests.spaces import good

PLAIN = "{steps: 40, eval_every: 10, model: mlp, harmonize.rule: %s}"
UNREAD = {
    "lam of a rule without": ("harmonize.lam: {uniform: [0, 1]}", PLAIN % "mean", "the rule `mean`"),
    "lam around a rule": ("harmonize.lam: {uniform: [0, 1]}", PLAIN % "ema", "the rule `ema`"),
    "flatness": ("harmonize.flatness: {uniform: [0, 1]}", PLAIN % "ghpp", "the rule `ghpp`"),
    "curvature": ("harmonize.curvature.decay: {uniform: [0, 0.9]}", PLAIN % "dualproj", "the rule `dualproj`"),
    "order": ("harmonize.curvature.order: {choice: [1, 2]}", PLAIN % "flat_dualproj", "kind=diagonal"),
    "alpha of gradients": (
        "alignment.alpha: {uniform: [0.1, 1]}", "{steps: 40, eval_every: 10, alignment.penalty: gradient}",
        "the objective `gradient`",
    ),
    "beta without a penalty": (
        "alignment.beta: {uniform: [0.1, 1]}", "{steps: 40, eval_every: 10, objective: erm, harmonize.rule: mean}",
        "the objective `erm`",
    ),
    "probes of an exact diagonal": ("alignment.probes: {choice: [1, 4]}", PLAIN % "ghpp", "estimator=exact`"),
    "momentum of adam": ("optimizer.momentum: {uniform: [0, 0.9]}", PLAIN % "ghpp", "`optimizer.name=adam`"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNREAD)
def test_a_key_that_no_trial_reads_is_refused(case: str, tmp_path: Path) -> None:
    key, config, why = UNREAD[case]
    with pytest.raises(ConfigProblems) as caught:
        good(tmp_path, space=f"{{{key}}}", config=config)
    (sentence,) = caught.value.problems
    name = key.split(":")[0]
    assert sentence.startswith(f"`{name}` must be read by a trial to be searched, got ")
    assert why in sentence
    assert "which does not read it (" in sentence
    assert "given.yaml, line 2" in sentence


@pytest.mark.parametrize(
    "space",
    [
        "{harmonize.lam: {uniform: [0, 1]}, harmonize.rule: {grid: [mean, ghpp]}}",  # one of the rules reads it
        "{harmonize.curvature.order: {choice: [1, 2]}, harmonize.curvature.kind: {grid: [diagonal, hvp]},"
        " harmonize.rule: {grid: [flat_dualproj]}}",
        "{alignment.alpha: {grid: [0, 1]}}",  # 0 turns the penalty off, 1 on
        "{alignment.probes: {choice: [1, 2]}, alignment.estimator: {grid: [hutchinson]}}",
        "{optimizer.momentum: {uniform: [0, 0.9]}, optimizer.name: {grid: [sgd]}}",
    ],
)
def test_a_key_that_some_trial_reads_is_searched(space: str, tmp_path: Path) -> None:
    assert good(tmp_path, space=space)[2]


def test_what_optuna_will_draw_is_known_before(tmp_path: Path) -> None:
    with pytest.raises(ConfigProblems) as caught:
        good(tmp_path, space="{harmonize.lam: {uniform: [0, 1]}}", config=PLAIN % "mean", searcher="optuna")
    assert "`harmonize.lam` must be read" in str(caught.value)
    found = "{harmonize.lam: {uniform: [0, 1]}, harmonize.rule: {choice: [mean, ghpp]}}"
    assert good(tmp_path, space=found, searcher="optuna")[2] == []
