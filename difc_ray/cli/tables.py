"""Tables and lines on configurations, runs and datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import console, make_table, print_facts, print_note, print_opening, print_table
from difc_ray.config import Config, documentation, flat, known_names, own_options, rule_options
from difc_ray.config.overrides import as_argument
from difc_ray.data import (
    DATASETS,
    DatasetFamily,
    Domain,
    EvaluationSplit,
    FilesMissingError,
    open_domain,
    open_family,
)
from difc_ray.errors import DataError
from difc_ray.objectives import BASELINE, Coefficients
from difc_ray.options import REQUIRED
from difc_ray.step.factory import family_of, objective_of

if TYPE_CHECKING:  # Ray, MLflow's uploader and figures are not needed to list keys
    from difc_ray.runs.train import Result
    from difc_ray.tracking import SyncReport, TrackingSummary

LONGEST_NAME = 30
"""Characters of a name in a table."""

MANY_CLASSES = 20
"""From so many classes on, their counts are shown as a range."""

ROWS = {
    "tasks": "between alignment and classification, before harmonization",
    "domains": "between domains, before harmonization",
    "both": "between domains and alignment, before harmonization",
}
"""What the rows are that a rule sees, by `harmonize.between`, and when their conflicts are counted."""


def print_banner(config: Config) -> None:
    """Two lines on what is about to run."""
    alignment, harmonize = config.alignment, config.harmonize
    names = f"{' + '.join(config.sources)} → {config.target or 'no target'}"
    objective, coefficients = objective_of(config), Coefficients(alpha=alignment.alpha, beta=alignment.beta)
    described = "no alignment" if config.objective == BASELINE else objective.describe(coefficients)
    rule = harmonize.rule + (f" (λ {harmonize.lam:g})" if "lam" in rule_options(config) else "")
    print_opening(
        str(config.name),
        f"{config.dataset}: {names}",
        f"{config.model}, {config.steps} steps of {config.batch_size} per domain, {described}, {rule} between "
        f"{harmonize.between}, engine {config.engine}",
    )


def print_result(result: Result, config: Config) -> None:
    """Accuracy by domain and split, the worst domain, and where everything lies."""
    print_summary(result.summary, config)
    print_facts({"run": str(result.run_dir), "checkpoint": checkpoint_fact(result.summary)})
    if config.tracking.mode == "off" and result.tracking is not None:
        print_facts({"MLflow": f"off; the records are in {result.run_dir / 'metrics.jsonl'}"})
    elif result.tracking is not None:
        print_tracking(result.tracking)


def print_summary(summary: Mapping[str, Any], config: Config) -> None:
    """The figures of a run's summary."""
    print_table(accuracy_table(summary["accuracy"], config))
    print_facts(summary_facts(summary, config))


def accuracy_table(accuracy: Mapping[str, Mapping[str, float]], config: Config) -> Table:
    """One line per domain; the target has only one number, over all of its examples.

    Args:
        accuracy: domain -> split -> share of right answers.
        config: the run's configuration.
    """
    splits = ("train", "val", "test", "all")
    table = make_table("domain", "role", *splits, title="accuracy", right=splits)
    for domain in (*config.sources, *([config.target] if config.target else [])):
        held_out = domain == config.target
        found = accuracy.get(domain, {})
        shown = [f"{found[split]:.1%}" if split in found else "" for split in splits]
        role = "held out" if held_out else "source"
        table.add_row(escape(domain), role, *shown, style="bold" if held_out else None)
    return table


def summary_facts(summary: Mapping[str, Any], config: Config) -> dict[str, str | Sequence[str]]:
    """Worst domain, time, conflicts, and what went wrong and was mended; as far as the summary has it."""
    facts: dict[str, str | Sequence[str]] = {}
    if "worst_domain" in summary:
        worst = summary["worst_domain"]
        facts["worst source"] = f"{worst['domain']}, {worst['accuracy']:.1%} on {worst['split']}"
    if "step_ms" in summary:
        ms = {part: f"{value:.0f}" for part, value in summary["step_ms"].items()}
        facts["training"] = f"{summary['wall_s']:.0f} s"
        parts = " + ".join(f"{part} {ms[part]}" for part in ("compute", "transport", "coordinator"))
        facts["step"] = [
            f"{ms['step']} ms = {parts}",
            f"besides, per step: evaluation {ms['evaluation']} ms, checkpoints {ms['checkpoint']} ms",
        ]
    if "conflict_share" in summary:
        facts["conflicts"] = f"in {summary['conflict_share']:.0%} of the steps, {ROWS[config.harmonize.between]}"
    if summary.get("skipped_steps"):
        facts["skipped"] = f"{summary['skipped_steps']} step(s), not finite"
    if bad := summary.get("bad_images"):
        facts["bad images"] = ", ".join(f"{name} {n}" for name, n in bad.items()) + "; others stood in for them"
    if restarts := {name: n for name, n in summary.get("restarts", {}).items() if n}:
        facts["restarts"] = ", ".join(f"{name} {n}" for name, n in restarts.items())
    return facts


def checkpoint_fact(summary: Mapping[str, Any]) -> str:
    """Where the evaluated checkpoint is, and why it is that one."""
    return f"{summary['checkpoint']} (step {summary['selected_step']}, {summary['selection']})"


def print_tracking(tracking: TrackingSummary) -> None:
    """Where the MLflow run is, how to open it, and what it still lacks."""
    print_facts(
        {
            "MLflow run": f"{tracking.run_id or 'not created yet'} in {tracking.uri}",
            "open MLflow": tracking.ui_command if tracking.run_id else "",
        }
    )
    if tracking.message:
        print_note(tracking.message)


