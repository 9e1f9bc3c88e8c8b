"""`difc-ray data`: what can be said of the examples before a run meets them.

Nothing heavier than typer is imported before a command runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from difc_ray.cli.usage import HELP, LOOSE, ConfigFile, Settings, checked

if TYPE_CHECKING:
    from difc_ray.config import Config

data_app = typer.Typer(help="Look at the data of a run.", rich_markup_mode=None, context_settings=HELP)


@data_app.callback()
def top() -> None:
    """Look at the data of a run."""


@data_app.command(context_settings=LOOSE)
def check(
    settings: Settings = None,
    config: ConfigFile = None,
    everything: Annotated[bool, typer.Option("--all", help="List every bad file, however many.")] = False,
) -> None:
    """Read every example of a run, and list those that cannot be used.

    Reads the sources and the target. The exit code is 0 if all is well, 3 if something is bad.

    \b
    difc-ray data check dataset=image_folder root=PATH sources=photo,art target=sketch
    difc-ray data check -c run.yaml --all           the whole list
    """  # noqa: D301
    from difc_ray.cli.examples import check_examples

    raise typer.Exit(check_examples(_asked(config, settings), everything=everything))


@data_app.command(context_settings=LOOSE)
def show(
    settings: Settings = None,
    config: ConfigFile = None,
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
    from difc_ray.cli.examples import show_examples

    found = _asked(config, settings)
    show_examples(found, picture or Path(f"data-{found.dataset.replace(':', '-')}.png"), classes)


@data_app.command(context_settings=LOOSE)
def export(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    settings: Settings = None,
    config: ConfigFile = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Most pictures of a domain and class.")] = None,
) -> None:
    """Write the sources and the target as PNG files, in the folders that `dataset=image_folder` reads.

    \b
    difc-ray data export pictures                                  the digits
    difc-ray data export clothes dataset=fashion sources=plain,photo target=sketch --limit 100
    """  # noqa: D301
    from difc_ray.cli.examples import export_examples

    export_examples(_asked(config, settings), folder, limit)


def _asked(config: Path | None, settings: list[str] | None) -> Config:
    from difc_ray.runs.configuration import requested_config

    return requested_config(config, checked(settings), paths=False)
