"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output.

Shape suffixes: P parameters, R rows of one domain (1 or 2), S entries of the scope.

A :class:`LocalStep` keeps nothing between steps but its data and an empty model: the batch, the dropout and the probes
are functions of (seed, purpose, domain, step), and everything else arrives with the state. A replacement on another
process therefore answers with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from difc_ray.config import Config, batch_norm_policy, domain_weights, metric_kind, rows_per_domain
from difc_ray.data import Batch, Domain
from difc_ray.determinism import derive_seed
from difc_ray.models import Model, inference, train_mode
from difc_ray.objectives import Measurement, Vectors
from difc_ray.objectives.curvature import HeadCurvature, NetworkCurvature, WrittenOut, rademacher
from difc_ray.objectives.losses import Confusion, Loss, confusion_of
from difc_ray.step.factory import load_domain, loader_of, objective_of, parts_of, pieces_of
from difc_ray.step.worker.dropout import Drawn
from difc_ray.step.worker.head import detached_head, diagonal_row, head_curvature
from difc_ray.step.worker.merging import part_of
from difc_ray.step.worker.messages import ModelState, Products, Rows, Statistics, Token, domain_buffer
from difc_ray.step.worker.mixing import Mixing
from difc_ray.tracing import Recorder
from difc_ray.vectors import ParameterLayout, add_row, as_tensor, write_row, write_theta


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """The autograd graph of a piece of the batch.

    Args:
        share: the piece's share of this worker's examples.
        correct: share of the piece that is classified right.
        head: the closed forms of the head on it.
        measurement: what the objective knows of it.
    """

    share: float
    correct: float
    head: HeadCurvature
    measurement: Measurement

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
class _Step:
    """The step in hand.

    Args:
        token: its message.
        batch: this worker's examples.
        loss: the loss as it was told about.
        graphs: one graph for each piece; none where there are several pieces, which are passed forward when needed.
        told: the broadcasts of the exchanges so far.
        risk: mean loss of the batch.
        correct: share of the batch that is classified right.
    """

    token: Token
    batch: Batch
    loss: Loss
    graphs: list[_Graph]
    told: list[dict[str, Tensor]]
    risk: float = 0.0
    correct: float = 0.0