def print_sync(report: SyncReport) -> None:
    """What was sent, and what still waits."""
    counts = f"{report.sent} record(s); {report.pending} waiting, {report.refused} refused"
    counts += f" (a sweep and its {report.trials} trial(s))" if report.trials else ""
    where = f"{report.run_id or 'not created yet'} in {report.uri}"
    print_facts({"sent": counts, "MLflow run": where, "open MLflow": report.ui_command if report.run_id else ""})
    if report.abandoned:
        print_note(f"{report.abandoned} run(s) whose processes ended without a word are KILLED in MLflow")
    if report.elsewhere:
        hosts = ", ".join(report.elsewhere)
        print_note(f"whether runs still go on that were started on {hosts} can only be told there: they stay open")
    if report.message:
        print_note(report.message)


def print_keys(config: Config) -> None:
    """Every key as it is written on a command line with its value, its meaning, and what it must be.

    Below a key for options are those of what is chosen.
    """
    given, default, own = flat(config), flat(type(config)()), own_options(config)
    table = Table("key=value", "meaning", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    section = ""
    for key, rule, _, meaning in documentation():
        if (above := key.rpartition(".")[0]) != section:
            section = above
            table.add_row("", "")
        if names := known_names(key):
            rule = f"one of {', '.join(names)}"
        rows = [(key, given.get(key, "{…}"), default.get(key, "{}"), meaning, rule)]
        for name, its_rule, its_default, its_meaning in own.get(key, ()):
            option = f"{key}.{name}"
            usual = "" if its_default is REQUIRED else as_argument(option, its_default)
            rows.append((option, given.get(option, usual), usual, its_meaning, its_rule))
        for setting, value, usual, its_meaning, its_rule in rows:
            shown = escape(f"{setting}={value}") if value == usual else f"[bold]{escape(f'{setting}={value}')}[/]"
            note = "" if value == usual else f" [bold](default: {escape(usual)})[/]"
            table.add_row(shown, f"{escape(its_meaning)} [dim]({escape(its_rule)})[/]{note}")
    print_table(table)


DATASET_KEYS: Final = ("dataset", "dataset_options", "root", "image_size", "on_bad_image", "plugins", "seed")
"""What decides which domains there are."""


def print_domains(config: Config, *, alone: bool) -> None:
    """Datasets, their domains with sizes by split, and examples per class.

    Args:
        config: the configuration, of which :data:`DATASET_KEYS` are read.
        alone: whether the configured dataset is the only one of interest.

    Raises:
        DataError: the files of the configured dataset cannot be used; other datasets may lack theirs.
    """
    for name in [config.dataset] if alone else DATASETS:
        chosen = name == config.dataset
        try:
            family = family_of(config) if chosen else open_family(name, {}, None, config.seed)
            table, missing = domain_table(name, family)
        except DataError as error:
            if chosen:
                raise
            console.print(f"[bold]{escape(name)}[/]  {escape(str(error))}", soft_wrap=True)
            continue
        console.print(f"[bold]{escape(name)}[/]  {escape(family.description)}", soft_wrap=True)
        print_table(table)
        for sentence in missing:
            console.print(escape(sentence), soft_wrap=True)
        images = "×".join(map(str, family.image_shape))
        print_facts({"classes": ", ".join(family.class_names), "images": f"{images} (channels × height × width)"})


def domain_table(dataset: str, family: DatasetFamily) -> tuple[Table, list[str]]:
    """One line per domain, and a sentence for all files that are missing.

    Raises:
        DataError: a domain cannot be used, or the files of all of them are missing.
    """
    splits: tuple[EvaluationSplit, ...] = ("train", "val", "test", "all")
    table = make_table("domain", *splits, "examples per class", right=splits)
    missing: dict[str, FilesMissingError] = {}
    names = family.domain_names()
    for name in names:
        try:
            domain = open_domain(dataset, family, name)
        except FilesMissingError as error:
            missing[name] = error
            table.add_row(escape(name), "", "", "", "", "files missing")
            continue
        sizes = [domain.size(split) for split in splits]
        table.add_row(escape(name), *map(str, sizes), escape(class_counts(domain)))
    if missing and len(missing) == len(names):
        raise next(iter(missing.values()))
    return table, list(dict.fromkeys(str(error.at(f"dataset `{dataset}`")) for error in missing.values()))


def class_counts(domain: Domain, *, whole: bool = False) -> str:
    """Examples of every class: one number if all are equal, a range if there are many classes.

    Args:
        domain: the domain.
        whole: also those that are in no split, as where it is held out.
    """
    splits: tuple[EvaluationSplit, ...] = ("all",) if whole else ("train", "val", "test")
    counts = np.sum([domain.class_counts(split) for split in splits], axis=0)
    lowest, highest = int(counts.min()), int(counts.max())
    if lowest == highest:
        return f"{lowest} each"
    if len(counts) >= MANY_CLASSES:
        missing = [name for name, count in zip(domain.class_names, counts, strict=True) if count == 0]
        return f"{lowest} to {highest}" + (f"; none of {shortened(missing)}" if missing else "")
    return ", ".join(f"{brief(name)}: {count}" for name, count in zip(domain.class_names, counts, strict=True))


def shortened(names: Sequence[str], most: int = 5) -> str:
    """Some names on one line.

    >>> shortened(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(brief, names[:most])) + more


def brief(name: str) -> str:
    """A name that fits into a table: the middle of a long one is left out."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME // 2]}…{name[-(LONGEST_NAME // 2 - 1) :]}"
