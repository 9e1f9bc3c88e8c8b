"""Domains whose examples are pictures of bytes: what resizing, augmentation and normalisation start from.

Shape suffixes: B batch, H height, W width, C channels of the images; h, w those of a picture before it is fitted.

The bytes go through three stages: a picture as it is (h, w, C), the picture fitted to the image size or augmented
(H, W, C), and the normalised float32 image (C, H, W). The first two may happen in another process, and bytes are what
travels; the third is the same three operations for every domain.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from difc_ray.data.augmentation import Augmentation
from difc_ray.data.batch import RawBatch
from difc_ray.data.domain import Domain
from difc_ray.data.errors import AugmentationError
from difc_ray.data.splits import FRACTIONS, Split
from difc_ray.determinism import derive_seed


class PixelDomain(Domain):
    """A domain of pictures; a subclass gives :meth:`pixels_at`.

    Args:
        name: unique in its dataset.
        class_names: names by class number.
        image_shape: (C, H, W) of the images.
        labels: (M,) class numbers.
        seed: decides the splits.
        fractions: shares of train, val and test.
        splits: sorted positions by split, where the dataset brings its own.
        mean: by channel, of pixels in [0, 1]; subtracted.
        std: by channel, of pixels in [0, 1]; divided by.
    """

    def __init__(
        self, name: str, class_names: Sequence[str], image_shape: tuple[int, int, int], labels: npt.ArrayLike,
        seed: int, fractions: Sequence[float] = FRACTIONS,
        splits: Mapping[Split, Int[np.ndarray, " _"]] | None = None, *,
        mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:  # fmt: skip
        super().__init__(name, class_names, image_shape, labels, seed, fractions, splits)
        mean_C, std_C = (np.broadcast_to(np.asarray(each, dtype=np.float64), image_shape[0]) for each in (mean, std))
        self._scale_C11 = torch.from_numpy((1 / (255 * std_C)).astype(np.float32)[:, None, None])
        self._shift_C11 = torch.from_numpy((mean_C / std_C).astype(np.float32)[:, None, None])

    @abstractmethod
    def pixels_at(self, position: int, enough: int | None = None) -> UInt8[np.ndarray, "h w C"]:
        """The picture at a position, upright and whole, of any size; a pure function. Nobody writes into the array.

        Args:
            position: of the example.
            enough: a picture much larger may be reduced, but no side below this; None: as it is.
        """

    def fitted(self, indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W C"]:
        """Pictures at the size of the images, a fresh array."""
        channels, height, width = self.image_shape
        pictures = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        for picture, position in zip(pictures, indices.tolist(), strict=True):
            picture[:] = resized(self.pixels_at(position, 2 * max(height, width)), height, width)
        return pictures

    def images_at(self, indices: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B C H W"]:
        """Normalised float32 images."""
        return np.asarray(self._normalised(torch.from_numpy(self.fitted(indices))))

    def drawn(self, indices: Int[np.ndarray, " B"]) -> RawBatch:
        """Examples at given positions, as bytes."""
        return self._drawn(torch.from_numpy(self.fitted(indices)), indices)

    def drawn_augmented(
        self, indices: Int[np.ndarray, " B"], augmentation: Augmentation, seed: int, first: int
    ) -> RawBatch:
        """The same, augmented."""
        channels, height, width = self.image_shape
        pictures = np.empty((len(indices), height, width, channels), dtype=np.uint8)
        for number, position in enumerate(indices.tolist()):
            pixels = self.pixels_at(position, augmentation.enough)
            drawn = derive_seed(seed, "augment", self.name, first + number)
            try:
                pictures[number] = augmentation.applied(pixels, drawn)
            except AugmentationError as error:
                raise error.at(f"augment, domain `{self.name}`, `{self.path_of(position)}`") from error
        return self._drawn(torch.from_numpy(pictures), indices)

    def _normalised(self, images: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B C H W"]:
        """``(pixel / 255 − mean) / std`` by channel, as one multiplication and one subtraction."""
        planes = images.permute(0, 3, 1, 2)
        floats = torch.empty(planes.shape, dtype=torch.float32, device=images.device).copy_(planes)
        return floats.mul_(self._scale_C11.to(images.device)).sub_(self._shift_C11.to(images.device))


def resized(pixels: UInt8[np.ndarray, "h w C"], height: int, width: int) -> UInt8[np.ndarray, "H W C"]:
    """A picture at another size by Pillow's bilinear filter, which averages where it shrinks; the aspect may change."""
    if pixels.shape[:2] == (height, width):
        return pixels
    if pixels.shape[2] == 1:
        grey = Image.fromarray(pixels[:, :, 0]).resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(grey)[:, :, None]
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


class ArrayDomain(PixelDomain):
    """A domain whose pictures lie in memory, all of one size.

    Args:
        pixels: (M, h, w, C) bytes; C = 1 is repeated where the images have three channels.
        name: unique in its dataset.
        class_names: names by class number.
        image_shape: (C, H, W) of the images.
        labels: (M,) class numbers.
        seed: decides the splits.
        fractions: shares of train, val and test.
        splits: sorted positions by split, where the dataset brings its own.
        mean: by channel, of pixels in [0, 1].
        std: by channel, of pixels in [0, 1].
    """

    def __init__(
        self, pixels: UInt8[np.ndarray, "M h w _"], name: str, class_names: Sequence[str],
        image_shape: tuple[int, int, int], labels: npt.ArrayLike, seed: int, fractions: Sequence[float] = FRACTIONS,
        splits: Mapping[Split, Int[np.ndarray, " _"]] | None = None, *,
        mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,),
    ) -> None:  # fmt: skip
        super().__init__(name, class_names, image_shape, labels, seed, fractions, splits, mean=mean, std=std)
        assert pixels.shape[3] in (1, image_shape[0]), (pixels.shape, image_shape)
        self._pixels = pixels

    def pixels_at(self, position: int, enough: int | None = None) -> UInt8[np.ndarray, "h w C"]:
        """The picture as it is stored."""
        return self._spread(self._pixels[position])

    def fitted(self, indices: Int[np.ndarray, " B"]) -> UInt8[np.ndarray, "B H W C"]:
        """Pictures at the size of the images; at once where they have it."""
        if self._pixels.shape[1:3] != self.image_shape[1:]:
            return super().fitted(indices)
        return np.ascontiguousarray(self._spread(self._pixels[indices]))

    def _spread(self, pictures: UInt8[np.ndarray, "*B h w _"]) -> UInt8[np.ndarray, "*B h w C"]:
        channels = self.image_shape[0]
        return pictures if pictures.shape[-1] == channels else np.repeat(pictures, channels, axis=-1)
