"""What the dataset families of published collections have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final

from pydantic import Field

from difc_ray.data.family import DatasetFamily, OnBadImage
from difc_ray.options import Rule

SIDE: Final = 28
"""Height and width in pixels, of MNIST and of FashionMNIST."""

Limit = Annotated[int, Field(ge=100), Rule("an integer >= 100")]
"""Most examples of a domain: at least ten of each class, so that every split can have some."""


@dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """Options of a dataset of published collections."""

    download: bool = False
    """Whether torchvision may fetch missing files into `root`."""
    limit: Limit | None = None
    """Most examples of a domain, by class; null: all."""


class PublishedFamily(DatasetFamily):
    """Domains at any size; a subclass names them."""

    options: PublishedOptions
    domains: ClassVar[tuple[str, ...]]
    """Names of the domains."""
    image_shape = (3, SIDE, SIDE)

    def take_image_settings(self, image_size: int | None, on_bad_image: OnBadImage) -> None:
        """Any size; 28 is that of the published pictures."""
        side = image_size or SIDE
        self.image_shape = (3, side, side)

    def domain_names(self) -> tuple[str, ...]:
        """All of them, whether their files are there or not."""
        return self.domains
