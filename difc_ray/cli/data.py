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
    from difc_ray.data import Domain

SHOWN = 20
"""Bad examples that are listed without ``--all``."""

FORMATS = (".png", ".svg", ".pdf")
"""Kinds of pictures that can be written."""

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
    from difc_ray.cli.usage import checked
    from difc_ray.runs.configuration import requested_config

    raise typer.Exit(check_data(requested_config(config, checked(settings), paths=False), everything=everything))


def check_data(config: Config, *, everything: bool) -> int:
    """Reads, prints, and returns the exit code.

    Raises:
        DataError: a domain cannot be opened at all.
    """
    from rich.markup import escape

    from difc_ray.cli.console import console, print_facts, print_note, print_table
    from difc_ray.cli.reading import find_faults
    from difc_ray.cli.tables import shortened
    from difc_ray.config.preflight import strange_classes
    from difc_ray.data import open_domain
    from difc_ray.step.factory import family_of

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


@data_app.command(context_settings={"ignore_unknown_options": True})
def show(
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", hidden=True)] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML configuration file.")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", "-o", metavar="FILE", help="Where to (PNG, SVG or PDF).")
    ] = None,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Most classes that are shown.")] = 10,
) -> None:
    """Draw one example of each domain and class, as it is and as `augment` alters it.

    \b
    difc-ray data show dataset=image_folder root=PATH augment=domainbed
    difc-ray data show -c run.yaml --picture sheet.png
    """  # noqa: D301
    from difc_ray.cli.usage import checked
    from difc_ray.runs.configuration import requested_config

    found = requested_config(config, checked(settings), paths=False)
    show_data(found, picture or Path(f"data-{found.dataset.replace(':', '-')}.png"), classes)


@data_app.command(context_settings={"ignore_unknown_options": True})
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    settings: Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", hidden=True)] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="YAML configuration file.")
    ] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most pictures of a domain and class.")] = None,
) -> None:
    """Write the sources and the target as PNG files, in the folders that `dataset=image_folder` reads.

    \b
    difc-ray data export pictures                                  the digits
    difc-ray data export clothes dataset=fashion sources=plain,photo target=sketch --limit 100
    """  # noqa: D301
    from difc_ray.cli.console import console, print_facts
    from difc_ray.cli.pictures import write_tree
    from difc_ray.cli.usage import checked
    from difc_ray.data import open_domain
    from difc_ray.runs.configuration import requested_config
    from difc_ray.step.factory import family_of

    found = requested_config(config, checked(settings), paths=False)
    family = family_of(found)
    names = [*found.sources, *([] if found.target is None else [found.target])]
    with console.status("writing"):
        domains = [open_domain(found.dataset, family, name, look=False) for name in names]
        count = write_tree(domains, folder, limit)
    print_facts({"written": f"{count} pictures of {len(names)} domains", "folder": str(folder.absolute())})


def show_data(config: Config, picture: Path, most: int) -> None:
    """Draws the contact sheet and says where it is.

    Args:
        config: a configuration.
        picture: the file to write.
        most: classes that are shown, the first ones.

    Raises:
        DataError: a domain cannot be opened, or a picture of it.
        ConfigError: the file cannot be written, or the augmentation does not suit.
    """
    from difc_ray.cli.console import console, print_facts
    from difc_ray.cli.pictures import cells_of
    from difc_ray.data import make_augmentation, open_domain
    from difc_ray.errors import ConfigError
    from difc_ray.runs import figures
    from difc_ray.step.factory import family_of

    if picture.suffix.lower() not in FORMATS:
        kinds = ", ".join(f"`{each}`" for each in FORMATS)
        raise ConfigError(f"the picture must be {kinds}, got `{picture}` (--picture). Name it `{picture.stem}.png`.")
    family = family_of(config)
    augmentation = make_augmentation(config.augment, family.image_shape)
    names = [*config.sources, *([] if config.target is None else [config.target])]
    with console.status("reading"):
        domains = [open_domain(config.dataset, family, name, look=False) for name in names]
        cells = {
            f"{domain.name}\n(held out)" if domain.name == config.target else domain.name: cells_of(
                domain, augmentation if domain.name != config.target else None, config.seed, most
            )
            for domain in domains
        }
        shown = [*family.class_names[:most]]
        altered = "" if augmentation is None else f"; right: augment={Path(config.augment).name}"
        figure = figures.contact_sheet(cells, shown, f"{config.dataset}, {family.image_shape[1]} pixels{altered}")
    try:
        figure.savefig(picture)
    except OSError as error:
        raise ConfigError(
            f"the picture must be writable, got {error.strerror or error} for `{picture}` (--picture). Name another."
        ) from error
    print_facts(
        {
            "shown": f"{len(names)} domains, {len(shown)} of {len(family.class_names)} classes",
            "augment": config.augment,
            "picture": str(picture.absolute()),
        }
    )


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
