"""What a dataset is: a family of domains that share classes and image shape, under a name in :data:`DATASETS`."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from difc_ray.data.domain import Domain
from difc_ray.data.errors import ImageSizeError, MalformedDataError
from difc_ray.errors import ConfigError
from difc_ray.options import NoOptions, absolute_options, options_of
from difc_ray.registry import Registry, did_you_mean

OnBadImage = Literal["raise", "skip"]


class DatasetFamily(ABC):
    """The domains of one dataset.

    Args:
        options: the dataset's own options from the configuration (`dataset_options`).
        root: folder with the files, None where the dataset needs none.
        seed: seed of the run; decides the splits, never the content.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """

    option_type: ClassVar[type[Any]] = NoOptions
    """The dataclass of its options, as ``DATASETS.register(name, options=...)`` sets it."""
    description: str = ""
    """One line for ``difc-ray domains``; may stay empty."""
    class_names: tuple[str, ...]
    """The classes by number, from 0."""
    image_shape: tuple[int, int, int]
    """Channels, height and width."""

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        self.options = options_of(type(self), options, DATASETS, "dataset_options")
        self.root = root
        self.seed = seed

    @property
    def where(self) -> str:
        """The dataset as messages call it."""
        return DATASETS.title(type(self))

    @classmethod
    def absolute_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with paths from the root of the file system: workers may run in another folder."""
        return absolute_options(cls.option_type, options, DATASETS.title(cls), "dataset_options")

    def needed_root(self, files: str, remedy: str) -> Path:
        """The folder of the files, with ``~`` read as the home folder.

        Raises:
            MalformedDataError: none is given.
        """
        if self.root is None:
            raise MalformedDataError(f"`root` must name the folder of {files}", "null", self.where, remedy)
        return Path(os.path.expanduser(self.root))

    def take_image_settings(self, image_size: int | None, on_bad_image: OnBadImage) -> None:
        """Takes over the keys `image_size` and `on_bad_image`; called once, after the constructor.

        A family that can make images of any size, or that reads files, overrides this; the others have one size.

        Args:
            image_size: side in pixels; None: as the dataset likes.
            on_bad_image: what to do with an example that cannot be read.

        Raises:
            ImageSizeError: the dataset does not make images of that size.
        """
        height, width = self.image_shape[1:]
        if image_size is not None and (height, width) != (image_size, image_size):
            raise ImageSizeError(f"Its images are {height}×{width}. Leave `image_size` out.")

    @abstractmethod
    def domain_names(self) -> tuple[str, ...]:
        """Names of the domains, in a fixed order."""

    @abstractmethod
    def load(self, domain_name: str) -> Domain:
        """One domain.

        Raises:
            ConfigError: there is no domain of that name.
            DataError: its files are missing or unusable.
        """

    def check_domain(self, domain_name: str) -> None:
        """Refuses a name that is not among :meth:`domain_names`."""
        if domain_name not in self.domain_names():
            raise ConfigError(f"Unknown domain `{domain_name}`. {did_you_mean(domain_name, self.domain_names())}")


DATASETS: Registry[type[DatasetFamily]] = Registry("dataset")
"""Dataset families by name; :func:`difc_ray.data.open_family` makes one."""
