"""Which setting is chosen among many runs, and what other rules would have chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from difc_ray.errors import ConfigError
from difc_ray.registry import did_you_mean


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One finished run as selection across runs sees it; accuracies in [0, 1].

    Args:
        point: identity of the setting, the same for all of its seeds.
        seed: seed of the run.
        validation: accuracy of the selected checkpoint on the sources' ``val`` splits, mean over the sources.
        target: accuracy on the whole target; None if there is none.
        held_out: per source domain the accuracy on it of an extra run of the same setting and seed that trained without
            this domain and without the target; empty if there are no such runs.
    """

    point: str
    seed: int
    validation: float
    target: float | None = None
    held_out: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a selection rule picks among settings.

    Args:
        rule: name of the rule.
        honest: whether the target's labels had no part in it.
        point: the setting; None if the rule cannot choose.
        score: the rule's criterion for it, mean over seeds, in [0, 1].
        seeds: number of runs behind the score.
        target: mean accuracy of the picked setting on the target; None without one.
        target_error: standard error of that mean over seeds; None below two seeds.
        remark: why the rule cannot choose, or what limits its choice; a sentence, or empty.
    """

    rule: str
    honest: bool
    point: str | None = None
    score: float | None = None
    seeds: int = 0
    target: float | None = None
    target_error: float | None = None
    remark: str = ""


CHOICE_RULES: Final = ("train_domain_val", "leave_one_domain_out", "oracle")
"""Rules of :func:`choose`; the first is the default."""


def choose(candidates: Sequence[Candidate], rule: str = CHOICE_RULES[0]) -> Choice:
    """The setting with the highest criterion, averaged over the seeds of each setting; the first of equal ones.

    ``train_domain_val`` takes the validation accuracy on the sources, ``leave_one_domain_out`` the mean accuracy on
    sources that were held out in turn, ``oracle`` the accuracy on the target itself.

    Args:
        candidates: finished runs, any number of seeds per setting.
        rule: one of :data:`CHOICE_RULES`.

    Returns:
        The choice; without a setting, and with a sentence that says why, if no run has what the rule needs.

    Raises:
        ConfigError: there is no such rule.

    Source: Gulrajani & Lopez-Paz 2021, section 3, the three model selection methods.
    Differs from the source: the oracle reads the checkpoint that the run itself selected, not its last one.
    """
    if rule not in CHOICE_RULES:
        raise ConfigError(
            f"the selection rule across runs must be known, got `{rule}` (--selection). "
            f"{did_you_mean(rule, CHOICE_RULES)}"
        )
    folds = sorted({domain for candidate in candidates for domain in candidate.held_out})
    criterion, missing = _criterion(rule, folds)
    scores: dict[str, list[float]] = {}
    for candidate in candidates:
        value = criterion(candidate)
        if not math.isnan(value):
            scores.setdefault(candidate.point, []).append(value)
    if not scores:
        return Choice(rule=rule, honest=rule != "oracle", remark=missing)
    means = {point: math.fsum(values) / len(values) for point, values in scores.items()}
    best = max(means, key=lambda point: means[point])
    targets = [c.target for c in candidates if c.point == best and c.target is not None and not math.isnan(c.target)]
    counts = {len(values) for values in scores.values()}
    uneven = f"The settings have {min(counts)} to {max(counts)} seeds each; few seeds make a lucky mean more likely."
    mean, error = mean_and_error(targets)
    return Choice(
        rule=rule, honest=rule != "oracle", point=best, score=means[best], seeds=len(scores[best]),
        target=mean, target_error=error, remark=uneven if len(counts) > 1 else "",
    )  # fmt: skip


def choose_all(candidates: Sequence[Candidate]) -> list[Choice]:
    """What each rule of :data:`CHOICE_RULES` would have picked, in that order."""
    return [choose(candidates, rule) for rule in CHOICE_RULES]


def mean_and_error(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and its standard error: the sample's standard deviation (n - 1) over √n; None where n does not allow it.

    >>> mean_and_error([1.0, 3.0]), mean_and_error([1.0]), mean_and_error([])
    ((2.0, 1.0), (1.0, None), (None, None))
    """
    n = len(values)
    if n == 0:
        return None, None
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _criterion(rule: str, folds: Sequence[str]) -> tuple[Callable[[Candidate], float], str]:
    """What a rule reads off a run, NaN where the run has it not; and the sentence for when no run has it."""
    if rule == "train_domain_val":
        return lambda candidate: candidate.validation, "No finished run has a validation accuracy on its sources."
    if rule == "oracle":
        return (
            lambda candidate: math.nan if candidate.target is None else candidate.target,
            "No finished run has an accuracy on a target.",
        )
    if not folds:
        return lambda candidate: math.nan, "No runs held a source domain out; sweep with `leave_one_domain_out`."
    return (
        lambda candidate: math.fsum(candidate.held_out.get(domain, math.nan) for domain in folds) / len(folds),
        f"No setting has a finished run for every held-out source ({', '.join(folds)}).",
    )
