"""Runs compared: a line per method, differences to a baseline, ranks, and what each selection rule would pick.

Pure functions of records; nothing here reads a store or writes a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from difc_ray.comparison.caveats import cautions, left_out
from difc_ray.comparison.records import RunRecord
from difc_ray.comparison.settings import Setting, group
from difc_ray.comparison.statistics import (
    Correlation,
    Difference,
    Rank,
    Values,
    correlation,
    paired_difference,
    ranking,
)
from difc_ray.errors import ConfigError
from difc_ray.registry import did_you_mean
from difc_ray.sweeps.selection import CHOICE_RULES, Candidate, Choice, choose, choose_all, mean_and_error

MIN_CORRELATED: Final = 5
"""Runs that a correlation needs: three points lie on a line by chance too often."""
DEFAULT_BASELINE: Final = "mean"


@dataclass(frozen=True, kw_only=True)
class SeedMean:
    """Mean over seeds of an accuracy in [0, 1]; its standard error is None below two seeds."""

    n: int
    mean: float | None = None
    error: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """The estimate from one value per seed."""
        mean, error = mean_and_error(values)
        return cls(n=len(values), mean=mean, error=error)


@dataclass(frozen=True, kw_only=True)
class MethodResult:
    """A method at the setting that stands for it.

    Args:
        name: rule and objective.
        setting: label of the setting.
        among: number of the method's settings with a run that counts, among which it was chosen.
        validation: mean over the sources' ``val`` splits.
        target: on the whole target.
        worst: the lowest of the sources' validation accuracies, run by run.
        worst_domains: the sources that were the worst in some run.
        difference: to the baseline in the figure that ranks; None for the baseline, or without one.
        validation_difference: the same in validation accuracy.
        rank: place among the methods.
    """

    name: str
    setting: Setting
    among: int
    validation: SeedMean
    target: SeedMean
    worst: SeedMean
    worst_domains: tuple[str, ...]
    difference: Difference | None
    validation_difference: Difference | None
    rank: Rank


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Everything that a report says.

    Args:
        title: what was compared.
        dataset: name of the dataset.
        sources: domains that trained.
        target: name of the target; None if there is none.
        selection: rule that chose the setting of each method.
        baseline: method that the others are compared to, or the label of a setting (`#1`); None without one.
        ranked_by: `target` or `validation`: the figure of ranks and differences.
        methods: by place, then by that figure.
        settings: every setting, in the order of its runs.
        differences: label of a setting -> its paired difference to the baseline, in the figure that ranks; not of the
            baseline's own setting, nor of those without a run that counts.
        choices: what each selection rule picks among all settings.
        hessian: correlation of Hessian distance and target accuracy over runs; None for too few runs.
        notes: what a reader must know, one sentence each.
    """

    title: str
    dataset: str
    sources: tuple[str, ...]
    target: str | None
    selection: str
    baseline: str | None
    ranked_by: str
    methods: tuple[MethodResult, ...]
    settings: tuple[Setting, ...]
    differences: Mapping[str, Difference]
    choices: tuple[Choice, ...]
    hessian: Correlation | None
    notes: tuple[str, ...]

    def setting(self, label: str | None) -> Setting | None:
        """The setting of that label."""
        return next((setting for setting in self.settings if setting.label == label), None)

    @property
    def between_settings(self) -> bool:
        """Whether the baseline is a setting, so that settings are compared and not methods."""
        return self.setting(self.baseline) is not None

    @property
    def compared(self) -> list[tuple[str, Difference]]:
        """What is compared with the baseline, by name: methods, or settings if the baseline is one."""
        if self.between_settings:
            return list(self.differences.items())
        return [(method.name, method.difference) for method in self.methods if method.difference is not None]

    @property
    def runs(self) -> list[RunRecord]:
        """All runs, without the extra ones that held a source out."""
        return [run for setting in self.settings for run in setting.runs]


