"""Flat parameter vectors: the layout (name <-> slice), the Gram matrix of rows, and their combination.

Shape suffixes: P parameters, N rows, V rows with those that a metric adds, B a block of parameters,
C blocks, S a strip of them.

A *row* is one flat contiguous float32 vector with P entries. Both :func:`gram` and :func:`combine` walk the
rows in the order given, in blocks of one fixed size, so that the result has the same bits wherever the rows
came from (another process, another engine), as long as the number of threads is the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 13
"""Parameters per block of the Gram matrix: N rows of it in float64 stay inside a core's cache."""

BLOCKS_AT_ONCE = 16
"""Blocks of the Gram matrix that are multiplied in one call, shared out among the threads."""

STRIP = 1 << 15
"""Parameters per block of a combination, so that the sum stays in cache."""


@dataclass(frozen=True)
class ParameterLayout:
    """Where each named parameter lies in the flat vector.

    Args:
        names: parameter names in the model's own order.
        shapes: their shapes, in the same order.

    >>> layout = ParameterLayout(("a", "b"), ((2, 3), (4,)))
    >>> layout.size, layout.slices["b"]
    (10, slice(6, 10, None))
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: torch.nn.Module) -> ParameterLayout:
        """The layout of a module's parameters."""
        items = list(module.named_parameters())
        return cls(tuple(name for name, _ in items), tuple(tuple(p.shape) for _, p in items))

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Name -> its range in the flat vector."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes]).tolist()
        return {name: slice(start, end) for name, start, end in zip(self.names, [0, *ends], ends, strict=False)}

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes)

    def named(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Views of the flat vector by name, in shape."""
        return {n: theta_P[self.slices[n]].view(shape) for n, shape in zip(self.names, self.shapes, strict=True)}

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """The flat float32 vector of named tensors (a copy)."""
        return torch.cat([named[name].detach().reshape(-1).to(torch.float32) for name in self.names])

    def owner(self, position: int) -> str:
        """The parameter that holds an entry of the flat vector; names the place of a NaN."""
        return next(name for name, span in self.slices.items() if span.start <= position < span.stop)

    def mismatches(self, other: ParameterLayout) -> list[str]:
        """Sentences on how another layout differs from this one (empty: equal)."""
        mine, theirs = (
            dict(zip(self.names, self.shapes, strict=True)),
            dict(zip(other.names, other.shapes, strict=True)),
        )
        sentences = [f"`{n}` is {mine.get(n, 'absent')} here and {theirs.get(n, 'absent')} there"
                 for n in [*mine, *(n for n in theirs if n not in mine)] if mine.get(n) != theirs.get(n)]  # fmt: skip
        return sentences or ([] if self.names == other.names else ["the parameters come in another order"])


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over an array's memory, also over read-only memory (views of an object store): do not write to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def write_theta(theta_P: Tensor, parameters: Iterable[Tensor]) -> None:
    """Copies the flat vector into a module's own parameter tensors.

    Copies, not views: the parameters keep the alignment that their allocator gave them, so kernels take the
    same path, and round the same way, on every engine.
    """
    start = 0
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(theta_P[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def write_row(tensors: Sequence[Tensor], out_P: Tensor) -> None:
    """Writes tensors one after the other into a flat vector (a row), without an intermediate copy."""
    start = 0
    for tensor in tensors:
        out_P[start : start + tensor.numel()].view_as(tensor).copy_(tensor)
        start += tensor.numel()


def add_row(tensors: Sequence[Tensor], factor: float, out_P: Tensor) -> None:
    """Adds tensors, one after the other and times a factor, to a flat vector (a row)."""
    start = 0
    for tensor in tensors:
        out_P[start : start + tensor.numel()].view_as(tensor).add_(tensor.detach(), alpha=factor)
        start += tensor.numel()


def gram(rows: Sequence[Float[Tensor, " P"]], metric_P: Float[Tensor, " P"] | None = None) -> Float[np.ndarray, "V V"]:
    """The matrix of inner products ``rows[i] · rows[j]``, accumulated in float64 by blocks.

    With a diagonal metric M it is the Gram matrix of the 2N rows ``r_1 … r_N, M r_1 … M r_N``; the second half exists
    in one block at a time only.

    A non-finite entry anywhere in row i makes entry (i, i) non-finite, and nothing else can: the square of a
    finite float32 is finite in float64. So the diagonal is also the finite check of every row.

    Args:
        rows: N float32 vectors of one length.
        metric_P: diagonal of M, or None.

    Returns:
        (V, V) float64, exactly symmetric, V = N or 2N.
    """
    total = len(rows) if metric_P is None else 2 * len(rows)
    sums_VV = torch.zeros(total, total, dtype=torch.float64, device=rows[0].device)
    for products_CVV in _block_products(rows, metric_P):
        sums_VV += products_CVV.sum(0)
    return _symmetric(sums_VV)


def gram_blocks(rows: Sequence[Float[Tensor, " P"]]) -> Float[Tensor, "C N N"]:
    """The inner products within each block of the rows, in float64.

    Blocks of several pieces of the same rows, put one after the other, are those of the whole rows, if every piece but
    the last is a multiple of :data:`BLOCK` long: :func:`sum_blocks` then returns what :func:`gram` would, bit for bit.

    Args:
        rows: N float32 vectors of one length.

    Returns:
        (C, N, N), one matrix for each block, on the CPU.
    """
    if rows[0].numel() == 0:
        return torch.zeros(0, len(rows), len(rows), dtype=torch.float64)
    return torch.cat([products_CNN.cpu() for products_CNN in _block_products(rows)])[: _blocks(rows[0].numel())]


def sum_blocks(blocks_CNN: Float[Tensor, "C N N"]) -> Float[np.ndarray, "N N"]:
    """The Gram matrix of rows whose blocks :func:`gram_blocks` has multiplied, in the same order of additions."""
    n, at_once = blocks_CNN.shape[1], min(BLOCKS_AT_ONCE, max(1, len(blocks_CNN)))
    sums_NN = torch.zeros(n, n, dtype=torch.float64)
    for start in range(0, len(blocks_CNN), at_once):
        part_CNN = blocks_CNN[start : start + at_once]
        missing = torch.zeros(at_once - len(part_CNN), n, n, dtype=torch.float64)
        sums_NN += torch.cat([part_CNN, missing]).sum(0)
    return _symmetric(sums_NN)


def _blocks(size: int) -> int:
    return math.ceil(size / BLOCK)


def _symmetric(sums_VV: Tensor) -> np.ndarray:
    """The upper triangle, and the same below."""
    return torch.triu(sums_VV).add_(torch.triu(sums_VV, 1).T).cpu().numpy()


def _block_products(rows: Sequence[Tensor], metric_P: Tensor | None = None) -> Iterator[Tensor]:
    """The matrices of every block, (C, V, V) for some blocks at a time; behind the end of the rows they are zero."""
    n, size = len(rows), rows[0].numel()
    total = n if metric_P is None else 2 * n
    at_once = min(BLOCKS_AT_ONCE, _blocks(size))
    blocks_VCB = torch.zeros(total, at_once, BLOCK, dtype=torch.float64, device=rows[0].device)
    part_VS = blocks_VCB.view(total, at_once * BLOCK)
    for start in range(0, size, at_once * BLOCK):
        length = min(at_once * BLOCK, size - start)
        part_VS[:, length:] = 0.0  # the end of the rows seldom is the end of a block
        for i, row in enumerate(rows):
            part_VS[i, :length].copy_(row[start : start + length])
        if metric_P is not None:
            torch.mul(
                part_VS[:n, :length], metric_P[start : start + length].to(torch.float64), out=part_VS[n:, :length]
            )
        blocks_CVB = blocks_VCB.transpose(0, 1)
        yield torch.bmm(blocks_CVB, blocks_CVB.mT)


def combine(
    weights_V: Float[np.ndarray, " V"], rows: Sequence[Float[Tensor, " P"]], metric_P: Float[Tensor, " P"] | None = None
) -> Float[Tensor, " P"]:
    """``sum_i weights[i] * rows[i]`` in float32, added one after the other in the order given.

    With a diagonal metric M the weights are those of the 2N rows ``r_1 … r_N, M r_1 … M r_N``.

    Args:
        weights_V: (V,) float64; each is rounded once to float32 where it meets its row.
        rows: N float32 vectors.
        metric_P: diagonal of M, or None.
    """
    if metric_P is not None:
        out_P = combine(weights_V[len(rows) :], rows).mul_(metric_P)
        return out_P.add_(combine(weights_V[: len(rows)], rows)) if weights_V[: len(rows)].any() else out_P
    out_P = torch.empty_like(rows[0])
    for start in range(0, out_P.numel(), STRIP):  # the bits are those of whole rows
        block = slice(start, start + STRIP)
        part_B = torch.mul(rows[0][block], float(weights_V[0]), out=out_P[block])
        for weight, row in zip(weights_V[1:], rows[1:], strict=True):
            part_B.add_(row[block], alpha=float(weight))
    return out_P
