"""`difc-ray data`: what can be said of the examples before a run meets them.

Nothing heavier than typer is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from difc_ray.cli.reading import Fault
    from difc_ray.config import Config
    from difc_ray.domains import Domain

SHOWN = 20
"""Bad examples that are listed without ``--all``."""

HELP = {"help_option_names": ["-h", "--help"]}

data_app = typer.Typer(help="Look at the data of a run.", rich_markup_mode=None, context_settings=HELP)


@data_app.callback()
def top() -> None:
    """Look at the data of a run."""


@data_app.command(context_settings={"ignore_unknown_options": True})
def check(
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", hidden=True)] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML configuration file.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="List every bad file, however many.")] = False,
) -> None:
    """Read every example of a run, and list those that cannot be used.

    Reads the sources and the target. The exit code is 0 if all is well, 3 if something is bad.

    \b
    difc-ray data check dataset=image_folder root=PATH sources=photo,art target=sketch
    difc-ray data check -c run.yaml --all           the whole list
    """  # noqa: D301
    from difc_ray.cli.app import checked
    from difc_ray.preparation import requested_config

    raise typer.Exit(check_data(requested_config(config, checked(settings), paths=False), everything=everything))


def check_data(config: Config, *, everything: bool) -> int:
    """Reads, prints, and returns the exit code.

    Raises:
        DataError: a domain cannot be opened at all.
    """
    from rich.markup import escape

    from difc_ray.cli.reading import find_faults
    from difc_ray.cli.tables import console, print_facts, print_note, print_table, shortened
    from difc_ray.config.preflight import strange_classes
    from difc_ray.domains import open_domain
    from difc_ray.local_step import family_of

    family = family_of(config)
    names = [*config.sources, *([] if config.target is None else [config.target])]
    domains = {name: open_domain(config.dataset, family, name, look=False) for name in names}
    total = sum(domain.size() for domain in domains.values())
    with console.status(f"reading {total} examples"):
        faults = find_faults(config, domains)
    console.print(f"[bold]{escape(config.dataset)}[/]  {escape(family.description)}", soft_wrap=True)
    print_table(domains_table(config, domains, faults))
    missing = [
        f"{name}: none of {shortened(absent, 10)}" for name in domains if (absent := absent_classes(domains[name]))
    ]
    print_facts({"classes": f"{len(family.class_names)}", "missing": missing})
    strange = [] if config.target is None else [str(problem) for problem in strange_classes(config, domains)]
    for sentence in strange:
        print_note(sentence)
    if faults:
        print_table(faults_table(faults if everything else faults[:SHOWN]))
        if len(faults) > SHOWN and not everything:
            print_note(f"{len(faults) - SHOWN} more; `--all` lists them.")
    if faults or strange:
        print_facts({"result": f"{len(faults)} of {total} examples cannot be used"})
        return 3
    print_facts({"result": f"all {total} examples can be used"})
    return 0


def domains_table(config: Config, domains: dict[str, Domain], faults: list[Fault]) -> Table:
    """One line per domain: how many examples, how many bad ones, and how many of each class."""
    from rich.markup import escape
    from rich.table import Table

    from difc_ray.cli.tables import class_counts

    table = Table()
    for heading in ("domain", "role", "examples", "bad", "examples per class"):
        table.add_column(heading, justify="right" if heading in ("examples", "bad") else "left")
    for name, domain in domains.items():
        role = "held out" if name == config.target else "source"
        bad = sum(fault.domain == name for fault in faults)
        counts = class_counts(domain, whole=name == config.target)
        table.add_row(escape(name), role, str(domain.size()), str(bad), escape(counts))
    return table


def faults_table(faults: list[Fault]) -> Table:
    """One line per bad example."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("domain", "file", "problem")
    for fault in faults:
        table.add_row(*map(escape, (fault.domain, fault.file, fault.reason)))
    return table


def absent_classes(domain: Domain) -> list[str]:
    """Classes that a domain has no example of."""
    return [name for name, count in zip(domain.class_names, domain.class_counts(), strict=True) if count == 0]