def analyse(
    records: Sequence[RunRecord],
    *,
    title: str = "runs",
    baseline: str | None = None,
    target: str | None = None,
    selection: str = CHOICE_RULES[0],
    notes: Sequence[str] = (),
) -> Comparison:
    """Compares runs.

    Args:
        records: the runs, those that failed, were stopped or held a source out included.
        title: what they are.
        baseline: rule, method or label of a setting (`#1`) to compare with; None: `mean` if there is one.
        target: keep the runs with this target only; None: all runs must have the same.
        selection: rule that chooses the setting of each method.
        notes: sentences to begin the report's notes with.

    Raises:
        ConfigError: runs that cannot be compared, none that finished, or an unknown baseline or rule.
    """
    settings, repeated = group(comparable(records, target))
    runs = [run for setting in settings for run in setting.runs]
    if not any(run.complete for run in runs):
        raise ConfigError(_nothing_finished(settings))
    known = next(run for run in runs if run.complete)
    candidates = {setting.label: _candidates(setting, known.target) for setting in settings}
    chosen, said = _representatives(settings, candidates, selection)
    reference, about_baseline = _baseline(list(chosen), baseline, settings)
    ranked_by = "target" if all(_values(setting, "target") for setting, _ in chosen.values()) else "validation"
    standard = next((s for s in settings if s.label == reference), None) or (
        chosen[reference][0] if reference else None
    )
    methods = _methods(chosen, standard, ranked_by)
    every = [candidate for setting in settings for candidate in candidates[setting.label]]
    measured = [run for run in runs if run.complete and run.hessian is not None and run.target_accuracy is not None]
    return Comparison(
        title=title,
        dataset=known.dataset,
        sources=known.sources,
        target=known.target,
        selection=selection,
        baseline=reference,
        ranked_by=ranked_by,
        methods=methods,
        settings=tuple(settings),
        differences=_differences(settings, standard, ranked_by),
        choices=tuple(choose_all(every)),
        hessian=correlation([run.hessian or 0.0 for run in measured], [run.target_accuracy or 0.0 for run in measured])
        if len(measured) >= MIN_CORRELATED
        else None,
        notes=(
            *notes,
            *about_baseline,
            *left_out(records, target),
            *said,
            *cautions(settings, [(m.name, m.among, m.difference) for m in methods], selection, repeated),
        ),
    )


def comparable(records: Sequence[RunRecord], target: str | None) -> list[RunRecord]:
    """The runs to compare.

    Args:
        records: all that were found. Runs without a dataset never got as far as to load it, and fit any.
        target: the only target to keep; None: there must be one only.

    Raises:
        ConfigError: several targets, datasets or contents of the data, or the target is not among them.
    """
    own = [record for record in records if record.fold is None and record.dataset]
    if not own:
        raise ConfigError(_nothing_finished(group(records)[0]))
    targets = list(dict.fromkeys(record.target or "none" for record in own))
    if target is not None and target not in targets:
        raise ConfigError(
            f"`--target` must be the target of some of the runs, got `{target}` (command line). "
            f"{did_you_mean(target, targets)}"
        )
    if target is None and len(targets) > 1:
        raise ConfigError(
            "runs must have the same target to be compared, because accuracies on different domains are not of one "
            f"kind, got {', '.join(f'`{name}`' for name in targets)} (tag `target`). Choose one with `--target NAME`."
        )
    kept = [record for record in own if target is None or (record.target or "none") == target]
    for what, values, remedy in (
        ("dataset", {record.dataset: record.name for record in kept}, "Compare runs on one dataset."),
        (
            "data",
            {f"{record.fingerprint[:12]} ({', '.join(record.sources)})": record.name for record in kept},
            "Compare runs on the same sources and files.",
        ),
    ):
        distinct = {value.split(" ")[0]: (value, name) for value, name in values.items()}
        if len(distinct) > 1:
            listed = ", ".join(f"`{value}` in `{name}`" for value, name in distinct.values())
            raise ConfigError(
                f"runs must have the same {what} to be compared, because a difference could come from the {what} "
                f"alone, got {listed} (tag `dataset{'.fingerprint' if what == 'data' else ''}`). {remedy}"
            )
    ids = {record.run_id for record in kept}
    settings = {(record.sweep, record.point) for record in kept}
    return [
        record
        for record in records
        if record.run_id in ids
        or (not record.dataset and record.fold is None)
        or (record.fold is not None and (record.sweep, record.point) in settings)
    ]


def _candidates(setting: Setting, target: str | None) -> list[Candidate]:
    """A candidate per finished run, with the accuracies on the sources that extra runs held out."""
    found = []
    for run in setting.complete:
        folds = [fold for fold in setting.folds if fold.seed == run.seed and fold.state == "finished"]
        held_out = {
            str(fold.fold): fold.target_accuracy
            for fold in folds
            if fold.target_accuracy is not None and target not in fold.sources and fold.fold not in fold.sources
        }
        found.append(
            Candidate(
                point=setting.label,
                seed=run.seed,
                validation=run.validation,
                target=run.target_accuracy,
                held_out=held_out,
            )
        )
    return found


