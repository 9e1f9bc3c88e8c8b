"""What the dataset families of published collections have in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from difc_ray.data.base import DatasetFamily, OnBadImage
from difc_ray.data.published.options import flag, limit_of
from difc_ray.registry import check_option_names

SIDE: Final = 28
"""Height and width in pixels, of MNIST and of FashionMNIST."""


class PublishedFamily(DatasetFamily):
    """Domains at any size, with the options ``download`` and ``limit``.

    Args:
        options: the dataset's own options.
        root: folder with the files; None: none is given.
        seed: seed of the run.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """

    where: ClassVar[str]
    """The dataset as messages call it."""
    domains: ClassVar[tuple[str, ...]]
    option_names: ClassVar[tuple[str, ...]] = ("download", "limit")
    image_shape = (3, SIDE, SIDE)

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        check_option_names(self.where, options, self.option_names)
        super().__init__(options, root, seed)
        self.download = flag(options, "download", self.where)
        self.limit = limit_of(options, self.where)

    def take_image_settings(self, image_size: int | None, on_bad_image: OnBadImage) -> None:
        """Any size; 28 is that of the published pictures."""
        side = image_size or SIDE
        self.image_shape = (3, side, side)

    def domain_names(self) -> tuple[str, ...]:
        """All of them, whether their files are there or not."""
        return self.domains
