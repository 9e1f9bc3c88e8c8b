"""`difc-ray reproduce`: what a person sees of it, and the files that it leaves."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.markup import escape

from difc_ray.cli.console import Lines, make_table, print_facts, print_line, print_note, print_opening, print_table
from difc_ray.cli.usage import whole_number
from difc_ray.errors import ConfigError
from difc_ray.studies.colored_mnist.methods import methods_of
from difc_ray.studies.colored_mnist.running import Reproduction, Request, StudyPlan, command_of, planned, reproduce
from difc_ray.studies.colored_mnist.table import cells, footnotes, header, markdown, numbers, rows_of, title_of
from difc_ray.sweeps.folder import ENDED, TrialRecord

EXPERIMENTS = ("colored-mnist",)
SELECTIONS = ("last", "train")


class RestartLines(Lines):
    """A line for every run that ends.

    Args:
        plan: what runs.
    """

    def __init__(self, plan: StudyPlan) -> None:
        self.plan = plan
        self.ended: set[int] = set()

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """One line where the run has ended."""
        point = record.point
        if record.status not in ENDED or point.number in self.ended:
            return
        self.ended.add(point.number)
        test = values.get(f"all/accuracy/{self.plan.base.target}")
        measured = "" if test is None else f"  test {test:.1%}"
        reason = f": {' '.join(record.reason.split())}" if record.reason else ""
        print_line(
            f"{len(self.ended)}/{len(self.plan.points)}  {self.plan.method(point)}  restart {point.seed}{measured}  "
            f"{record.seconds:.0f} s  {record.status}{reason}"
        )


def run_reproduction(
    experiment: str, restarts: str, methods: str | None, digits: Path | None, output: Path | None, selection: str,
    settings: Sequence[str],
) -> int:  # fmt: skip
    """Runs an experiment, prints its table, and writes its files; returns the exit code.

    Raises:
        DifcError: what the user can act on.
    """
    if experiment not in EXPERIMENTS:
        near = difflib.get_close_matches(experiment, EXPERIMENTS, n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else f"There is `{EXPERIMENTS[0]}`."
        raise ConfigError(f"an experiment must be known, got `{experiment}` (command line). {remedy}")
    if selection not in SELECTIONS:
        raise ConfigError(
            f"`--selection` must be `last` or `train`, got `{selection}` (command line). `last` is the published "
            "protocol, `train` shows beside it what the training domains alone would have chosen."
        )
    request = Request(
        methods=methods_of(methods), restarts=whole_number("--restarts", restarts),
        digits=None if digits is None else digits.expanduser().absolute(), output=output, settings=settings,
    )  # fmt: skip
    plan = planned(replace(request, command=command_of(request)))
    begin(plan)
    found = reproduce(plan, RestartLines(plan))
    finish(found, honest=selection == "train")
    return 7 if found.failed else 0


def begin(plan: StudyPlan) -> None:
    """Two lines on what is about to run."""
    base, request = plan.base, plan.request
    print_opening(
        "Colored MNIST",
        request.dataset,
        f"{len(request.methods)} methods, runs: {request.restarts} of each, {base.steps} steps of all "
        f"{base.batch_size} examples of {' and '.join(base.sources)}; test on {base.target}",
    )
    if request.digits is None:
        print_note("these are 5,000 of MNIST's digits; `--digits PATH` takes all of them from torchvision's files")
    if plan.resume:
        print_note("runs that have ended are not run again")


def finish(found: Reproduction, *, honest: bool) -> None:
    """Table, footnotes and files; pictures need matplotlib, which is imported here."""
    from difc_ray.studies.colored_mnist.pictures import accuracy_curves, distance_scatter

    rows, name = rows_of(found), found.request.dataset
    table = make_table(*header(honest=honest), title=title_of(found), right=("n", "s"))
    for row in rows:
        table.add_row(*map(escape, cells(row, honest=honest)))
    print_table(table)
    for number, note in enumerate(footnotes(found, rows, honest=honest), start=1):
        print_line(f"{number}. {note}")
    for record in found.failed:
        method = found.request.methods[record.point.setting].name
        print_note(f"{method}, restart {record.point.seed}, {record.status}: {' '.join(record.reason.split())}")
    files = {"table": found.folder / f"{name}-table.md", "numbers": found.folder / f"{name}-runs.csv"}
    files["table"].write_text(markdown(found, rows, honest=honest), encoding="utf-8")
    files["numbers"].write_text(numbers(found), encoding="utf-8")
    if found.runs:
        for title, draw in (("accuracy", accuracy_curves), ("distances", distance_scatter)):
            files[title] = found.folder / f"{name}-{title}.png"
            draw(found).savefig(files[title], dpi=120)
    print_facts({kind: str(path) for kind, path in files.items()})
