"""What a person sees of a sweep: a line per evaluation, or a table that stays in place; and what it came to."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import (
    Lines,
    make_table,
    open_live,
    print_facts,
    print_line,
    print_live_note,
    print_note,
    print_opening,
    print_table,
)
from difc_ray.cli.tables import print_tracking
from difc_ray.config import Config
from difc_ray.sweeps.folder import ENDED, TrialRecord
from difc_ray.sweeps.outcome import SweepResult, settings_of
from difc_ray.sweeps.space import Space
from difc_ray.sweeps.trials import Point, label

SHOWN = 12
"""Trials in the live table: those that run, then the best of the others."""


class SweepView(Lines):
    """A line per evaluation, for logs and pipes.

    Args:
        space: the search space.
        base: what all trials share.
        trials: number of trials.
    """

    def __init__(self, space: Space, base: Config, trials: int) -> None:
        self.space, self.base, self.trials = space, base, trials
        self.records: dict[int, TrialRecord] = {}
        self.values: dict[int, float] = {}
        self.began = time.monotonic()

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """One line."""
        self.keep(record, values)
        point = record.point
        fold = f" without {point.fold}" if point.fold else ""
        measure = f"  {self.measured(point.number)}" if point.number in self.values else ""
        ending = {
            "finished": "  finished",
            "stopped": "  stopped",
            "failed": f"  failed: {' '.join(record.reason.split())}",
        }.get(record.status, "")
        print_line(
            f"{self.ended()}/{self.trials}  trial {point.number}  seed {point.seed}{fold}  {label(point.values)}  "
            f"step {record.step}/{self.base.steps}{measure}{ending}"
        )

    def keep(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """Remembers how a trial stands."""
        self.records[record.point.number] = record
        value = values.get(self.space.metric, math.nan)
        if math.isfinite(value):
            self.values[record.point.number] = value

    def ended(self) -> int:
        """How many trials have ended as far as they have told."""
        return sum(record.status in ENDED for record in self.records.values())

    def measured(self, number: int) -> str:
        """The metric of a trial as it is shown."""
        name, value = self.space.metric.rpartition("/")[0] or self.space.metric, self.values[number]
        shown = f"{value:.4f}" if "loss" in self.space.metric else f"{value:.1%}"
        return f"{'validation' if name == 'selection' else self.space.metric} {shown}"


class LiveSweepView(SweepView):
    """A table that stays in place."""

    def __init__(self, space: Space, base: Config, trials: int, live: Live) -> None:
        super().__init__(space, base, trials)
        self.live, self.doing = live, ""

    def phase(self, text: str) -> None:
        """Names it above the table."""
        self.doing = text
        self.live.update(self.table())

    def trial(self, record: TrialRecord, values: Mapping[str, float]) -> None:
        """Moves the table."""
        self.keep(record, values)
        self.doing = "training"
        self.live.update(self.table())

    def notice(self, message: str) -> None:
        """A line above the table, which stays."""
        print_live_note(self.live, message)

    def table(self) -> Table:
        """Trials that run, then the best of the others."""
        minutes = (time.monotonic() - self.began) / 60
        title = f"{self.doing}: {self.ended()} of {self.trials} trials have ended, {minutes:.1f} min"
        right = ("trial", "seed", "step", "validation")
        heads = ("trial", "seed", "setting", "step", "validation", "status")
        table = make_table(*heads, title=title, right=right, box=None, padding=(0, 2))
        sign = -1 if self.space.mode == "max" else 1
        order = sorted(
            self.records.values(),
            key=lambda r: (r.status != "running", sign * self.values.get(r.point.number, -sign * math.inf)),
        )
        for record in order[:SHOWN]:
            number = record.point.number
            shown = self.measured(number).rpartition(" ")[2] if number in self.values else ""
            table.add_row(
                str(number), str(record.point.seed), escape(label(record.point.values)), str(record.step), shown,
                record.status,
            )  # fmt: skip
        if len(order) > SHOWN:
            table.add_row("", "", f"and {len(order) - SHOWN} more", "", "", "")
        return table


@contextmanager
def open_sweep_view(space: Space, base: Config, trials: int) -> Iterator[SweepView]:
    """The view that fits standard output."""
    with open_live() as live:
        yield SweepView(space, base, trials) if live is None else LiveSweepView(space, base, trials, live)


def print_sweep_banner(space: Space, base: Config, points: list[Point]) -> None:
    """Two lines on what is about to run."""
    engine = base.engine if base.trial.engine == "auto" else base.trial.engine
    seeds = f"{len(space.seeds)} seeds each" if len(space.seeds) > 1 else f"seed {space.seeds[0]}"
    number = len({point.setting for point in points}) if points else space.samples
    print_opening(
        space.name,
        space.description,
        f"{number} settings of {', '.join(space.keys)}, {seeds}, {base.steps} steps, {space.searcher} search, "
        f"scheduler {space.scheduler}, engine {engine}",
    )


def print_sweep(result: SweepResult, space: Space, target: str | None) -> None:
    """The best settings, what each selection rule picks, what failed, and where everything lies."""
    folder = result.folder
    print_table(settings_table(result, target or "target"))
    print_table(choices_table(result, target or "target"))
    for record in result.failed:
        print_note(
            f"trial {record.point.number} ({label(record.point.values)}) failed: {' '.join(record.reason.split())}"
        )
    counts = {status: sum(r.status == status for r in result.records) for status in ("finished", "stopped", "failed")}
    print_facts({"trials": ", ".join(f"{n} {status}" for status, n in counts.items() if n)})
    if result.best is not None:
        print_facts({"best setting": f"{folder / 'best.yaml'} (trial {result.best})"})
    print_facts({"sweep": str(folder), "compare": f"difc-ray compare {folder}"})
    if result.tracking is not None:
        print_tracking(result.tracking)


def settings_table(result: SweepResult, against: str) -> Table:
    """Settings by validation accuracy, means over seeds."""
    right = ("setting", "seeds", "steps", "validation", against)
    table = make_table("setting", "values", "seeds", "steps", "validation", against, title="settings", right=right)
    rows = settings_of(result)
    for row in rows[:SHOWN]:
        chosen = "[bold]" if row.setting == result.chosen.point else ""
        target = "" if row.target is None else f"{row.target:.1%}"
        table.add_row(
            f"{chosen}{row.setting}", f"{chosen}{escape(label(row.values))}", str(row.seeds), row.steps,
            f"{chosen}{row.validation:.1%}", target,
        )  # fmt: skip
    if len(rows) > SHOWN:
        table.add_row("", f"and {len(rows) - SHOWN} more", "", "", "", "")
    return table


def choices_table(result: SweepResult, against: str) -> Table:
    """What each selection rule picks."""
    right = ("setting", "its criterion", against)
    table = make_table("rule", *right, "", title="what each selection rule picks", right=right)
    for choice in result.choices:
        if choice.point is None:
            table.add_row(choice.rule, "-", "", "", escape(choice.remark))
            continue
        error = "" if choice.target_error is None else f" ± {100 * choice.target_error:.1f}"
        target = "" if choice.target is None else f"{choice.target:.1%}{error}"
        remark = "" if choice.honest else "chosen on the target: no estimate"
        if choice.rule == result.chosen.rule:
            remark = "the rule of this space" + (f"; {remark}" if remark else "")
        table.add_row(choice.rule, choice.point, f"{choice.score:.1%}", target, remark)
    return table
