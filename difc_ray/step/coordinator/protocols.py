"""The interface between the algorithm and an engine: the source domains' workers, as the coordinator sees them.

Shape suffixes: P parameters, N raw rows, V vectors, S entries of the scope.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from difc_ray.objectives import Vectors
from difc_ray.objectives.losses import Confusion
from difc_ray.step.worker import ModelState, Products, Rows, Statistics


@runtime_checkable
class Domains(Protocol):
    """The source domains' workers, as the coordinator sees them; answers come in the order of the configuration."""

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        """First answers of all domains."""

    def exchange(self, step: int, number: int, broadcasts: Sequence[Vectors]) -> list[Statistics]:
        """Answers of all domains, each to its own broadcast."""

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        """Rows of all domains, each for its own cotangents."""

    def products(self, step: int, vectors_VS: np.ndarray) -> list[Products]:
        """Products of every domain's head Hessian with the same vectors."""

    def confusion(self, state: ModelState, step: int) -> list[Confusion]:
        """How sure the model is of the target's images, of which every domain looks at a share."""


@dataclass(frozen=True, kw_only=True)
class Update:
    """The update of a step, as it is sent to workers that hold θ, the optimizer and the rows themselves.

    Args:
        step: index of the step.
        weights_N: the factor of each raw row.
        reset: whether the optimizer forgets its moments first.
    """

    step: int
    weights_N: np.ndarray
    reset: bool = False


@runtime_checkable
class ReplicatedDomains(Domains, Protocol):
    """Workers that hold θ, the optimizer and the rows themselves: answers have no rows (``rows_RP`` is None)."""

    def gram(self) -> np.ndarray:
        """(N, N) inner products of the rows of the step in hand, in float64."""

    def move(self, update: Update) -> None:
        """Lets all workers take the update, or none: returns when every one has the direction."""

    def bad_rows(self) -> list[str]:
        """What is not finite in the rows of each domain in turn; empty where nothing is."""
