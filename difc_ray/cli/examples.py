"""What `difc-ray data` does: examples are checked, drawn, and written as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import console, make_table, print_facts, print_note, print_table
from difc_ray.cli.reading import Fault, find_faults
from difc_ray.cli.tables import class_counts, shortened
from difc_ray.config import Config
from difc_ray.config.preflight import strange_classes
from difc_ray.data import DatasetFamily, Domain, make_augmentation, open_domain
from difc_ray.data.pictures import cells_of, write_tree
from difc_ray.errors import ConfigError
from difc_ray.step.factory import family_of

SHOWN = 20
"""Bad examples that are listed without ``--all``."""

FORMATS = (".png", ".svg", ".pdf")
"""Kinds of pictures that can be written."""


def opened(config: Config) -> tuple[DatasetFamily, dict[str, Domain]]:
    """The dataset, and the sources and the target by name.

    Raises:
        DataError: a domain cannot be opened at all.
    """
    family = family_of(config)
    names = [*config.sources, *([] if config.target is None else [config.target])]
    return family, {name: open_domain(config.dataset, family, name, look=False) for name in names}


def check_examples(config: Config, *, everything: bool) -> int:
    """Reads all examples, prints what is wrong with them, and returns the exit code.

    Raises:
        DataError: a domain cannot be opened at all.
    """
    family, domains = opened(config)
    total = sum(domain.size() for domain in domains.values())
    with console.status(f"reading {total} examples"):
        faults = find_faults(config, domains)
    console.print(f"[bold]{escape(config.dataset)}[/]  {escape(family.description)}", soft_wrap=True)
    print_table(domains_table(config, domains, faults))
    absent = {name: absent_classes(domain) for name, domain in domains.items()}
    missing = [f"{name}: none of {shortened(classes, 10)}" for name, classes in absent.items() if classes]
    print_facts({"classes": f"{len(family.class_names)}", "missing": missing})
    strange = [] if config.target is None else [str(problem) for problem in strange_classes(config, domains)]
    for sentence in strange:
        print_note(sentence)
    if faults:
        table = make_table("domain", "file", "problem")
        for fault in faults if everything else faults[:SHOWN]:
            table.add_row(*map(escape, (fault.domain, fault.file, fault.reason)))
        print_table(table)
        if len(faults) > SHOWN and not everything:
            print_note(f"{len(faults) - SHOWN} more; `--all` lists them.")
    if faults or strange:
        print_facts({"result": f"{len(faults)} of {total} examples cannot be used"})
        return 3
    print_facts({"result": f"all {total} examples can be used"})
    return 0


def show_examples(config: Config, picture: Path, most: int) -> None:
    """Draws the contact sheet and says where it is.

    Args:
        config: a configuration.
        picture: the file to write.
        most: classes that are shown, the first ones.

    Raises:
        DataError: a domain cannot be opened, or a picture of it.
        ConfigError: the file cannot be written, or the augmentation does not suit.
    """
    from difc_ray.runs import figures  # and matplotlib

    if picture.suffix.lower() not in FORMATS:
        kinds = ", ".join(f"`{each}`" for each in FORMATS)
        raise ConfigError(f"the picture must be {kinds}, got `{picture}` (--picture). Name it `{picture.stem}.png`.")
    with console.status("reading"):
        family, domains = opened(config)
        augmentation, cells = make_augmentation(config.augment, family.image_shape), {}
        for name, domain in domains.items():
            held_out = name == config.target
            title = f"{name}\n(held out)" if held_out else name
            cells[title] = cells_of(domain, None if held_out else augmentation, config.seed, most)
        shown = [*family.class_names[:most]]
        altered = "" if augmentation is None else f"; right: augment={Path(config.augment).name}"
        figure = figures.contact_sheet(cells, shown, f"{config.dataset}, {family.image_shape[1]} pixels{altered}")
    try:
        figure.savefig(picture)
    except OSError as error:
        raise ConfigError(
            f"the picture must be writable, got {error.strerror or error} for `{picture}` (--picture). Name another."
        ) from error
    sizes = f"{len(domains)} domains, {len(shown)} of {len(family.class_names)} classes"
    print_facts({"shown": sizes, "augment": config.augment, "picture": str(picture.absolute())})


def export_examples(config: Config, folder: Path, limit: int | None) -> None:
    """Writes the examples as a tree of pictures, at most `limit` of a domain and class, and says where they are.

    Raises:
        DataError: a domain cannot be opened, or a picture of it.
        ConfigError: the folder cannot be written.
    """
    with console.status("writing"):
        _, domains = opened(config)
        count = write_tree(list(domains.values()), folder, limit)
    print_facts({"written": f"{count} pictures of {len(domains)} domains", "folder": str(folder.absolute())})


def domains_table(config: Config, domains: Mapping[str, Domain], faults: Sequence[Fault]) -> Table:
    """One line per domain: how many examples, how many bad ones, and how many of each class."""
    table = make_table("domain", "role", "examples", "bad", "examples per class", right=("examples", "bad"))
    for name, domain in domains.items():
        held_out = name == config.target
        bad = sum(fault.domain == name for fault in faults)
        counts = class_counts(domain, whole=held_out)
        role = "held out" if held_out else "source"
        table.add_row(escape(name), role, str(domain.size()), str(bad), escape(counts))
    return table


def absent_classes(domain: Domain) -> list[str]:
    """Classes that a domain has no example of."""
    return [name for name, count in zip(domain.class_names, domain.class_counts(), strict=True) if count == 0]
