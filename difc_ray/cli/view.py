"""What a person sees while a run trains: a small table that stays in place on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from difc_ray.cli.console import console, make_table, open_live, print_line, print_live_note
from difc_ray.config import Config
from difc_ray.step.coordinator import StepRecord
from difc_ray.step.evaluation import SplitMetrics

WINDOW = 50
"""Steps behind the shown losses, conflict share and times."""

PLAIN_EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""


class View:
    """Gathers what the loop tells; subclasses show it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.recent: deque[StepRecord] = deque(maxlen=WINDOW)
        self.step = 0
        self.accuracy: dict[str, float] = {}
        self.doing = ""

    def phase(self, text: str) -> None:
        """What the run is busy with besides steps."""
        self.doing = text

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Steps were taken."""
        self.doing = "training"
        self.recent.extend(record for record in records if not record.skipped)
        if records:
            self.step = records[-1].step + 1

    def evaluation(self, step: int, metrics: Sequence[SplitMetrics], score: float, best: bool) -> None:
        """The run was evaluated; the target is not shown while training."""
        self.accuracy = {m.domain: m.accuracy for m in metrics if m.domain != self.config.target}

    def notice(self, message: str) -> None:
        """Something worth a line happened."""

    def losses(self) -> dict[str, float]:
        """Mean loss by domain over the window."""
        names = self.config.sources
        return {name: sum(r.losses[name] for r in self.recent) / max(1, len(self.recent)) for name in names}

    def conflict_share(self) -> float:
        """Share of the window's steps with rows in conflict."""
        return sum(r.conflict for r in self.recent) / max(1, len(self.recent))

    def step_ms(self, part: str) -> float:
        """Mean milliseconds of a part over the window."""
        return 1e3 * sum(r.seconds.get(part, 0.0) for r in self.recent) / max(1, len(self.recent))

    def pace(self) -> str:
        """Conflicts and times over the window."""
        return (
            f"conflicts {self.conflict_share():.0%}  {self.step_ms('step'):.0f} ms/step = compute "
            f"{self.step_ms('compute'):.0f} + transport {self.step_ms('transport'):.0f} + coordinator "
            f"{self.step_ms('coordinator'):.0f}"
        )


class PlainView(View):
    """A line every few seconds, for logs and pipes."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.told = time.monotonic()

    def phase(self, text: str) -> None:
        """One line."""
        if text != self.doing:
            print_line(f"{text} ...")
        super().phase(text)

    def steps(self, records: Sequence[StepRecord]) -> None:
        """A line when the last one is old enough."""
        super().steps(records)
        if self.recent and (time.monotonic() - self.told > PLAIN_EVERY_S or self.step >= self.config.steps):
            self.told = time.monotonic()
            losses = " ".join(f"{name} {loss:.3f}" for name, loss in self.losses().items())
            print_line(f"step {self.step}/{self.config.steps}  loss {losses}  {self.pace()}")

    def evaluation(self, step: int, metrics: Sequence[SplitMetrics], score: float, best: bool) -> None:
        """One line."""
        super().evaluation(step, metrics, score, best)
        shown = " ".join(f"{name} {value:.1%}" for name, value in self.accuracy.items())
        print_line(f"step {step}/{self.config.steps}  validation {shown}{'  (best so far)' if best else ''}")

    def notice(self, message: str) -> None:
        """One line."""
        print_line(f"note: {' '.join(message.split())}")


class LiveView(View):
    """A small table that stays in place."""

    def __init__(self, config: Config, live: Live) -> None:
        super().__init__(config)
        self.live = live
        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TimeRemainingColumn(), console=console,
        )  # fmt: skip
        self.task = self.bar.add_task("", total=config.steps)
        self.refresh()

    def phase(self, text: str) -> None:
        """Renames the bar."""
        super().phase(text)
        self.refresh()

    def steps(self, records: Sequence[StepRecord]) -> None:
        """Moves the bar and the numbers."""
        super().steps(records)
        self.refresh()

    def evaluation(self, step: int, metrics: Sequence[SplitMetrics], score: float, best: bool) -> None:
        """Shows the validation accuracies."""
        super().evaluation(step, metrics, score, best)
        self.refresh()

    def notice(self, message: str) -> None:
        """A line above the table, which stays."""
        print_live_note(self.live, message)

    def refresh(self) -> None:
        """Draws everything anew."""
        self.bar.update(self.task, completed=self.step, description=self.doing)
        shown = (self.bar, self.table(), Text(f"  {self.pace()}")) if self.recent else (self.bar,)
        self.live.update(Group(*shown))

    def table(self) -> Table:
        """Loss and validation accuracy, a line per source domain."""
        right = ("loss", "validation")
        table = make_table("domain", *right, right=right, box=None, padding=(0, 2), pad_edge=True, show_edge=False)
        for name, loss in self.losses().items():
            table.add_row(escape(name), f"{loss:.3f}", f"{self.accuracy[name]:.1%}" if name in self.accuracy else "")
        return table


@contextmanager
def open_view(config: Config) -> Iterator[View]:
    """The view that fits standard output."""
    with open_live() as live:
        yield PlainView(config) if live is None else LiveView(config, live)
