"""Which files of the working folder travel to the cluster, and how large they are together.

Ray leaves out what `.gitignore`, `.rayignore` and its own list say; this module asks the same functions that Ray packs
with, so that what is told beforehand is what happens.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env import packaging

from difc_ray.errors import ConfigError

PRIVATE = (".env", ".env.*", "*.pem", "*.key")
"""What never travels."""

LIMIT_BYTES = int(packaging.GCS_STORAGE_MAX_SIZE)
"""The largest package that a cluster takes."""

MANY_BYTES = 50 * 2**20
"""From so many bytes on, a working folder is probably not code alone."""

_QUIET = logging.getLogger("difc_ray.jobs.packing")
_QUIET.addHandler(logging.NullHandler())
_QUIET.propagate = False


class _TooMuch(Exception):
    """There is no need to go on counting."""


@dataclass
class Shipment:
    """What a working folder comes to.

    Args:
        folder: the folder, absolute.
        sizes: size in bytes of every file that travels, by path relative to the folder.
    """

    folder: Path
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Bytes in all, before compression."""
        return sum(self.sizes.values())

    def leaves_out(self, path: str) -> bool:
        """Whether the path, taken from the folder, is there and does not travel."""
        full = Path(os.path.normpath(self.folder / Path(path).expanduser()))
        if not full.exists() or full == self.folder:
            return False
        if not full.is_relative_to(self.folder):
            return True
        name = str(full.relative_to(self.folder))
        return name not in self.sizes and not any(each.startswith(f"{name}{os.sep}") for each in self.sizes)

    def largest(self, n: int = 3) -> str:
        """The largest entries of the folder, in words."""
        entries: Counter[str] = Counter()
        for name, size in self.sizes.items():
            entries[Path(name).parts[0]] += size
        return ", ".join(f"`{name}` {size / 2**20:.0f} MiB" for name, size in entries.most_common(n))


def shipment_of(folder: Path, excludes: tuple[str, ...] = ()) -> Shipment:
    """What Ray would take of a folder.

    Args:
        folder: the working folder.
        excludes: patterns of the runtime environment, as in a `.gitignore`.

    Raises:
        ConfigError: it is no folder, or holds more than a cluster takes.
    """
    folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        got = "a file" if folder.exists() else "no such folder"
        raise ConfigError(f"the working folder must be a folder, got {got}, `{folder}` (--working-dir). Name another.")
    shipment, total = Shipment(folder), 0

    def count(path: Path) -> None:
        """Adds a file to what travels."""
        nonlocal total
        if path.is_dir():
            return
        try:
            size = path.stat().st_size
        except OSError:  # a link to nothing
            return
        shipment.sizes[str(path.relative_to(folder))] = size
        total += size
        if total > 4 * LIMIT_BYTES:
            raise _TooMuch

    patterns = [*ray_constants.get_runtime_env_default_excludes(), *excludes]
    heeded = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    try:
        matcher = packaging._get_excludes(folder, patterns)
        packaging._dir_travel(folder, [matcher], count, include_gitignore=heeded, logger=_QUIET)
    except _TooMuch:
        pass
    except OSError as error:
        raise ConfigError(
            f"the working folder must be readable, got {error.strerror} at `{error.filename}` (--working-dir). Change "
            "its permissions, or name it in `.rayignore`."
        ) from error
    if total >= LIMIT_BYTES:
        more = "more than " if total > 4 * LIMIT_BYTES else ""
        raise ConfigError(
            f"the working folder must be smaller than {LIMIT_BYTES / 2**20:.0f} MiB, which is all that Ray ships, got "
            f"{more}{total / 2**20:.0f} MiB in `{folder}`: {shipment.largest()} (--working-dir). Name what the job "
            "does not need in `.rayignore`; put data where the cluster can read them, and name it with `root=PATH`."
        )
    return shipment
