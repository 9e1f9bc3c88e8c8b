"""Families and domains as the rest of the package gets them: made, and held to what :mod:`difc_ray.data.domain` asks.

What somebody's own dataset got wrong is told in a sentence with the dataset and the domain, before a run starts.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from difc_ray.data.domain import Domain
from difc_ray.data.errors import MalformedDataError
from difc_ray.data.family import DATASETS, DatasetFamily, OnBadImage


def open_family(
    name: str, options: Mapping[str, Any], root: Path | None, seed: int, image_size: int | None = None,
    on_bad_image: OnBadImage = "raise",
) -> DatasetFamily:  # fmt: skip
    """The family registered under a name, made and checked.

    Args:
        name: a registered dataset.
        options: its own options.
        root: folder with its files, if it has any.
        seed: seed of the run.
        image_size: side of the images in pixels; None: the dataset decides.
        on_bad_image: what is done with an example that cannot be read.

    Raises:
        ConfigError: the name is unknown, or an option is.
        ImageSizeError: the dataset has no images of that size.
        DataError: its files cannot be used, or the class is incomplete.
    """
    kind, where = DATASETS.get(name), f"dataset `{name}`"
    if inspect.isabstract(kind):
        missing = ", ".join(f"`{method}`" for method in sorted(kind.__abstractmethods__))
        raise _incomplete(f"`{kind.__qualname__}` without {missing}", where)
    family = kind(options, root, seed)
    if not hasattr(family, "seed"):
        raise _not_initialised(kind, "options, root, seed", where)
    names, shape = getattr(family, "class_names", ()), getattr(family, "image_shape", ())
    if isinstance(names, str) or not names or not all(isinstance(each, str) for each in names):
        raise MalformedDataError(
            f"`class_names` of `{kind.__qualname__}` must be a tuple of texts", repr(names), where,
            'Write `class_names = ("cat", "dog")` in the class.',
        )  # fmt: skip
    if not _is_shape(shape):
        raise MalformedDataError(
            f"`image_shape` of `{kind.__qualname__}` must be (channels, height, width)", repr(shape), where,
            "Write `image_shape = (3, 32, 32)` in the class.",
        )  # fmt: skip
    family.take_image_settings(image_size, on_bad_image)
    return family


def open_domain(dataset: str, family: DatasetFamily, name: str, *, look: bool = True) -> Domain:
    """One domain of a family, checked: what it says of itself, its labels, and the first of its images.

    Args:
        dataset: the name that the family is registered under.
        family: the family.
        name: one of its domains.
        look: whether the first images are made.

    Raises:
        ConfigError: there is no domain of that name.
        DataError: its files cannot be used, or it is not made as a domain must be.
    """
    where = f"dataset `{dataset}`"
    inside = f"{where}, domain `{name}`"
    try:
        domain = family.load(name)
    except MalformedDataError as error:
        raise error.at(inside) from error
    except TypeError as error:
        if "abstract" in str(error):
            raise _incomplete(f'"{" ".join(str(error).split())}"', inside) from error
        raise
    if not isinstance(domain, Domain):
        raise MalformedDataError(
            f"`load` of `{type(family).__qualname__}` must return a `Domain`", f"`{type(domain).__qualname__}`", inside,
            "Return an object of your subclass of `difc_ray.data.Domain`.",
        )  # fmt: skip
    if not hasattr(domain, "_splits"):
        raise _not_initialised(type(domain), "name, class_names, image_shape, labels, seed", inside)
    statements = {
        "name": (domain.name, name),
        "class_names": (domain.class_names, tuple(family.class_names)),
        "image_shape": (tuple(domain.image_shape), tuple(family.image_shape)),
    }
    for what, (given, expected) in statements.items():
        if given != expected:
            raise MalformedDataError(
                f"`{what}` of a domain must be that of its dataset, {expected!r}", repr(given), inside,
                "Hand the same to `super().__init__` of the domain.",
            )  # fmt: skip
    try:
        domain.checked_images(np.arange(min(2, len(domain.labels)) if look else 0, dtype=np.int64))
    except MalformedDataError as error:
        raise error.at(inside) from error
    return domain


def _is_shape(shape: Any) -> bool:
    sizes = tuple(shape) if isinstance(shape, tuple | list) else ()
    return len(sizes) == 3 and all(isinstance(size, int) and size > 0 for size in sizes)


def _incomplete(got: str, where: str) -> MalformedDataError:
    return MalformedDataError(
        "a class must have all methods that its base class asks for", got, where,
        "Write the method; CONTRIBUTING.md shows a complete dataset.",
    )  # fmt: skip


def _not_initialised(kind: type, arguments: str, where: str) -> MalformedDataError:
    return MalformedDataError(
        f"`{kind.__qualname__}.__init__` must call that of its base class", "an object without it", where,
        f"Call `super().__init__({arguments})` in it.",
    )  # fmt: skip
