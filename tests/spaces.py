"""Search spaces for tests: their text, and how `difc-ray tune` reads and checks them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from difc_ray.config import Config
from difc_ray.sweeps.space import Space, read_space
from difc_ray.sweeps.trials import Point, base_config, check_sweep, told_keys

GOOD = {
    "config": "{steps: 40, eval_every: 10, model: mlp}",
    "space": "{alignment.alpha: {loguniform: [0.001, 10]}}",
    "samples": "4",
}
"""A space without a mistake, key by key as YAML."""


def text_of(**changes: str | None) -> str:
    """The good file with changes; None takes a key away."""
    return "".join(f"{key}: {value}\n" for key, value in {**GOOD, **changes}.items() if value is not None)


def written(folder: Path, text: str) -> Path:
    path = folder / "given.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def checked(path: Path, arguments: Sequence[str] = (), file: Path | None = None) -> tuple[Space, Config, list[Point]]:
    """A space as `difc-ray tune` reads and checks it."""
    space = read_space(path)
    base = base_config(space, file, list(arguments))
    return space, base, check_sweep(space, base, told_keys(arguments, file))


def good(folder: Path, **changes: str | None) -> tuple[Space, Config, list[Point]]:
    return checked(written(folder, text_of(**changes)))
