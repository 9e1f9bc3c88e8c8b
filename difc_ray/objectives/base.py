"""What a worker measures in a step, what the coordinator makes of it, and what is pulled back.

An objective is the sum of the classification loss and a penalty on statistics of the scope. It is written as a
conversation, one file per objective:

1. every worker answers :meth:`Objective.measure` with named vectors of scope size;
2. for each further exchange the coordinator computes :meth:`Objective.broadcasts` from all answers so far, one for each
   domain, which answers it with :meth:`Objective.respond`;
3. the coordinator turns all answers into :meth:`Objective.cotangents`, one set per domain;
4. worker e differentiates :meth:`Objective.surrogate` of its own cotangents: a row.

The sum of those rows over the domains is the gradient of the penalty. Workers never see each other's examples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

from difc_ray.objectives.spread import cotangents, deviations, spread, weighted_mean
from difc_ray.options import NoOptions, options_of
from difc_ray.registry import Registry

SYMBOLS = {"alpha": "α", "beta": "β"}
"""The coefficients, and what formulas call them."""

Vectors = dict[str, np.ndarray]
"""Named vectors of scope size, as they travel between processes."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What all objectives are told of the configuration, besides their own options.

    Args:
        estimator: `exact` (closed form) or `hutchinson` (Rademacher probes).
        probes: m, probes per set, at least 1.
        probe_sets: `shared` (one set per step for all domains), `independent` (one per domain) or `released` (one per
            domain and a fresh one for the mean, as in the authors' code).
        detach_mean: whether the mean term is a constant for differentiation, where that matters.
        examples: in the batch of a domain, at least 1.
        mixup: a > 0 of the Beta(a, a) distribution, of `mixup`.
        divided: whether workers or micro-batches share each domain's batch, and know only their own part of its means.
    """

    estimator: str = "exact"
    probes: int = 1
    probe_sets: str = "shared"
    detach_mean: bool = True
    examples: int = 1
    mixup: float = 0.2
    divided: bool = False


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """α and β as they stand in a step, after annealing and reduction."""

    alpha: float
    beta: float


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A worker's side of one step: the differentiable head, the probes, and the vectors it has answered so far."""

    head: Any
    probes: Mapping[str, Tensor]
    answered: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pairing:
    """Who is mixed with whom in a step.

    Args:
        partners_K: by domain, the number of the one whose batch is mixed into its own; each is so once.
        shares_K: by domain, λ in [0, 1], what its own batch counts.
    """

    partners_K: Int[np.ndarray, " K"]
    shares_K: Float[np.ndarray, " K"]


class Objective(ABC):
    """One objective; a final class per file, constructed with its settings and its own options.

    Args:
        settings: what all objectives are told.
        options: its own options from the configuration (`alignment.options`).

    Raises:
        ConfigError: an option is unknown or has a wrong value.
    """

    option_type: ClassVar[type[Any]] = NoOptions
    """The dataclass of its options, as ``OBJECTIVES.register(name, options=...)`` sets it."""

    exchanges: int = 1
    """How many answers a worker gives before the cotangents come."""

    has_penalty: bool = True
    """Whether there is anything to pull back (`erm`: no)."""

    reads: ClassVar[tuple[str, ...]] = ("alpha", "beta", "estimator", "probes", "probe_sets", "detach_mean")
    """The keys below `alignment` that it reads, besides those that are read for every penalty and its own options."""

    detaches_mean: ClassVar[bool] = False
    """What `alignment.detach_mean=auto` means."""

    scopes: ClassVar[tuple[str, ...]] = ("head",)
    """Whose curvature it can be about: `head`, `all`."""

    divisible: ClassVar[bool] = True
    """Whether several workers can share a domain's batch: its statistics are means over examples."""

    mixes: ClassVar[bool] = False
    """Whether a worker's batch is blended with that of another domain, which it makes itself: :meth:`pairing`."""

    def __init__(self, settings: ObjectiveSettings, options: Mapping[str, Any] | None = None) -> None:
        self.settings = settings
        self.options = options_of(type(self), options, OBJECTIVES, "alignment.options")

    @classmethod
    def coefficients(cls) -> tuple[str, ...]:
        """Which of `alpha` and `beta` weigh it."""
        return tuple(name for name in SYMBOLS if name in cls.reads)

    @classmethod
    def idle(cls, settings: ObjectiveSettings) -> dict[str, str]:
        """Keys among ``reads`` that these settings leave without effect, each with the setting that does."""
        return {}

    @classmethod
    def refusal(cls, settings: ObjectiveSettings, scope: str) -> tuple[str, str, tuple[str, ...]] | None:
        """Settings that it cannot have with a scope: rule, remedy, and the keys below `alignment`; None: it can."""
        return None

    def details(self) -> list[str]:
        """What a line about a run says of it, besides its name and its coefficients."""
        return []

    def describe(self, coefficients: Coefficients) -> str:
        """The objective in a line about a run, such as ``hutchinson (α 0.1, β 0.1, exact)``."""
        weights = [f"{SYMBOLS[name]} {getattr(coefficients, name):g}" for name in self.coefficients()]
        facts, name = ", ".join([*weights, *self.details()]), OBJECTIVES.name_of(type(self))
        return f"{name} ({facts})" if facts else name

    @classmethod
    def companion(cls, features: int, domains: int) -> nn.Module | None:
        """A module that is trained with the model: its parameters are part of θ, on every worker. None: nothing.

        Args:
            features: inputs of the head.
            domains: K, number of sources.
        """
        return None

    def join(self, companion: nn.Module, domain: int) -> None:
        """Tells a worker's objective its companion, with the weights of the step, and the number of its domain."""
        raise AssertionError(f"{type(self).__name__} has no companion")

    def probe_sets(self) -> dict[str, bool]:
        """Probe sets that a worker needs: name -> whether it is one set shared by all domains."""
        return {}

    def pairing(self, seed: int, step: int, domains: int) -> Pairing:
        """The pairs of a step, a pure function.

        Args:
            seed: seed of the run.
            step: >= 0.
            domains: K >= 2.
        """
        raise AssertionError(f"{type(self).__name__} does not mix")

    @abstractmethod
    def measure(self, head: Any, probes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """First answer: named vectors of scope size, differentiable.

        ``head`` is a :class:`~difc_ray.objectives.curvature.HeadCurvature`, or of objectives with the scope `all` any
        :class:`~difc_ray.objectives.curvature.Curvature`.
        """

    def respond(self, measurement: Measurement, exchange: int, broadcast: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Answer to a later exchange (1, 2, ...)."""
        raise AssertionError(f"{type(self).__name__} has one exchange")

    def broadcasts(self, exchange: int, answers: Sequence[Vectors], weights_K: np.ndarray) -> list[Vectors]:
        """What each domain is told before exchange 1, 2, ...; ``answers`` holds all vectors of each domain so far."""
        raise AssertionError(f"{type(self).__name__} has one exchange")

    @abstractmethod
    def cotangents(
        self, answers: Sequence[Vectors], weights_K: np.ndarray, coefficients: Coefficients
    ) -> tuple[list[Vectors], dict[str, float]]:
        """Per domain the vectors to contract with, and the penalty's terms by name (already times α, β)."""

    def surrogate(self, measurement: Measurement, cotangent: Mapping[str, Tensor]) -> Tensor:
        """The scalar whose gradient is this domain's alignment row: ``sum_name ⟨cotangent, answer⟩``."""
        terms = [(cotangent[name] * measurement.answered[name]).sum() for name in sorted(cotangent)]
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total


OBJECTIVES: Registry[type[Objective]] = Registry("objective")


def penalties() -> list[str]:
    """The objectives that have a penalty, by name."""
    return [name for name in OBJECTIVES if OBJECTIVES.get(name).has_penalty]


def pairs_of(weights_K: np.ndarray) -> float:
    """``Σ_{i<j} w_i w_j``: what turns a sum over pairs of domains with these weights into their mean.

    ``Σ_{i<j} w_i w_j ‖s_i − s_j‖² = Σ_e w_e ‖s_e − s̄‖²``, so the mean over pairs is the spread divided by this.
    """
    return float(1.0 - np.square(weights_K).sum()) / 2.0


def gradient_term(answers: Sequence[Vectors], weights_K: np.ndarray, beta: float) -> tuple[list[np.ndarray], float]:
    """The β-term that all penalties share: cotangents of ``g`` and ``β Σ w_e ‖g_e − ḡ‖²``."""
    gradients = [answer["g"] for answer in answers]
    deviation_K = deviations(gradients, weighted_mean(weights_K, gradients))
    return cotangents(beta, weights_K, deviation_K), beta * spread(weights_K, deviation_K)
