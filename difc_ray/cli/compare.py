"""What `difc-ray compare` prints: a line per method, what each selection rule picks, and where the page lies."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import make_table, print_facts, print_note, print_table
from difc_ray.comparison import Reported, report
from difc_ray.comparison import text as wording
from difc_ray.comparison.comparison import Comparison, SeedMean
from difc_ray.config import SYMBOLS

SHOWN = 24
"""Settings in the table of the terminal; the page has all of them."""


def compare_runs(
    arguments: list[str], baseline: str | None, out: Path | None, target: str | None, uri: str | None, selection: str
) -> None:
    """Compares, writes the report and prints it; the arguments are those of :func:`difc_ray.comparison.report`.

    Raises:
        ConfigError: an argument names nothing, or the runs cannot be compared.
    """
    done = report(arguments, out=out, uri=uri, baseline=baseline, target=target, selection=selection)
    print_comparison(done.comparison)
    print_report(done)


def print_comparison(comparison: Comparison) -> None:
    """The tables, the sentences of the verdict, and the notes."""
    print_table(methods_table(comparison))
    if len(comparison.settings) > len(comparison.methods):
        print_table(settings_table(comparison))
    print_table(choices_table(comparison))
    print_facts({"result": wording.verdict(comparison)})
    for note in comparison.notes:
        print_note(note)


def print_report(done: Reported) -> None:
    """Where the files are."""
    for sentence in done.report.left_out:
        print_note(sentence)
    artifacts = f"artifacts of run {done.run_id}, `{done.artifacts}/`" if done.run_id else ""
    print_facts({"MLflow": artifacts, "numbers": str(done.report.data), "page": str(done.report.page)})
    if done.note:
        print_note(done.note)


def methods_table(comparison: Comparison) -> Table:
    """A line per method, by rank where there are several."""
    several = len(comparison.methods) > 1
    against = f"difference to {comparison.baseline}, points" if comparison.baseline else None
    heads = ("rank" if several else None, "method", "validation", comparison.target, "worst source", "n", against,
             "setting")  # fmt: skip
    shown = [heading for heading in heads if heading is not None]
    table = make_table(*shown, title=comparison.title, right=("rank", "n"))
    for method in comparison.methods:
        baseline = bool(comparison.baseline) and method.difference is None
        cells = [
            *([wording.rank(method)] if several else []),
            method.name,
            wording.estimate(method.validation),
            *([wording.estimate(method.target)] if comparison.target is not None else []),
            f"{wording.estimate(method.worst)} ({', '.join(method.worst_domains)})",
            str(method.validation.n),
            *(["baseline" if baseline else wording.difference(method.difference)] if comparison.baseline else []),
            wording.standing(method),
        ]
        table.add_row(*map(escape, cells), style="bold" if method.difference and method.difference.above else None)
    return table


def settings_table(comparison: Comparison) -> Table:
    """A line per setting with a run that counts, in their order; `--baseline '#1'` takes one of their numbers."""
    shown = [setting for setting in comparison.settings if setting.complete]
    keys = list(shown[0].values) if shown else []
    against = f"difference to {comparison.baseline}, points" if comparison.between_settings else None
    several = len({setting.method for setting in shown}) > 1
    heads = ["setting", *(["method"] if several else []), *(SYMBOLS.get(key, key) for key in keys), "n", "validation"]
    heads += [heading for heading in (comparison.target, against) if heading is not None]
    table = make_table(*heads, title="settings", right=("n",))
    standing = {method.setting.label for method in comparison.methods}
    for setting in shown[:SHOWN]:
        done = setting.complete
        targets = [run.target_accuracy for run in done if run.target_accuracy is not None]
        baseline = setting.label == comparison.baseline
        found = wording.difference(comparison.differences.get(setting.label))
        cells = [
            setting.label,
            *([setting.method] if several else []),
            *(setting.values[key] for key in keys),
            str(len(done)),
            wording.estimate(SeedMean.of([run.validation for run in done])),
            *([wording.estimate(SeedMean.of(targets))] if comparison.target is not None else []),
            *(["baseline" if baseline else found] if comparison.between_settings else []),
        ]
        table.add_row(*map(escape, cells), style="bold" if setting.label in standing else None)
    if len(shown) > SHOWN:
        table.add_row("", f"and {len(shown) - SHOWN} more on the page")
    return table


def choices_table(comparison: Comparison) -> Table:
    """What each selection rule picks."""
    heads = ("rule", "picks", "its criterion", f"{comparison.target or 'target'} then", "remark")
    table = make_table(*heads, title="what each selection rule would have picked")
    for choice in comparison.choices:
        score = "" if choice.score is None else f"{100 * choice.score:.1f} %"
        marked = choice.rule + ("" if choice.honest else " (looks at the target)")
        cells = (
            marked,
            wording.pick(comparison, choice) or "none",
            score,
            wording.choice_target(choice),
            choice.remark,
        )
        table.add_row(*map(escape, cells), style="bold" if choice.rule == comparison.selection else None)
    return table
