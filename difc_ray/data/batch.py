"""Some examples of a domain: as training gets them, and on their way there.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some examples of one domain.

    Args:
        images: (B, C, H, W) float32, normalised.
        labels: (B,) int64 class numbers.
        indices: (B,) int64 positions in the domain.
    """

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]
    indices: Int[np.ndarray, " B"]

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, kw_only=True)
class RawBatch:
    """Some examples on their way from where they are made, perhaps another process, to a :class:`Batch`.

    Args:
        images: (B, C, H, W) float32, normalised; or (B, H, W, C) bytes, where :meth:`Domain.finished` normalises.
        labels: (B,) int64 class numbers.
        indices: (B,) int64 positions in the domain.
        replacements: bad examples met on the way, position -> position of the one in its place.
    """

    images: Tensor
    labels: Int[Tensor, " B"]
    indices: Int[np.ndarray, " B"]
    replacements: Mapping[int, int]
