"""`difc-ray rules` and `difc-ray rules --check`."""

from __future__ import annotations

from difc_ray.harmonizers import HARMONIZERS
from tests.cli.shell import Cli


def test_every_rule_is_listed_with_its_guarantee_and_source(cli: Cli) -> None:
    answer = cli("rules")
    assert answer.code == 0, answer.err
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    for name in HARMONIZERS.names():
        rule = HARMONIZERS.get(name)
        assert rule.summary in lines[name]
        assert rule.guarantee in lines[name]
        assert rule.source in lines[name]


def test_rules_that_promise_no_conflict_have_none(cli: Cli) -> None:
    answer = cli("rules", "--check", "--draws", "40")
    assert answer.code == 0, answer.err
    lines = {line.split()[0]: line for line in answer.out.splitlines() if line.strip()}
    proven = [name for name in HARMONIZERS.names() if HARMONIZERS.get(name).guarantee == "proven"]
    assert len(proven) >= 5
    for name in proven:
        assert " 0.0%" in lines[name], lines[name]
    assert " 0.0%" not in lines["mean"]  # the same draws do conflict


def test_no_draws_is_refused(cli: Cli) -> None:
    answer = cli("rules", "--check", "--draws", "0")
    assert answer.code == 2
    assert "difc-ray: error:" in answer.err
