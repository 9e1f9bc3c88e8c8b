"""What a worker is told and what it answers; frozen, with explicit types, as they travel between processes.

Shape suffixes: P parameters, R rows of one domain (1 or 2), S entries of the scope, V vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from difc_ray.objectives import Vectors
from difc_ray.tracing import Span


@dataclass(frozen=True, kw_only=True)
class Token:
    """Names the one message that an answer belongs to; answers under another token are not used.

    Args:
        run: identity of the run.
        attempt: how often workers were replaced before.
        step: index of the step.
        domain: who is asked.
        part: which of the domain's workers.
        traced: whether the answer is to say how long everything took.
    """

    run: str
    attempt: int
    step: int
    domain: str
    part: int = 0
    traced: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What the coordinator broadcasts: parameters, buffers (see :func:`domain_buffer`), and what the loss is told.

    No parameters (None) are for workers that hold them themselves.
    """

    theta_P: np.ndarray | None
    buffers: dict[str, np.ndarray]
    loss: dict[str, np.ndarray] = field(default_factory=dict)


def domain_buffer(domain: str, name: str) -> str:
    """What a domain's own copy of a buffer is called in a state; a buffer has no `/` in its name, a domain may.

    >>> domain_buffer("photo", "featurizer.bn1.running_mean")
    'photo/featurizer.bn1.running_mean'
    """
    return f"{domain}/{name}"


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """A worker's answer in the first half of a step.

    Args:
        token: the message answered.
        loss: mean classification loss of the batch.
        accuracy: share of the batch classified right.
        vectors: named vectors of scope size.
        compute_s: seconds of this process spent on the answer.
        loading_s: those of them in which it waited for its batch.
        samples: examples in its part of the batch.
        spans: what the time was spent on, if the step is traced.
    """

    token: Token
    loss: float
    accuracy: float
    vectors: Vectors
    compute_s: float
    loading_s: float = 0.0
    samples: int = 1
    spans: tuple[Span, ...] = ()

    def same_as(self, other: Statistics) -> bool:
        """Whether another answer to the same step has the same bits (times and attempts aside)."""
        return (
            np.float64(self.loss).tobytes() == np.float64(other.loss).tobytes()
            and self.vectors.keys() == other.vectors.keys()
            and all(value.tobytes() == other.vectors[name].tobytes() for name, value in self.vectors.items())
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A worker's answer in the second half of a step.

    Args:
        token: the message answered.
        rows_RP: contiguous (R, P): the classification gradient g, then the alignment gradient a; or only ``g + a / w``,
            and g where there is no penalty; None where the rows stay with their worker.
        buffers: the model's buffers after the forward pass, by name.
        compute_s: seconds of this process spent on the answer.
        curvature_P: (P,) Hessian diagonal of the batch, where the rule asks for one.
        noise: variance of the head's batch gradient, where the rule asks for the curvature.
        samples: examples in its part of the batch.
        spans: what the time was spent on, if the step is traced.
    """

    token: Token
    rows_RP: np.ndarray | None
    buffers: dict[str, np.ndarray]
    compute_s: float
    curvature_P: np.ndarray | None = None
    noise: float = 0.0
    samples: int = 1
    spans: tuple[Span, ...] = ()


def held_rows(reply: Rows) -> np.ndarray:
    """The rows of an answer that has brought them."""
    assert reply.rows_RP is not None, "the rows have stayed with their worker"
    return reply.rows_RP


@dataclass(frozen=True, kw_only=True)
class Products:
    """A worker's answer to a request for products with its head's Hessian: (V, S) in the order asked."""

    token: Token
    vectors_VS: np.ndarray
    compute_s: float
    spans: tuple[Span, ...] = ()
