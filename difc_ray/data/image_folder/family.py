"""The `image_folder` dataset: its options, and which domains a root has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from difc_ray.data.family import DATASETS, DatasetFamily, OnBadImage
from difc_ray.data.image_folder.decoding import MAX_PIXELS
from difc_ray.data.image_folder.domain import ImageDomain
from difc_ray.data.image_folder.index import read_index
from difc_ray.options import Count, FilePath, Rule, absolute

IMAGE_SIZE: Final = 224
"""Side in pixels where `image_size` is null: what the published backbones were trained on."""


def _class_names(value: object) -> object:
    """At least two different names, as texts; anything else is refused."""
    names = tuple(str(each) for each in value) if isinstance(value, list | tuple) else ()
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError
    return names


ClassNames = Annotated[tuple[str, ...], BeforeValidator(_class_names), Rule("a list of at least two different names")]


@dataclass(frozen=True, kw_only=True)
class ImageFolderOptions:
    """Options of `image_folder`."""

    manifest: FilePath | None = None
    """CSV or Parquet file with ``path,label,domain[,split]``; its paths are relative to `root`, or to its own folder
    without one."""
    follow_links: bool = False
    """Whether links may lead out of the root."""
    max_pixels: Count = MAX_PIXELS
    """Largest width × height that is decoded; Pillow's own limit."""
    classes: ClassNames = ()
    """The class names by number, where a manifest has numbers or another order than the natural one is wanted."""


@DATASETS.register("image_folder", options=ImageFolderOptions)
class ImageFolder(DatasetFamily):
    """Pictures on disk.

    ``root/<domain>/<class>/``, with files at any depth; or split lists ``root/<domain>_train.txt`` and ``_test.txt``;
    or a manifest. Hidden files and folders and ``__MACOSX`` are left out, and so are pictures outside a class folder.

    Args:
        options: :class:`ImageFolderOptions`.
        root: the folder.
        seed: decides splits that nobody gave.

    Raises:
        ConfigError: an option is unknown or has a wrong value.
        MalformedDataError: there is no `root`, or nothing usable in it.
    """

    description = "your own pictures: root=PATH with <domain>/<class>/ folders, split lists, or a manifest"

    options: ImageFolderOptions

    def __init__(self, options: Mapping[str, Any], root: Path | None, seed: int) -> None:
        super().__init__(options, root, seed)
        manifest = None if self.options.manifest is None else absolute(self.options.manifest)
        if root is None and manifest is not None:
            folder = manifest.parent
        else:
            folder = self.needed_root("the images", "Write `root=PATH`; the layout is `PATH/<domain>/<class>/`.")
        self._index = read_index(
            folder, manifest, follow_links=self.options.follow_links, classes=self.options.classes
        )  # fmt: skip
        self.class_names = self._index.class_names
        self.image_shape = (3, IMAGE_SIZE, IMAGE_SIZE)
        self._on_bad_image: OnBadImage = "raise"

    def take_image_settings(self, image_size: int | None, on_bad_image: OnBadImage) -> None:
        """Any size will do."""
        side = image_size or IMAGE_SIZE
        self.image_shape, self._on_bad_image = (3, side, side), on_bad_image

    def domain_names(self) -> tuple[str, ...]:
        """The folders of the root with pictures in class folders, or what lists or the manifest name."""
        return tuple(self._index.parts)

    def load(self, domain_name: str) -> ImageDomain:
        """One domain; no file is opened yet."""
        self.check_domain(domain_name)
        return ImageDomain(
            domain_name, self._index, self.image_shape[1], self.seed,
            on_bad_image=self._on_bad_image, follow_links=self.options.follow_links, max_pixels=self.options.max_pixels,
        )  # fmt: skip