class LocalStep:
    """The worker's half of the algorithm for one domain.

    Args:
        config: the run's configuration.
        domain: the source domain.
        model: a model of the run's layout; its weights are overwritten at every step.
        loss: the classification loss.
        device: where to compute.
        part: which part of the domain's batch is this worker's, from 0 up to `cluster.replicas`.
        rows_at: where the rows are kept by this worker, whose answers then come without them; None: they are sent.

    Attributes:
        theta_P: the parameters of states that come without any; None: every state brings its own.
        recorder: takes the times of steps that are traced.
    """

    def __init__(
        self, config: Config, domain: Domain, model: Model, loss: Loss, device: torch.device | None = None,
        *, part: int = 0, rows_at: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.domain = domain
        self.device = device or torch.device("cpu")
        self.part = part_of(config.batch_size, part, parts_of(config))
        name = f"{domain.name} #{part + 1}" if parts_of(config) > 1 else domain.name
        self.recorder = Recorder(f"worker {name}", torch.cuda.synchronize if self.device.type == "cuda" else None)
        self.keeps_rows = rows_at is not None
        self.loader = loader_of(config, domain, self.device, self.part)
        self.model = model.to(self.device)
        self.model.precision = config.precision
        self.frozen = batch_norm_policy(config) == "freeze"
        self.loss = loss
        self.objective = objective_of(config)
        if model.companion is not None:
            self.objective.join(model.companion, config.sources.index(domain.name))
        self.mixing = Mixing(config, self.objective, self.loader) if self.objective.mixes else None
        self.layout = ParameterLayout.of(model)
        self.parameters = list(model.parameters())
        self.theta_P: Tensor | None = None
        self._step: _Step | None = None
        self.scope = config.alignment.scope if self.objective.has_penalty else "head"
        size = self.part.stop - self.part.start
        pieces = min(pieces_of(config), size)
        self.pieces = [part_of(size, piece, pieces) for piece in range(pieces)]
        self._target: Domain | None = None
        self._loading_s = 0.0
        self.metric = metric_kind(config)
        self._head: HeadCurvature | None = None
        self._curvature_P = torch.empty(self.layout.size if self.metric == "diagonal" else 0)
        self.weight = float(domain_weights(config)[config.sources.index(domain.name)])
        n_rows = rows_per_domain(config)
        self.rows_RP = torch.empty(n_rows, self.layout.size, dtype=self.parameters[0].dtype, device=rows_at)

    def close(self) -> None:
        """Ends the loader processes."""
        self.loader.close()
        if self.mixing is not None:
            self.mixing.loader.close()

    def load_state(self, state: ModelState, domain: str = "") -> None:
        """Overwrites the model's parameters and buffers, with a domain's own buffers where the state has them."""
        theta_P = self.theta_P if state.theta_P is None else as_tensor(state.theta_P)
        assert theta_P is not None, "a state without parameters is for those who hold them"
        write_theta(theta_P.to(self.device), self.parameters)
        for name, buffer in self.model.named_buffers():
            own = state.buffers.get(domain_buffer(domain, name))
            buffer.copy_(as_tensor(state.buffers[name] if own is None else own))

    def statistics(self, state: ModelState, token: Token) -> Statistics:
        """Forward pass of the step's batch and the first answer; keeps the graph for :meth:`rows`."""
        started = time.perf_counter()
        self.recorder.follow(token.step, token.attempt, on=token.traced)
        span = self.recorder.span
        self._step = None
        with span("load parameters"):
            self.load_state(state, self.domain.name)
            train_mode(self.model, frozen=self.frozen)
        waited = self.loader.stalled_s
        with span("wait for batch"):
            batch = self.loader.batch(token.step)
        self._loading_s = self.loader.stalled_s - waited
        loss = self.loss.told({name: torch.from_numpy(vector.copy()) for name, vector in state.loss.items()})
        if self.mixing is not None:
            with span("mix"):
                batch, loss = self.mixing.mixed(batch, loss, token.step)
            self._loading_s += self.mixing.waited_s
        self._step = step = _Step(token=token, batch=batch, loss=loss, graphs=[], told=[])
        if len(self.pieces) == 1:
            step.graphs = [self._forward(step, self.pieces[0])]
        answered: dict[str, Tensor] = {}
        for graph in self._graphs(step):
            step.risk += graph.share * float(graph.head.risk.detach())
            step.correct += graph.share * graph.correct
            _add(answered, graph.measurement.answered, graph.share)
        return self._answer(step, answered, started)

    def exchange(self, token: Token, number: int, broadcast: Vectors) -> Statistics:
        """A later exchange of the step in hand."""
        started = time.perf_counter()
        step = self._held(token)
        answered: dict[str, Tensor] = {}
        told = {name: self._constant(vector) for name, vector in broadcast.items()}
        for graph in self._graphs(step):
            with self.recorder.span("head statistics"):
                found = self.objective.respond(graph.measurement, number, told)
            graph.measurement.answered.update(found)
            _add(answered, found, graph.share)
        step.told.append(told)
        return self._answer(step, answered, started)

    def rows(self, token: Token, cotangent: Vectors) -> Rows:
        """The classification gradient g and, with a penalty, the alignment gradient a; frees the graph.

        They are two rows where a rule sees them apart, and otherwise the row ``g + a / w`` of the domain with weight w,
        in one backward pass where nothing needs g by itself. The rows lie in a buffer, :attr:`rows_RP`, that the next
        call overwrites.
        """
        started = time.perf_counter()
        step, span = self._held(token), self.recorder.span
        pulled = {name: self._constant(vector) for name, vector in cotangent.items()}
        noise = 0.0
        for number, graph in enumerate(self._graphs(step)):
            out_RP = self.rows_RP if number == 0 else torch.empty_like(self.rows_RP)
            if self.metric:
                noise = graph.head.gradient_noise()
            if self.objective.has_penalty and len(out_RP) == 1 and self.scope == "head" and self.metric != "diagonal":
                self._write_joint(graph, pulled, out_RP[0])
            else:
                self._write_apart(step.token, graph, pulled, out_RP)
            if len(self.pieces) > 1:
                out_RP.mul_(graph.share)
            if number:
                self.rows_RP.add_(out_RP)
        if l2 := self.config.optimizer.l2:
            add_row(self.parameters, 2.0 * l2, self.rows_RP[0])
        self._step = None
        with span("pack"):
            buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in self.model.named_buffers()}
        return Rows(
            token=token,
            rows_RP=None if self.keeps_rows else self.rows_RP.numpy(),
            buffers=buffers,
            compute_s=time.perf_counter() - started,
            curvature_P=self._curvature_P.numpy() if self.metric == "diagonal" else None,
            noise=noise,
            samples=self.part.stop - self.part.start,
            spans=self.recorder.take(),
        )

    def _write_joint(self, graph: _Graph, pulled: Mapping[str, Tensor], out_P: Tensor) -> None:
        """One row for both gradients by one backward pass."""
        with self.recorder.span("backward"):
            surrogate = self.objective.surrogate(graph.measurement, pulled)
            gradients = torch.autograd.grad(
                graph.head.risk + surrogate / self.weight, self.parameters, allow_unused=True, materialize_grads=True
            )
        with self.recorder.span("pack"):
            write_row(gradients, out_P)

    def _write_apart(self, token: Token, graph: _Graph, pulled: Mapping[str, Tensor], out_RP: Tensor) -> None:
        """Both gradients by a backward pass each, into two rows or added into one; and the curvature."""
        span, penalised = self.recorder.span, self.objective.has_penalty
        diagonal = self.metric == "diagonal"
        second = diagonal and self.config.harmonize.curvature.rest == "hutchinson"
        with span("backward of the classification"):
            gradients = graph.gradients(self.parameters, keep=penalised or second, differentiable=second)
        with span("pack"):
            write_row([gradient.detach() for gradient in gradients], out_RP[0])
        if diagonal:
            with span("curvature"):
                self._write_curvature(token, graph.head, gradients)
        if not penalised:
            return
        with span("backward of the alignment"):
            surrogate = self.objective.surrogate(graph.measurement, pulled)
            gradients = torch.autograd.grad(surrogate, self.parameters, allow_unused=True, materialize_grads=True)
        with span("pack"):
            if len(out_RP) == 2:
                write_row(gradients, out_RP[1])
            else:
                add_row(gradients, 1 / self.weight, out_RP[0])

    def products(self, token: Token, vectors_VS: np.ndarray) -> Products:
        """Products of the batch's head Hessian with vectors; the graph is not needed."""
        started = time.perf_counter()
        assert self._head is not None, f"no head is held for {token}"
        with self.recorder.span("products"):
            vectors_VS = self._head.hessian_product(self._constant(vectors_VS)).cpu().numpy()
        seconds = time.perf_counter() - started
        return Products(token=token, vectors_VS=vectors_VS, compute_s=seconds, spans=self.recorder.take())

    def confusion(self, state: ModelState, shard: int, shards: int) -> Confusion:
        """How sure the model is of a share of the target's train split; labels are not looked at.

        Args:
            state: parameters and buffers.
            shard: which share: every so many-th example from this one on.
            shards: number of shares.
        """
        if self._target is None:
            self._target = load_domain(self.config, str(self.config.target))
        self.load_state(state)
        nothing = np.zeros(len(self._target.class_names))
        found = Confusion(gaps_K=nothing, counts_K=nothing.copy())
        with inference(self.model):
            for batch in self.loader.examples(self._target, self._target.split_indices("train")[shard::shards]):
                found += confusion_of(self.loss.predictions(self.model(batch.images)))
        return found

    def _forward(self, step: _Step, place: slice) -> _Graph:
        """Passes a piece of the batch forward and measures it."""
        images, labels = step.batch.images[place], step.batch.labels[place]
        first = self.part.start
        whole = slice(first + place.start, first + place.stop)
        with self.recorder.span("forward"), self._dropout_drawn_for(step.token.step, whole), self._layers():
            features = self.model.features(images)
            logits = self.model.head(features)
        with self.recorder.span("head statistics"):
            head = head_curvature(step.loss, self.model, features, logits, labels)
            scope = head if self.scope == "head" else NetworkCurvature(head.risk, self.parameters)
            probes = self._probes(step.token.step, scope.size)
            answered = self.objective.measure(scope, probes)
            self._head = detached_head(step.loss, self.model, features, labels) if self.metric == "hvp" else None
            correct = step.loss.accuracy(logits.detach(), labels)
        share = len(labels) / len(step.batch.labels)
        measurement = Measurement(head=scope, probes=probes, answered=dict(answered))
        return _Graph(share=share, correct=correct, head=head, measurement=measurement)

    def _graphs(self, step: _Step) -> Iterator[_Graph]:
        """The graph of every piece as far as the exchanges have come; several pieces are never there at once."""
        if step.graphs:
            yield from step.graphs
            return
        for place in self.pieces:
            graph = self._forward(step, place)
            for number, told in enumerate(step.told, start=1):
                graph.measurement.answered.update(self.objective.respond(graph.measurement, number, told))
            yield graph

    def _layers(self) -> AbstractContextManager[object]:
        """A context in which layers can be differentiated as often as the scope needs."""
        return WrittenOut() if self.scope == "all" else nullcontext()

    def _write_curvature(self, token: Token, head: HeadCurvature, gradients: Sequence[Tensor]) -> None:
        """The batch's Hessian diagonal into the message's buffer."""
        kind = self.config.harmonize.curvature.rest
        drawn = None
        if kind == "hutchinson":
            seed = derive_seed(self.config.seed, "probes-flatness", self.domain.name, token.step)
            drawn = rademacher(1, self.layout.size, seed)[0].to(self.device)
        diagonal_row(kind, head, gradients, self.parameters, drawn, self._curvature_P)

    def _held(self, token: Token) -> _Step:
        """The step in hand; asking for another is a bug of the caller."""
        step = self._step
        assert step is not None, f"no graph is held for {token}"
        assert step.token == token, f"the graph held is of {step.token}, asked for {token}"
        return step

    def _answer(self, step: _Step, answered: Mapping[str, Tensor], started: float) -> Statistics:
        vectors = {name: vector.detach().cpu().numpy() for name, vector in answered.items()}
        return Statistics(
            token=step.token,
            loss=step.risk,
            accuracy=step.correct,
            vectors=vectors,
            compute_s=time.perf_counter() - started,
            loading_s=self._loading_s,
            samples=self.part.stop - self.part.start,
            spans=self.recorder.take(),
        )

    def _constant(self, vector: np.ndarray) -> Tensor:
        """A broadcast vector in the model's precision, on its device."""
        return torch.tensor(vector, dtype=self.parameters[0].dtype, device=self.device)

    def _dropout_drawn_for(self, step: int, place: slice) -> Drawn:
        """A context in which torch's generators start from the step's seed and are restored afterwards."""
        seed = derive_seed(self.config.seed, "dropout", self.domain.name, step)
        return Drawn(seed, self.device, place, self.config.batch_size)

    def _probes(self, step: int, size: int) -> dict[str, Tensor]:
        """The step's Rademacher probes by set; shared sets carry no domain in their seed."""
        found = {}
        for name, shared in self.objective.probe_sets().items():
            seed = derive_seed(self.config.seed, f"probes-{name}", "" if shared else self.domain.name, step)
            found[name] = rademacher(self.config.alignment.probes, size, seed, self.parameters[0].dtype).to(self.device)
        return found


def _add(total: dict[str, Tensor], found: Mapping[str, Tensor], share: float) -> None:
    """Adds a piece's answers to those of the batch; a whole batch keeps its own bits."""
    for name, vector in found.items():
        part = vector.detach() if share == 1.0 else share * vector.detach()
        total[name] = total[name] + part if name in total else part
