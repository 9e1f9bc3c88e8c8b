"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output.

Shape suffixes: P parameters, R rows of one domain (1, or 2 with a penalty), S entries of the scope.

A :class:`LocalStep` keeps nothing between steps but its data and an empty model: the batch, the dropout and the probes
are functions of (seed, purpose, domain, step), and everything else arrives with the state. A replacement on another
process therefore answers with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from difc_ray.config import Config, batch_norm_policy, metric_kind
from difc_ray.curvature import HeadCurvature, rademacher
from difc_ray.determinism import derive_seed
from difc_ray.domains import Domain
from difc_ray.local_step.dropout import Drawn
from difc_ray.local_step.head import detached_head, diagonal_row, head_curvature
from difc_ray.local_step.merging import part_of
from difc_ray.local_step.messages import ModelState, Products, Rows, Statistics, Token, domain_buffer
from difc_ray.local_step.parts import load_domain, loader_of, objective_of, parts_of
from difc_ray.losses import Confusion, Loss, confusion_of
from difc_ray.models import Model, train_mode
from difc_ray.objectives import Measurement, Vectors
from difc_ray.vectors import ParameterLayout, as_tensor, write_row, write_theta


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """The autograd graph of the step in hand."""

    token: Token
    loss: Tensor
    accuracy: float
    measurement: Measurement


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
    """

    def __init__(
        self, config: Config, domain: Domain, model: Model, loss: Loss, device: torch.device | None = None,
        *, part: int = 0, rows_at: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.domain = domain
        self.device = device or torch.device("cpu")
        self.part = part_of(config.batch_size, part, parts_of(config))
        self.keeps_rows = rows_at is not None
        self.loader = loader_of(config, domain, self.device, self.part)
        self.model = model.to(self.device)
        self.model.precision = config.precision
        self.frozen = batch_norm_policy(config) == "freeze"
        self.loss = loss
        self.objective = objective_of(config)
        self.layout = ParameterLayout.of(model)
        self.parameters = list(model.parameters())
        self.theta_P: Tensor | None = None
        self._graph: _Graph | None = None
        self._target: Domain | None = None
        self._loading_s = 0.0
        self.metric = metric_kind(config)
        self._head: HeadCurvature | None = None
        self._curvature_P = torch.empty(self.layout.size if self.metric == "diagonal" else 0)
        n_rows = 2 if self.objective.has_penalty else 1
        self.rows_RP = torch.empty(n_rows, self.layout.size, dtype=self.parameters[0].dtype, device=rows_at)

    def close(self) -> None:
        """Ends the loader processes."""
        self.loader.close()

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
        self._graph = None
        self.load_state(state, self.domain.name)
        train_mode(self.model, frozen=self.frozen)
        waited = self.loader.stalled_s
        batch = self.loader.batch(token.step)
        self._loading_s = self.loader.stalled_s - waited
        labels = batch.labels
        with self._dropout_drawn_for(token.step):
            features = self.model.features(batch.images)
        logits = self.model.head(features)
        told = self.loss.told({name: torch.from_numpy(vector.copy()) for name, vector in state.loss.items()})
        head = head_curvature(told, self.model, features, logits, labels)
        probes = self._probes(token.step, head.size)
        answered = self.objective.measure(head, probes)
        self._head = detached_head(told, self.model, features, labels) if self.metric == "hvp" else None
        accuracy = float((self.loss.predictions(logits.detach()).argmax(1) == labels).float().mean())
        self._graph = _Graph(
            token=token,
            loss=head.risk,
            accuracy=accuracy,
            measurement=Measurement(head=head, probes=probes, answered=dict(answered)),
        )
        return self._answer(answered, started)

    def exchange(self, token: Token, number: int, broadcast: Vectors) -> Statistics:
        """A later exchange of the step in hand."""
        started = time.perf_counter()
        graph = self._held(token)
        told = {name: self._constant(vector) for name, vector in broadcast.items()}
        answered = self.objective.respond(graph.measurement, number, told)
        graph.measurement.answered.update(answered)
        return self._answer(answered, started)

    def rows(self, token: Token, cotangent: Vectors) -> Rows:
        """The classification gradient and, with a penalty, the alignment gradient; frees the graph.

        The rows lie in a buffer, :attr:`rows_RP`, that the next call overwrites.
        """
        started = time.perf_counter()
        graph = self._held(token)
        penalised = self.objective.has_penalty
        second = self.metric == "diagonal" and self.config.harmonize.curvature.rest == "hutchinson"
        gradients = torch.autograd.grad(
            graph.loss, self.parameters, retain_graph=penalised or second, create_graph=second
        )
        write_row([gradient.detach() for gradient in gradients], self.rows_RP[0])
        if self.metric == "diagonal":
            self._write_curvature(graph, gradients)
        if penalised:
            pulled = {name: self._constant(vector) for name, vector in cotangent.items()}
            surrogate = self.objective.surrogate(graph.measurement, pulled)
            gradients = torch.autograd.grad(surrogate, self.parameters, allow_unused=True, materialize_grads=True)
            write_row(gradients, self.rows_RP[1])
        self._graph = None
        buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in self.model.named_buffers()}
        return Rows(
            token=token,
            rows_RP=None if self.keeps_rows else self.rows_RP.numpy(),
            buffers=buffers,
            compute_s=time.perf_counter() - started,
            curvature_P=self._curvature_P.numpy() if self.metric == "diagonal" else None,
            noise=graph.measurement.head.gradient_noise() if self.metric else 0.0,
            samples=self.part.stop - self.part.start,
        )

    def products(self, token: Token, vectors_VS: np.ndarray) -> Products:
        """Products of the batch's head Hessian with vectors; the graph is not needed."""
        started = time.perf_counter()
        assert self._head is not None, f"no head is held for {token}"
        found = self._head.hessian_product(self._constant(vectors_VS))
        return Products(token=token, vectors_VS=found.cpu().numpy(), compute_s=time.perf_counter() - started)

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

    def _write_curvature(self, graph: _Graph, gradients: Sequence[Tensor]) -> None:
        """The batch's Hessian diagonal into the message's buffer."""
        kind = self.config.harmonize.curvature.rest
        drawn = None
        if kind == "hutchinson":
            seed = derive_seed(self.config.seed, "probes-flatness", self.domain.name, graph.token.step)
            drawn = rademacher(1, self.layout.size, seed)[0].to(self.device)
        diagonal_row(kind, graph.measurement.head, gradients, self.parameters, drawn, self._curvature_P)

    def _held(self, token: Token) -> _Graph:
        """The graph of the step in hand; asking for another is a bug of the caller."""
        graph = self._graph
        assert graph is not None, f"no graph is held for {token}"
        assert graph.token == token, f"the graph held is of {graph.token}, asked for {token}"
        return graph

    def _answer(self, answered: Mapping[str, Tensor], started: float) -> Statistics:
        graph = self._graph
        assert graph is not None
        vectors = {name: vector.detach().cpu().numpy() for name, vector in answered.items()}
        return Statistics(
            token=graph.token,
            loss=float(graph.loss.detach()),
            accuracy=graph.accuracy,
            vectors=vectors,
            compute_s=time.perf_counter() - started,
            loading_s=self._loading_s,
            samples=self.part.stop - self.part.start,
        )

    def _constant(self, vector: np.ndarray) -> Tensor:
        """A broadcast vector in the model's precision, on its device."""
        return torch.tensor(vector, dtype=self.parameters[0].dtype, device=self.device)

    def _dropout_drawn_for(self, step: int) -> Drawn:
        """A context in which torch's generators start from the step's seed and are restored afterwards."""
        seed = derive_seed(self.config.seed, "dropout", self.domain.name, step)
        return Drawn(seed, self.device, self.part, self.config.batch_size)

    def _probes(self, step: int, size: int) -> dict[str, Tensor]:
        """The step's Rademacher probes by set; shared sets carry no domain in their seed."""
        found = {}
        for name, shared in self.objective.probe_sets().items():
            seed = derive_seed(self.config.seed, f"probes-{name}", "" if shared else self.domain.name, step)
            found[name] = rademacher(self.config.alignment.probes, size, seed, self.parameters[0].dtype).to(self.device)
        return found


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no graph inside; module by module the earlier mode afterwards (some may be frozen)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
