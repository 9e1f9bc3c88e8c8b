"""A comparison as files: the page, its figures, and all numbers as JSON."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from difc_ray.comparison.comparison import Comparison
from difc_ray.comparison.figures import drawings
from difc_ray.comparison.page import page
from difc_ray.errors import ConfigError
from difc_ray.files import replace


@dataclass(frozen=True, kw_only=True)
class Report:
    """Where the files of a comparison lie.

    Args:
        page: the HTML page.
        data: all numbers.
        figures: the figures as PNG, in the order of the page.
        left_out: why a figure is not there, one sentence each.
    """

    page: Path
    data: Path
    figures: tuple[Path, ...]
    left_out: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """The folder of all of them."""
        return self.page.parent


def write(comparison: Comparison, folder: Path) -> Report:
    """Writes `index.html`, `comparison.json` and the figures; those of an earlier report in the folder are replaced.

    Raises:
        ConfigError: the folder cannot be written.
    """
    drawn = drawings(comparison)
    images: dict[str, bytes] = {}
    for drawing in drawn:
        if drawing.figure is not None:
            buffer = io.BytesIO()
            drawing.figure.savefig(buffer, format="png", metadata={"Software": None})
            images[drawing.name] = buffer.getvalue()
    report = Report(
        page=folder / "index.html",
        data=folder / "comparison.json",
        figures=tuple(folder / f"{name}.png" for name in images),
        left_out=tuple(drawing.caption for drawing in drawn if drawing.figure is None),
    )
    numbers = json.dumps(as_json(comparison), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawn:
            (folder / f"{drawing.name}.png").unlink(missing_ok=True)
        for path, image in zip(report.figures, images.values(), strict=True):
            replace(path, image)
        replace(report.data, numbers.encode())
        replace(report.page, page(comparison, drawn, images).encode())
    except OSError as error:
        raise ConfigError(
            f"the report's folder must be one that can be written, got `{folder}`, {error.strerror} (--out). Name "
            "another."
        ) from error
    return report


def as_json(value: Any) -> Any:
    """Dataclasses as objects, tuples as lists, and numbers that are not finite as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
