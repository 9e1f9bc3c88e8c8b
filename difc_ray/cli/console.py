"""Standard output of all commands: tables, labelled lines, notes.

What a person copies (paths, commands, identifiers) is never broken into lines; what is read is. Where there is no
terminal nothing is wrapped, so that ``grep`` finds whole lines.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

UNWRAPPED = 1000
"""Columns where there is no terminal."""

LABEL = 14
"""Columns of the label of a fact."""


class Output(Console):
    """Standard output; that nobody reads it any more ends nothing."""

    def on_broken_pipe(self) -> None:
        """Goes on without a reader."""
        let_go_of_stdout()


console = Output(
    highlight=False, width=None if sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit() else UNWRAPPED
)


def let_go_of_stdout() -> None:
    """Lets everything that is still printed go nowhere: the reader has gone, as with ``| head``."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is no file
        pass
    finally:
        os.close(nowhere)


def print_line(text: str) -> None:
    """A line as it is; a reader or a disk that has gone ends nothing."""
    try:
        console.out(text, highlight=False)
    except OSError:
        let_go_of_stdout()


class Lines:
    """What a person sees of something that takes long: a line for each event, for logs and pipes."""

    def phase(self, text: str) -> None:
        """What goes on now."""
        print_line(f"{text} ...")

    def notice(self, message: str) -> None:
        """Something worth a line happened."""
        print_line(f"note: {' '.join(message.split())}")


@contextmanager
def open_live() -> Iterator[Live | None]:
    """A part of the terminal that stays in place; None where standard output is no terminal."""
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield live


def print_live_note(live: Live, message: str) -> None:
    """A line above what stays in place."""
    live.console.print(f"[yellow]note[/] {escape(' '.join(message.split()))}")


def make_table(*headings: str, title: str = "", right: Sequence[str] = (), **options: Any) -> Table:
    """An empty table.

    Args:
        headings: of its columns.
        title: a line above it.
        right: headings of the columns that end at the same place, as numbers do.
        **options: more of rich's.
    """
    table = Table(title=escape(title) or None, title_justify="left", **options)
    for heading in headings:
        table.add_column(escape(heading), justify="right" if heading in right else "left")
    return table


def print_table(table: Table) -> None:
    """A table; without spaces at the end of lines where there is no terminal."""
    if console.is_terminal:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    console.out("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_facts(facts: Mapping[str, str | Sequence[str]]) -> None:
    """Labelled lines; a list is one label and many lines, an empty value is left out."""
    for label, value in facts.items():
        lines = [value] if isinstance(value, str) else list(value)
        for i, line in enumerate(line for line in lines if line):
            console.print(f"{'' if i else label:<{LABEL}}{escape(line)}", soft_wrap=True)


def print_note(text: str) -> None:
    """One sentence that deserves attention."""
    console.print(f"[yellow]note[/] {escape(text)}", soft_wrap=True)


def print_opening(name: str, subject: str, plan: str) -> None:
    """Two lines on what is about to run: what it is called and is about, and what it does."""
    console.print(f"[bold]{escape(name)}[/]  {escape(subject)}".rstrip(), soft_wrap=True)
    print_line(plan)
