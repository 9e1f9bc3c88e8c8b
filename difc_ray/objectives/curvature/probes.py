"""Random probes: functions of a seed.

Shape suffixes: M probes, S entries of the scope.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rademacher(count: int, size: int, seed: int, dtype: torch.dtype = torch.float32) -> Float[Tensor, "M S"]:
    """Probes with independent entries ±1, a function of the seed alone (always drawn on the CPU)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (count, size), generator=generator).to(dtype).mul_(2).sub_(1)