def _representatives(
    settings: Sequence[Setting], candidates: Mapping[str, Sequence[Candidate]], rule: str
) -> tuple[dict[str, tuple[Setting, int]], list[str]]:
    """Method -> the setting that stands for it, and among how many; what could not be chosen, as sentences."""
    by_label = {setting.label: setting for setting in settings}
    chosen: dict[str, tuple[Setting, int]] = {}
    notes: list[str] = []
    for method in dict.fromkeys(setting.method for setting in settings):
        own = [setting for setting in settings if setting.method == method and setting.complete]
        choice = choose([candidate for setting in own for candidate in candidates[setting.label]], rule)
        if choice.point is not None:
            chosen[method] = (by_label[choice.point], len(own))
        elif len(own) == 1:  # nothing to choose
            chosen[method] = (own[0], 1)
        else:
            why = "no run of it has finished." if not own else f"`{rule}` cannot choose its setting: {choice.remark}"
            notes.append(f"`{method}` is not in the table: {why}")
    if not chosen:
        raise ConfigError(
            f"the selection rule must have its figures, got none for `{rule}` (--selection). {' '.join(notes)} "
            f"Choose another rule: {', '.join(CHOICE_RULES)}."
        )
    return chosen, notes


def _baseline(methods: Sequence[str], wanted: str | None, settings: Sequence[Setting]) -> tuple[str | None, list[str]]:
    """The method or the setting to compare with, and a sentence if there is something to say about it."""
    name = wanted or DEFAULT_BASELINE
    labels = [setting.label for setting in settings if setting.complete]
    if name in labels:
        return name, []
    if "#" in name:
        raise ConfigError(
            f"a setting that is the baseline must have a run that counts, got `{name}` (--baseline). "
            f"{did_you_mean(name, labels)}"
        )
    matching = [method for method in methods if name in (method, method.split(" + ")[0])]
    plain = f"{name} + erm"
    if len(matching) == 1 or plain in matching:
        return plain if plain in matching else matching[0], []
    if wanted is None:
        what = "several methods with that rule" if matching else "no method with that rule has a finished run"
        return None, [f"There is no baseline `{name}` ({what}); choose one with `--baseline`."]
    if matching:
        listed = ", ".join(f"`{method}`" for method in matching)
        raise ConfigError(f"the baseline must be one method, got `{name}`, which is {listed} (--baseline). Name one.")
    raise ConfigError(f"unknown baseline, got `{name}` (--baseline). {did_you_mean(name, methods)}")


def _differences(settings: Sequence[Setting], standard: Setting | None, ranked_by: str) -> dict[str, Difference]:
    """Label of a setting -> its paired difference to the setting that is the standard."""
    if standard is None:
        return {}
    return {
        setting.label: paired_difference(_values(setting, ranked_by), _values(standard, ranked_by))
        for setting in settings
        if setting.complete and setting.label != standard.label
    }


def _methods(
    chosen: Mapping[str, tuple[Setting, int]], standard: Setting | None, ranked_by: str
) -> tuple[MethodResult, ...]:
    values = {method: _values(setting, ranked_by) for method, (setting, _) in chosen.items()}
    validation = {method: _values(setting, "validation") for method, (setting, _) in chosen.items()}
    ranks = ranking(values)
    found = []
    for method, (setting, among) in chosen.items():
        compared = standard is not None and setting.label != standard.label
        worst = [run.worst for run in setting.complete if run.worst is not None]
        found.append(
            MethodResult(
                name=method,
                setting=setting,
                among=among,
                validation=SeedMean.of(list(validation[method].values())),
                target=SeedMean.of(list(_values(setting, "target").values())),
                worst=SeedMean.of([accuracy for _, accuracy in worst]),
                worst_domains=tuple(dict.fromkeys(domain for domain, _ in worst)),
                difference=_difference(values[method], standard, ranked_by) if compared else None,
                validation_difference=_difference(validation[method], standard, "validation") if compared else None,
                rank=ranks[method],
            )
        )
    return tuple(sorted(found, key=lambda method: (method.rank.place, -_figure(method, ranked_by))))


def _difference(values: Values, standard: Setting | None, figure: str) -> Difference | None:
    return None if standard is None else paired_difference(values, _values(standard, figure))


def _figure(method: MethodResult, ranked_by: str) -> float:
    return (method.target if ranked_by == "target" else method.validation).mean or 0.0


def _values(setting: Setting, figure: str) -> Values:
    """(target, seed) -> accuracy of a setting's finished runs; runs without it are left out."""
    accuracies = {
        (run.target or "", run.seed): run.target_accuracy if figure == "target" else run.validation
        for run in setting.complete
    }
    return {key: value for key, value in accuracies.items() if value is not None}


def _nothing_finished(settings: Sequence[Setting]) -> str:
    states = [f"{setting.label} {setting.status}" for setting in settings if setting.runs]
    listed = "; ".join(states[:3]) + (f"; and {len(states) - 3} more settings" if len(states) > 3 else "")
    return (
        "at least one run must have finished to be compared, got "
        f"{listed or 'no run but those that held a source out'} (MLflow). "
        "Continue the sweep with `--resume`, or look at the causes."
    )
