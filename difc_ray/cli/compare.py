"""What `difc-ray compare` prints: a line per method, what each selection rule picks, and where the page lies."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape
from rich.table import Table

from difc_ray.cli.tables import print_facts, print_note, print_table
from difc_ray.reports import Reported, report, wording
from difc_ray.reports.comparison import Comparison


def compare_runs(
    arguments: list[str], baseline: str | None, out: Path | None, target: str | None, uri: str | None, selection: str
) -> None:
    """Compares, writes the report and prints it; the arguments are those of :func:`difc_ray.reports.report`.

    Raises:
        ConfigError: an argument names nothing, or the runs cannot be compared.
    """
    done = report(arguments, out=out, uri=uri, baseline=baseline, target=target, selection=selection)
    print_comparison(done.comparison)
    print_report(done)


def print_comparison(comparison: Comparison) -> None:
    """The tables, the sentences of the verdict, and the notes."""
    print_table(methods_table(comparison))
    print_table(choices_table(comparison))
    print_facts({"result": wording.verdict(comparison)})
    for note in comparison.notes:
        print_note(note)


def print_report(done: Reported) -> None:
    """Where the files are."""
    for sentence in done.report.left_out:
        print_note(sentence)
    artifacts = f"artifacts of run {done.run_id}, `report/`" if done.run_id else ""
    print_facts({"MLflow": artifacts, "numbers": str(done.report.data), "page": str(done.report.page)})
    if done.note:
        print_note(done.note)


def methods_table(comparison: Comparison) -> Table:
    """A line per method, by rank."""
    table = Table(title=escape(comparison.title), title_justify="left")
    against = f"difference to {comparison.baseline}, points" if comparison.baseline else None
    for heading in ("rank", "method", "validation", comparison.target, "worst source", "n", against, "setting"):
        if heading is not None:
            table.add_column(escape(heading), justify="right" if heading in ("rank", "n") else "left")
    for method in comparison.methods:
        baseline = method.name == comparison.baseline
        cells = [
            wording.rank(method),
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


def choices_table(comparison: Comparison) -> Table:
    """What each selection rule picks."""
    table = Table(title="what each selection rule would have picked", title_justify="left")
    for heading in ("rule", "picks", "its criterion", f"{comparison.target or 'target'} then", "remark"):
        table.add_column(escape(heading))
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
