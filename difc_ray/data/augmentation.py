"""Random changes to training pictures: pipelines of Albumentations, seeded picture by picture.

Shape suffixes: h, w, C of a picture as it is; H, W of the images that a dataset makes.

The library draws from generators of its own, which processes that are forked share: two loader processes would alter
their pictures in the same way, epoch after epoch. Here the generators are set before every picture from a seed that
belongs to the run, the domain and the place in the order, so that an altered picture is a function of those and of
nothing else: not of the number of processes, nor of what was made before.
"""

from __future__ import annotations

import difflib
import hashlib
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import yaml
from jaxtyping import UInt8

from difc_ray.data.errors import AugmentationError
from difc_ray.registry import did_you_mean

if TYPE_CHECKING:
    import albumentations

NAMED: Final = ("none", "light", "domainbed")
"""What the key `augment` may be besides the path of a file."""

_OWN_FILE: Final = 'A pipeline is written by `albumentations.save(pipeline, "FILE.yaml", data_format="yaml")`.'
_AMOUNT: Final = 0.3  # of every colour change in DomainBed's pipeline
_LARGEST_FILE: Final = 1_000_000

_MOST_VALUES: Final = 10_000


class Augmentation:
    """One pipeline, as a pure function of a picture and a seed.

    Args:
        pipeline: of Albumentations.
        shape: (H, W, C) of what must come out.
        enough: a picture may be reduced before, but no side below this; None: it may not.

    Raises:
        AugmentationError: it needs something else than pictures.
    """

    def __init__(
        self, pipeline: albumentations.BaseCompose, shape: tuple[int, int, int], enough: int | None = None
    ) -> None:
        import cv2

        cv2.setNumThreads(0)  # threads of a library that is forked hang, and the processes are enough of them
        self.pipeline, self.shape, self.enough = pipeline, shape, enough
        self._bits, self._random = np.random.PCG64(0), random.Random(0)
        pipeline.set_random_state(np.random.Generator(self._bits), self._random)

    def applied(self, pixels: UInt8[np.ndarray, "h w C"], seed: int) -> UInt8[np.ndarray, "H W C"]:
        """An altered copy of a picture.

        Args:
            pixels: the picture.
            seed: >= 0.

        Raises:
            AugmentationError: the pipeline fails on it, or gives something else than bytes of the right shape.
        """
        self._bits.state = np.random.PCG64(seed).state
        self._random.seed(seed)
        size = f"{pixels.shape[0]}×{pixels.shape[1]} pixels"
        try:
            made = self.pipeline(image=np.ascontiguousarray(pixels))["image"]
        except Exception as error:  # the library raises whatever its transforms do
            words = " ".join(str(error).split())[:200]
            raise AugmentationError(
                "the augmentation must suit every picture",
                f"{type(error).__name__} for one of {size}: {words}",
                "augment",
                "Begin the pipeline with a transform that takes pictures of any size, such as `RandomResizedCrop` or "
                "`Resize`.",
            ) from error
        if isinstance(made, np.ndarray) and made.dtype == np.uint8 and made.shape == self.shape:
            return made
        got = f"{made.dtype} of shape {tuple(made.shape)}" if hasattr(made, "shape") else type(made).__qualname__
        raise AugmentationError(
            f"the augmentation must make bytes of shape {self.shape} (height, width, channels) of every picture",
            f"{got} from one of {size}",
            "augment",
            "End the pipeline with `Resize` to that size, or set `image_size`; leave out `Normalize` and "
            "`ToTensorV2`, which come after it in any case.",
        )

    def text(self) -> str:
        """The pipeline as YAML, as it goes into the run's folder; the seed belongs to the run."""
        import albumentations

        text: str = yaml.safe_dump(_plain(albumentations.to_dict(self.pipeline)), sort_keys=False)
        return text

    def fingerprint(self) -> str:
        """Hex SHA-256 of the pipeline."""
        return hashlib.sha256(self.text().encode()).hexdigest()


