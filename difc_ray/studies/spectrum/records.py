"""What a measurement came to, as it is kept in `spectrum.json`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from difc_ray.objectives.curvature import Density
from difc_ray.studies.spectrum.transfer import TransferBound

ALL_SOURCES = "all sources"
"""The weighted mean of the sources that are looked at, as a domain beside the others."""


@dataclass(frozen=True, kw_only=True)
class Eigenvalue:
    """A Ritz value.

    Args:
        value: θ.
        residual: an eigenvalue of the Hessian lies within it.
    """

    value: float
    residual: float


@dataclass(frozen=True, kw_only=True)
class DomainSpectrum:
    """The Hessian of one domain's loss.

    Args:
        examples: how many were looked at.
        loss: their mean loss.
        gradient_norm: length of its gradient.
        top: the largest eigenvalues, descending.
        lowest: the smallest one.
        trace: estimate of the trace.
        trace_error: its standard error; None with a single probe.
        nodes: places of the density's masses, ascending.
        weights: the masses.
    """

    examples: int
    loss: float
    gradient_norm: float
    top: list[Eigenvalue]
    lowest: Eigenvalue
    trace: float
    trace_error: float | None
    nodes: list[float]
    weights: list[float]

    def density(self) -> Density:
        """The density of the eigenvalues."""
        return Density(nodes_Q=np.array(self.nodes), weights_Q=np.array(self.weights))


@dataclass(frozen=True, kw_only=True)
class PairDistance:
    """Two domains.

    Args:
        one: a domain, or :data:`ALL_SOURCES`.
        other: another; the target where it is one of the two.
        hessian: ‖H_a − H_b‖₂, the largest magnitude of a Ritz value: a lower bound that converges from below.
        residual: an eigenvalue of the difference lies within it from that Ritz value.
        iterations: Lanczos steps that it took.
        gradient: ‖g_a − g_b‖.
        bound: the transfer bound, and the gap beside it.
        sweep: the same for other radii, where they were measured.
    """

    one: str
    other: str
    hessian: float
    residual: float
    iterations: int
    gradient: float
    bound: TransferBound
    sweep: list[TransferBound] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.one} – {self.other}"


@dataclass(frozen=True, kw_only=True)
class CheckpointSpectrum:
    """One checkpoint.

    Args:
        step: its step.
        theta_norm: length of θ in the scope.
        domains: by name.
        pairs: all pairs of domains, and the mean of the sources with the target.
    """

    step: int
    theta_norm: float
    domains: dict[str, DomainSpectrum]
    pairs: list[PairDistance]

    @property
    def main(self) -> PairDistance:
        """The pair that the theorem is about: the mean of the sources and the target, or what comes nearest to it."""
        return self.pairs[0]


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """All of it.

    Args:
        run: name of the run.
        target: its target, if that is among the domains.
        parameters: S, parameters of the scope.
        threads: of this process; with the options and the checkpoints they decide the bits.
        options: what was asked, as it is in force.
        moments: by step.
    """

    run: str
    target: str | None
    parameters: int
    threads: int
    options: dict[str, Any]
    moments: list[CheckpointSpectrum]

    def points(self) -> dict[int, dict[str, float]]:
        """The figures by step, under the names that MLflow has them by."""
        found: dict[int, dict[str, float]] = {}
        for moment in self.moments:
            values = found.setdefault(moment.step, {})
            for name, domain in moment.domains.items():
                values[f"spectrum/top/{name}"] = domain.top[0].value
                values[f"spectrum/lowest/{name}"] = domain.lowest.value
                values[f"spectrum/trace/{name}"] = domain.trace
                values[f"spectrum/loss/{name}"] = domain.loss
                values[f"spectrum/gradient_norm/{name}"] = domain.gradient_norm
            for pair in moment.pairs:
                ends = f"{pair.one}/{pair.other}"
                values[f"spectrum/hessian_distance/{ends}"] = pair.hessian
                values[f"spectrum/gradient_distance/{ends}"] = pair.gradient
                values[f"spectrum/bound/{ends}"] = pair.bound.bound
                values[f"spectrum/bound_curvature/{ends}"] = pair.bound.curvature_term
                values[f"spectrum/gap/{ends}"] = pair.bound.gap
                values[f"spectrum/gap_even/{ends}"] = pair.bound.even_gap
        return found
