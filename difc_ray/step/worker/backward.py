"""The second half of a worker's step: from the graph and the cotangents to the rows.

Shape suffixes: P parameters, R rows of one domain (1 or 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from difc_ray.config import Config, metric_kind
from difc_ray.determinism import derive_seed
from difc_ray.objectives import Objective
from difc_ray.objectives.curvature import HeadCurvature, rademacher
from difc_ray.step.worker.forward import BatchGraph
from difc_ray.step.worker.head import diagonal_row
from difc_ray.tracing import Recorder
from difc_ray.vectors import add_row, write_row


class BackwardPass:
    """Writes the classification gradient g and the alignment gradient a of a graph into rows.

    Args:
        config: the run's configuration.
        domain: name of the domain.
        parameters: of the model.
        objective: whose penalty is pulled back.
        weight: w of the domain: with one row it is ``g + a / w``.
        device: of the model.
        recorder: takes the times.

    Attributes:
        curvature_P: the Hessian diagonal of the latest graph, where a rule asks for it; else empty.
    """

    def __init__(
        self, config: Config, domain: str, parameters: Sequence[Tensor], objective: Objective, weight: float,
        device: torch.device, recorder: Recorder,
    ) -> None:  # fmt: skip
        self.config, self.domain, self.parameters, self.device = config, domain, parameters, device
        self.objective, self.weight, self.recorder = objective, weight, recorder
        self.needs_diagonal = metric_kind(config) == "diagonal"
        self.probes_diagonal = self.needs_diagonal and config.harmonize.curvature.rest == "hutchinson"
        self.size = sum(parameter.numel() for parameter in parameters)
        self.curvature_P = torch.empty(self.size if self.needs_diagonal else 0)

    def write_rows(self, graph: BatchGraph, step: int, cotangents: Mapping[str, Tensor], out_RP: Tensor) -> None:
        """Writes the rows of a graph, which is freed.

        They are two where a rule sees the gradients apart, and otherwise one, by one backward pass where nothing needs
        g by itself.
        """
        joint = len(out_RP) == 1 and self.config.alignment.scope == "head" and not self.needs_diagonal
        if self.objective.has_penalty and joint:
            self._write_joint(graph, cotangents, out_RP[0])
            return
        self._write_classification(graph, step, out_RP[0])
        if self.objective.has_penalty:
            self._write_alignment(graph, cotangents, out_RP)

    def _write_joint(self, graph: BatchGraph, cotangents: Mapping[str, Tensor], out_P: Tensor) -> None:
        """One row for both gradients by one backward pass."""
        with self.recorder.span("backward"):
            surrogate = self.objective.surrogate(graph.measurement, cotangents)
            gradients = self._gradients(graph.head.risk + surrogate / self.weight)
        with self.recorder.span("pack"):
            write_row(gradients, out_P)

    def _write_classification(self, graph: BatchGraph, step: int, out_P: Tensor) -> None:
        """The gradient of the loss, and the curvature where a rule asks for it."""
        keep = self.objective.has_penalty or self.probes_diagonal
        with self.recorder.span("backward of the classification"):
            gradients = graph.gradients(self.parameters, keep=keep, differentiable=self.probes_diagonal)
        with self.recorder.span("pack"):
            write_row([gradient.detach() for gradient in gradients], out_P)
        if self.needs_diagonal:
            with self.recorder.span("curvature"):
                self._write_curvature(graph.head, step, gradients)

    def _write_alignment(self, graph: BatchGraph, cotangents: Mapping[str, Tensor], out_RP: Tensor) -> None:
        """The gradient of the penalty, into a row of its own or added to the first."""
        with self.recorder.span("backward of the alignment"):
            gradients = self._gradients(self.objective.surrogate(graph.measurement, cotangents))
        with self.recorder.span("pack"):
            if len(out_RP) == 2:
                write_row(gradients, out_RP[1])
            else:
                add_row(gradients, 1 / self.weight, out_RP[0])

    def _write_curvature(self, head: HeadCurvature, step: int, gradients: Sequence[Tensor]) -> None:
        """The batch's Hessian diagonal."""
        probe_P = None
        if self.probes_diagonal:
            seed = derive_seed(self.config.seed, "probes-flatness", self.domain, step)
            probe_P = rademacher(1, self.size, seed)[0].to(self.device)
        kind = self.config.harmonize.curvature.rest
        diagonal_row(kind, head, gradients, self.parameters, probe_P, self.curvature_P)

    def _gradients(self, value: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(value, self.parameters, allow_unused=True, materialize_grads=True)