def make_augmentation(augment: str, image_shape: tuple[int, int, int]) -> Augmentation | None:
    """The pipeline that the key `augment` names; None for `none`.

    Args:
        augment: one of :data:`NAMED`, or the path of a YAML file.
        image_shape: (C, H, W) of the dataset's images.

    Raises:
        AugmentationError: the name is unknown, or the file holds no usable pipeline.

    Source: `domainbed`: Gulrajani & Lopez-Paz 2021, appendix D.3, and their ``datasets.py``.
    Differs from the source: pictures that shrink are averaged over areas there and here, but by other filters.
    """
    if augment == "none":
        return None
    channels, height, width = image_shape
    if augment not in NAMED:
        return Augmentation(_read(augment), (height, width, channels))
    import albumentations as A  # noqa: N812  # here: it takes seconds, and most runs do without

    def crop(smallest: float) -> Any:
        return A.RandomResizedCrop(
            size=(height, width), scale=(smallest, 1.0), ratio=(3 / 4, 4 / 3), area_for_downscale="image", p=1.0
        )

    steps = [crop(0.8), A.HorizontalFlip(p=0.5)]
    if augment == "domainbed":
        around_one = (1 - _AMOUNT, 1 + _AMOUNT)
        jitter = A.ColorJitter(
            brightness=around_one, contrast=around_one, saturation=around_one, hue=(-_AMOUNT, _AMOUNT), p=1.0
        )
        grey = A.ToGray(num_output_channels=channels, p=0.1)
        steps = [crop(0.7), A.HorizontalFlip(p=0.5), *([jitter, grey] if channels == 3 else [])]
    return Augmentation(A.Compose(steps), (height, width, channels), enough=2 * max(height, width))


def _read(path: str) -> albumentations.BaseCompose:
    """The pipeline in a file."""
    import albumentations

    described = _description(path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pipeline = albumentations.from_dict(described)
        except KeyError as error:
            names = [name.rpartition(".")[2] for name in albumentations.core.serialization.SERIALIZABLE_REGISTRY]
            near = difflib.get_close_matches(str(error).strip("'"), names, n=1)
            remedy = f"Did you mean `{near[0]}`?" if near else "Only transforms of the library can be read from a file."
            raise _wrong(path, f"the transform {error}", remedy) from error
        except Exception as error:  # pydantic's and the library's own
            raise _wrong(path, _first_complaint(error), "Correct the value.") from error
    if refused := [str(warning.message) for warning in caught if "not valid" in str(warning.message)]:
        raise _wrong(path, "; ".join(refused), "Correct the name of the argument, or remove it.")
    if not isinstance(pipeline, albumentations.BaseCompose):
        pipeline = albumentations.Compose([pipeline])
    return pipeline


def _first_complaint(error: Exception) -> str:
    """The first thing that a validator has to say, without its chatter."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 2 and "validation error" in lines[0]:
        return f"`{lines[1]}`: {lines[2].partition(' [type=')[0]}"
    return " ".join(lines)[:300]


def _description(path: str) -> Mapping[str, Any]:
    file = Path(path).expanduser()
    looks_like_a_name = not file.suffix and file.name == path
    remedy = f"{did_you_mean(path, NAMED)} Or name a YAML file." if looks_like_a_name else _OWN_FILE
    try:
        if not file.is_file():
            raise _wrong(path, "a folder" if file.is_dir() else "which does not exist", remedy)
        if file.stat().st_size > _LARGEST_FILE:
            raise _wrong(path, f"{file.stat().st_size} bytes", f"At most {_LARGEST_FILE} are read. {_OWN_FILE}")
        text = file.read_text("utf-8")
        if _values(yaml.compose(text, yaml.SafeLoader), {}) > _MOST_VALUES:
            raise _wrong(
                path, "aliases of aliases without end", f"At most {_MOST_VALUES:,} values are read. {_OWN_FILE}"
            )
        described = yaml.safe_load(text)
    except RecursionError as error:
        raise _wrong(path, "lists in lists without end", _OWN_FILE) from error
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise _wrong(path, " ".join(str(error).split())[:200], _OWN_FILE) from error
    if not isinstance(described, dict) or not isinstance(described.get("transform"), dict):
        raise _wrong(path, "no `transform` in it", _OWN_FILE)
    if "__class_fullname__" not in described["transform"]:
        raise _wrong(path, "a `transform` without `__class_fullname__`", _OWN_FILE)
    return described


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values below a node, itself included, with aliases written out; each node is looked at once."""
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # also what a node that contains itself comes to
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        inner = [each for item in below for each in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_values(each, known) for each in inner)
    return known[id(node)]


def _wrong(path: str, got: str, remedy: str) -> AugmentationError:
    names = ", ".join(f"`{name}`" for name in NAMED)
    what = f"`augment` must be {names}, or a file with a pipeline of Albumentations"
    return AugmentationError(what, f"`{path}`, {got}", "augment", remedy)


def _plain(value: Any) -> Any:
    """Tuples as lists, so that any YAML reader takes the text."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
