"""Where spaces are found that are given by their names."""

from __future__ import annotations

from pathlib import Path

from difc_ray.errors import ConfigError
from difc_ray.registry import did_you_mean

FOLDER = Path("tune_spaces")
"""Where a space is looked for that is given by its name, below the working folder and then in the package."""


def find_space(given: str) -> Path:
    """The file of a space that is given by its path or its name: one of the working folder's, else one of ours.

    Raises:
        ConfigError: there is none.
    """
    folders = (FOLDER, Path(__file__).parents[1] / FOLDER)
    named = [folder / name for folder in folders for name in (given, f"{given}.yaml")]
    for candidate in (Path(given).expanduser(), *named):
        if candidate.is_file():
            return candidate
    known = sorted({each.stem for folder in folders for each in folder.glob("*.yaml")})
    raise ConfigError(
        f"a search space must be a YAML file, or a name in `{FOLDER}` or of those that come with difc_ray, got "
        f"`{given}` (command line). {did_you_mean(given, known)}"
    )
