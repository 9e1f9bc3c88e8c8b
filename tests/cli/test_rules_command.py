"""`difc-ray rules` and `difc-ray rules --check`."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from difc_ray import harmonize
from difc_ray.harmonizers import HARMONIZERS
from tests.cli.shell import Cli, assert_sentences


def test_every_rule_is_listed_with_its_guarantee(cli: Cli) -> None:
    answer = cli("rules")
    assert answer.code == 0, answer.err
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    for name in HARMONIZERS.names():
        rule = HARMONIZERS.get(name)
        assert rule.summary in lines[name]
        assert rule.guarantee in lines[name]
        assert rule.cost in lines[name]
    assert max(map(len, answer.out.splitlines())) <= 150


def test_one_rule(cli: Cli) -> None:
    """All that it says of itself: guarantee, source, every option with its default, and its docstring."""
    answer = cli("rules", "ghpp")
    assert (answer.code, answer.err) == (0, "")
    rule = HARMONIZERS.get("ghpp")
    for words in (rule.summary, rule.guarantee, rule.cost, rule.source, "harmonize.lam=0.5", "s_min=0.05"):
        assert words in answer.out
    assert "max_weight=null" in answer.out
    assert "Differs from the source:" in answer.out
    assert "options       none" in cli("rules", "mean").out


@pytest.mark.parametrize("alias", ["gh++", "GH++"])
def test_a_rule_answers_to_the_name_in_its_paper(alias: str, cli: Cli) -> None:
    """It is recorded under one name."""
    assert cli("rules", alias).out == cli("rules", "ghpp").out
    answer = cli("config", "--print", f"harmonize.rule={alias}", "harmonize.lam=0.3")
    assert (answer.code, answer.err) == (0, "")
    assert yaml.safe_load(answer.out)["harmonize"]["rule"] == "ghpp"
    gram = [[1.0, -0.5], [-0.5, 2.0]]
    assert np.array_equal(harmonize(gram, alias, lam=0.3).weights, harmonize(gram, "ghpp", lam=0.3).weights)
    assert alias not in HARMONIZERS.names()


def test_one_rule_that_there_is_not(cli: Cli) -> None:
    answer = cli("rules", "ghpq")
    assert answer.code == 2
    assert_sentences(answer, ("a rule must be known, got `ghpq` (command line). Did you mean `ghpp`?",))


def test_rules_that_promise_no_conflict_have_none(cli: Cli) -> None:
    answer = cli("rules", "--check", "--draws", "40")
    assert answer.code == 0, answer.err
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    proven = [name for name in HARMONIZERS.names() if HARMONIZERS.get(name).guarantee == "proven"]
    assert len(proven) >= 5
    for name in proven:
        assert " 0.0%" in lines[name], lines[name]
    assert " 0.0%" not in lines["mean"]  # the same draws do conflict


@pytest.mark.parametrize("draws", ["0", "x", "1.5"])
def test_no_draws_is_refused(draws: str, cli: Cli) -> None:
    answer = cli("rules", "--draws", draws)
    assert answer.code == 2
    assert_sentences(answer, (f"`--draws` must be an integer >= 1, got {draws} (command line). Write",))
