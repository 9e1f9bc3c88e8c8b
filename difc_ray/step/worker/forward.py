"""The first half of a worker's step: a piece of its batch forward, and what is measured on the graph.

Shape suffixes: S entries of the scope.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from difc_ray.config import Config, metric_kind
from difc_ray.data import Batch
from difc_ray.determinism import derive_seed
from difc_ray.models import Model
from difc_ray.objectives import Measurement, Objective
from difc_ray.objectives.curvature import HeadCurvature, NetworkCurvature, WrittenOut, rademacher
from difc_ray.objectives.losses import Loss
from difc_ray.step.division import part_of, pieces_of
from difc_ray.step.worker.dropout import SeededDropout
from difc_ray.step.worker.head import detached_head, head_curvature
from difc_ray.step.worker.messages import Token
from difc_ray.tracing import Recorder


@dataclass(frozen=True, kw_only=True)
class BatchGraph:
    """The autograd graph of a piece of the batch.

    Args:
        share: the piece's share of this worker's examples.
        correct: share of the piece that is classified right.
        head: the closed forms of the head on it.
        measurement: what the objective knows of it.
        detached: the head once more, without a graph, for a rule that asks for products after the rows.
    """

    share: float
    correct: float
    head: HeadCurvature
    measurement: Measurement
    detached: HeadCurvature | None

    def gradients(self, parameters: Sequence[Tensor], *, keep: bool, differentiable: bool) -> Sequence[Tensor]:
        """The classification gradient by parameter; scope `all` has it already, with its graph."""
        scope = self.measurement.head
        if isinstance(scope, NetworkCurvature):
            return scope.gradients
        return torch.autograd.grad(
            self.head.risk, parameters, retain_graph=keep, create_graph=differentiable,
            allow_unused=True, materialize_grads=True,
        )  # fmt: skip


@dataclass(kw_only=True)
class OpenStep:
    """The step in hand, from its statistics to its rows.

    Args:
        token: its message.
        batch: this worker's examples.
        loss: the loss with the vectors of this step.
        loading_s: how long the batch was waited for.
        broadcasts: those of the exchanges so far.
        graph: of the whole batch; None where it has several pieces, which are passed forward whenever they are needed.
        risk: mean loss of the batch.
        correct: share of the batch that is classified right.
    """

    token: Token
    batch: Batch
    loss: Loss
    loading_s: float
    broadcasts: list[dict[str, Tensor]] = field(default_factory=list)
    graph: BatchGraph | None = None
    risk: float = 0.0
    correct: float = 0.0


class ForwardPass:
    """Passes batches of a domain forward, whole or in pieces, with dropout and probes of (seed, domain, step).

    Args:
        config: the run's configuration.
        domain: name of the domain.
        model: with the weights of the step.
        objective: what is measured.
        part: the worker's places in the domain's batch.
        device: of the model.
        recorder: takes the times.
    """

    def __init__(
        self, config: Config, domain: str, model: Model, objective: Objective, part: slice, device: torch.device,
        recorder: Recorder,
    ) -> None:  # fmt: skip
        self.config, self.domain, self.part, self.device = config, domain, part, device
        self.model, self.objective, self.recorder = model, objective, recorder
        self.parameters = list(model.parameters())
        size = part.stop - part.start
        pieces = min(pieces_of(config), size)
        self.pieces = [part_of(size, piece, pieces) for piece in range(pieces)]
        self.scope = config.alignment.scope if objective.has_penalty else "head"
        self.needs_products = metric_kind(config) == "hvp"

    def graphs(self, step: OpenStep) -> Iterator[BatchGraph]:
        """The graph of every piece as far as the exchanges have come; several pieces are never there at once."""
        if step.graph is not None:
            yield step.graph
            return
        for piece in self.pieces:
            graph = self._graph(step.batch, step.loss, step.token.step, piece)
            for number, vectors in enumerate(step.broadcasts, start=1):
                graph.measurement.answered.update(self.objective.respond(graph.measurement, number, vectors))
            if len(self.pieces) == 1:
                step.graph = graph
            yield graph

    def _graph(self, batch: Batch, loss: Loss, step: int, piece: slice) -> BatchGraph:
        """The graph of a piece of a batch, with the objective's first answer."""
        images, labels = batch.images[piece], batch.labels[piece]
        with self.recorder.span("forward"), self._dropout(step, piece), self._layers():
            features = self.model.features(images)
            logits = self.model.head(features)
        with self.recorder.span("head statistics"):
            head = head_curvature(loss, self.model, features, logits, labels)
            scope = head if self.scope == "head" else NetworkCurvature(head.risk, self.parameters)
            probes = self._probes(step, scope.size)
            answered = self.objective.measure(scope, probes)
            detached = detached_head(loss, self.model, features, labels) if self.needs_products else None
            correct = loss.accuracy(logits.detach(), labels)
        return BatchGraph(
            share=len(labels) / len(batch.labels),
            correct=correct,
            head=head,
            measurement=Measurement(head=scope, probes=probes, answered=dict(answered)),
            detached=detached,
        )

    def _dropout(self, step: int, piece: slice) -> SeededDropout:
        """A context in which torch's generators start from the step's seed and are restored afterwards."""
        seed = derive_seed(self.config.seed, "dropout", self.domain, step)
        places = slice(self.part.start + piece.start, self.part.start + piece.stop)
        return SeededDropout(seed, self.device, places, self.config.batch_size)

    def _layers(self) -> AbstractContextManager[object]:
        """A context in which layers can be differentiated as often as the scope needs."""
        return WrittenOut() if self.scope == "all" else nullcontext()

    def _probes(self, step: int, size: int) -> dict[str, Tensor]:
        """The step's Rademacher probes by set; shared sets carry no domain in their seed."""
        probes = {}
        for name, shared in self.objective.probe_sets().items():
            seed = derive_seed(self.config.seed, f"probes-{name}", "" if shared else self.domain, step)
            drawn = rademacher(self.config.alignment.probes, size, seed, self.parameters[0].dtype)
            probes[name] = drawn.to(self.device)
        return probes
