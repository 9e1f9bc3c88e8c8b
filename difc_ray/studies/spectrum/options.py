"""What is asked of a spectrum, and whether it can be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch

from difc_ray.errors import ConfigError
from difc_ray.registry import did_you_mean

Split = Literal["train", "val", "test", "all"]
Scope = Literal["head", "all"]
Precision = Literal["float32", "float64"]

SPLITS: Final = get_args(Split)
RELATIVE_DELTA: Final = 0.001
"""The radius δ, where none is given, as a share of the length of θ."""

SPARE_VECTORS: Final = 10
"""Vectors besides the Lanczos basis: parameters, gradient, product, eigenvector, what is added up."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is measured.

    Args:
        domains: names; None: the run's sources, and its target if there is one.
        split: of every domain; the training split by default, on which a trained model is nearly stationary.
        steps: checkpoints by step; None: all that are kept.
        checkpoints: only so many of them, evenly spread, the first and the last among them; None: all.
        scope: parameters that the Hessians are of: the linear head, or all.
        top: eigenvalues that are told, the largest ones.
        probes: starts of the density, and probes of the trace, >= 1.
        lanczos: Lanczos steps from a start, >= `top`.
        examples: most examples of a domain that are looked at, drawn by the seed.
        delta: radius δ of the transfer bound; None: :data:`RELATIVE_DELTA` of the length of the last θ in the scope.
        precision: of the Hessian products.
        seed: of starts, probes, directions and examples; None: that of the run.
    """

    domains: tuple[str, ...] | None = None
    split: Split = "train"
    steps: tuple[int, ...] | None = None
    checkpoints: int | None = None
    scope: Scope = "all"
    top: int = 5
    probes: int = 2
    lanczos: int = 20
    examples: int = 128
    delta: float | None = None
    precision: Precision = "float32"
    seed: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the products."""
        return torch.float64 if self.precision == "float64" else torch.float32


def check_options(options: Options, known: Sequence[str]) -> None:
    """Whether the options fit together and name domains of the dataset.

    Args:
        options: what is asked.
        known: all domains of the run's dataset.

    Raises:
        ConfigError: they do not.
    """
    if options.top > options.lanczos:
        raise ConfigError(
            f"`--top` must be at most `--lanczos`, which makes that many Ritz values, got {options.top} of "
            f"{options.lanczos} (command line). Raise `--lanczos`, or lower `--top`."
        )
    for name in options.domains or ():
        if name not in known:
            raise ConfigError(
                f"`--domains` must name domains of the run's dataset, got `{name}` (command line). "
                f"{did_you_mean(name, known)}"
            )
    if options.domains and len(set(options.domains)) < len(options.domains):
        raise ConfigError(
            f"`--domains` must name each domain once, got `{','.join(options.domains)}` (command line). Remove the "
            "repetition."
        )


def chosen_steps(options: Options, there: Sequence[int]) -> list[int]:
    """The checkpoints that are measured, ascending.

    Args:
        options: what is asked.
        there: steps of the checkpoints that are kept, ascending; at least one.

    Raises:
        ConfigError: a step has no checkpoint.

    >>> chosen_steps(Options(checkpoints=3), [0, 10, 20, 30, 40])
    [0, 20, 40]
    """
    if options.steps is not None:
        if missing := [step for step in options.steps if step not in there]:
            raise ConfigError(
                f"`--steps` must name kept checkpoints, got {missing[0]} (command line). There are "
                f"{', '.join(map(str, there))}; `checkpoint.keep` and `checkpoint.every` of a run decide."
            )
        there = sorted(set(options.steps))
    if options.checkpoints is None or options.checkpoints >= len(there):
        return list(there)
    if options.checkpoints == 1:
        return [there[-1]]
    places = torch.linspace(0, len(there) - 1, options.checkpoints, dtype=torch.float64).round().long().tolist()
    return [there[place] for place in places]


def needed_bytes(options: Options, *, size: int, parameters: int, features: int, chunk_bytes: int) -> int:
    """Memory that a measurement takes at most, besides what is loaded already: the examples are.

    Args:
        options: what is asked.
        size: S, parameters of the scope.
        parameters: P, all parameters.
        features: numbers that scope `head` keeps of the examples of all domains.
        chunk_bytes: of a chunk of examples, in float64 and with what the passes keep of them.
    """
    itemsize = torch.finfo(options.dtype).bits // 8
    vectors = (options.lanczos + SPARE_VECTORS) * size * itemsize
    models = parameters * (8 + 8 + itemsize)
    return vectors + models + features * (8 + itemsize) + chunk_bytes


def check_memory(options: Options, needed: int, size: int, available_bytes: int) -> None:
    """Refuses before anything is computed what does not fit.

    Raises:
        ConfigError: it needs more than is free.
    """
    if needed > available_bytes:
        itemsize = torch.finfo(options.dtype).bits // 8
        basis = (options.lanczos + SPARE_VECTORS) * size * itemsize
        more = " or write `--scope head`" if options.scope == "all" else ""
        raise ConfigError(
            f"Lanczos vectors, features and graph must fit into memory, got {options.lanczos} + {SPARE_VECTORS} "
            f"vectors of {size:,} entries ({basis / 2**20:,.0f} MiB) and {needed / 2**20:,.0f} MiB in all against "
            f"{available_bytes / 2**20:,.0f} MiB free (command line). Lower `--lanczos` or `--examples`{more}."
        )
