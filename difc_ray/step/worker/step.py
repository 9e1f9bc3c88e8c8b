"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output.

Shape suffixes: P parameters, R rows of one domain (1 or 2), S entries of the scope.

A :class:`LocalStep` keeps nothing between steps but its data and an empty model: the batch, the dropout and the probes
are functions of (seed, purpose, domain, step), and everything else arrives with the state. A replacement on another
process therefore answers with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from difc_ray.config import Config, batch_norm_policy, domain_weights, metric_kind, rows_per_domain
from difc_ray.data import Domain
from difc_ray.models import Model, inference, train_mode
from difc_ray.objectives import Vectors
from difc_ray.objectives.curvature import HeadCurvature
from difc_ray.objectives.losses import Confusion, Loss, confusion_of
from difc_ray.step.division import part_of, parts_of
from difc_ray.step.factory import load_domain, loader_of, objective_of
from difc_ray.step.worker.backward import BackwardPass
from difc_ray.step.worker.forward import ForwardPass, OpenStep
from difc_ray.step.worker.messages import ModelState, Products, Rows, Statistics, Token, domain_buffer
from difc_ray.step.worker.mixing import BatchMixer
from difc_ray.tracing import Recorder
from difc_ray.vectors import ParameterLayout, add_row, as_tensor, write_theta


class LocalStep:
    """The worker's half of the algorithm for one domain: :meth:`statistics`, any :meth:`exchange`, :meth:`rows`.

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
        rows_RP: the rows of the latest step; the next call overwrites them.
    """

    def __init__(
        self, config: Config, domain: Domain, model: Model, loss: Loss, device: torch.device | None = None,
        *, part: int = 0, rows_at: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.config, self.domain, self.loss = config, domain, loss
        self.device = device or torch.device("cpu")
        self.part = part_of(config.batch_size, part, parts_of(config))
        self.samples = self.part.stop - self.part.start

        self.model = model.to(self.device)
        self.model.precision = config.precision
        self.frozen = batch_norm_policy(config) == "freeze"
        self.layout = ParameterLayout.of(model)
        self.parameters = list(model.parameters())
        self.theta_P: Tensor | None = None

        number = config.sources.index(domain.name)
        self.objective = objective_of(config)
        if model.companion is not None:
            self.objective.join(model.companion, number)
        self.metric = metric_kind(config)
        weight = float(domain_weights(config)[number])

        name = f"{domain.name} #{part + 1}" if parts_of(config) > 1 else domain.name
        self.recorder = Recorder(f"worker {name}", torch.cuda.synchronize if self.device.type == "cuda" else None)
        self.loader = loader_of(config, domain, self.device, self.part)
        self.mixer = BatchMixer(config, self.objective, self.loader) if self.objective.mixes else None
        self.forward = ForwardPass(
            config, domain.name, self.model, self.objective, self.part, self.device, self.recorder
        )  # fmt: skip
        self.backward = BackwardPass(
            config, domain.name, self.parameters, self.objective, weight, self.device, self.recorder
        )  # fmt: skip
        self.sends_rows = rows_at is None
        self.rows_RP = torch.empty(
            rows_per_domain(config), self.layout.size, dtype=self.parameters[0].dtype, device=rows_at
        )
        self._open: OpenStep | None = None
        self._head: HeadCurvature | None = None
        self._target: Domain | None = None

    def close(self) -> None:
        """Ends the loader processes."""
        self.loader.close()
        if self.mixer is not None:
            self.mixer.loader.close()

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
        self._open = None
        with self.recorder.span("load parameters"):
            self.load_state(state, self.domain.name)
            train_mode(self.model, frozen=self.frozen)
        self._open = step = self._begun(state, token)
        answered: dict[str, Tensor] = {}
        for graph in self.forward.graphs(step):
            step.risk += graph.share * float(graph.head.risk.detach())
            step.correct += graph.share * graph.correct
            _add(answered, graph.measurement.answered, graph.share)
            self._head = graph.detached
        return self._answer(step, answered, started)

    def exchange(self, token: Token, number: int, broadcast: Vectors) -> Statistics:
        """A later exchange of the step in hand."""
        started = time.perf_counter()
        step = self._step_of(token)
        answered: dict[str, Tensor] = {}
        vectors = {name: self._constant(vector) for name, vector in broadcast.items()}
        for graph in self.forward.graphs(step):
            with self.recorder.span("head statistics"):
                response = self.objective.respond(graph.measurement, number, vectors)
            graph.measurement.answered.update(response)
            _add(answered, response, graph.share)
        step.broadcasts.append(vectors)
        return self._answer(step, answered, started)

    def rows(self, token: Token, cotangent: Vectors) -> Rows:
        """The classification gradient g and, with a penalty, the alignment gradient a; frees the graph.

        They are two rows where a rule sees them apart, and otherwise the row ``g + a / w`` of the domain with weight w.
        """
        started = time.perf_counter()
        step = self._step_of(token)
        cotangents = {name: self._constant(vector) for name, vector in cotangent.items()}
        noise = 0.0
        for number, graph in enumerate(self.forward.graphs(step)):
            out_RP = self.rows_RP if number == 0 else torch.empty_like(self.rows_RP)
            if self.metric:
                noise = graph.head.gradient_noise()
            self.backward.write_rows(graph, token.step, cotangents, out_RP)
            if graph.share != 1.0:
                out_RP.mul_(graph.share)
            if number:
                self.rows_RP.add_(out_RP)
        if l2 := self.config.optimizer.l2:
            add_row(self.parameters, 2.0 * l2, self.rows_RP[0])
        self._open = None
        with self.recorder.span("pack"):
            buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in self.model.named_buffers()}
        return Rows(
            token=token,
            rows_RP=self.rows_RP.numpy() if self.sends_rows else None,
            buffers=buffers,
            compute_s=time.perf_counter() - started,
            curvature_P=self.backward.curvature_P.numpy() if self.metric == "diagonal" else None,
            noise=noise,
            samples=self.samples,
            spans=self.recorder.take(),
        )

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
        confusion = Confusion(gaps_K=nothing, counts_K=nothing.copy())
        with inference(self.model):
            for batch in self.loader.examples(self._target, self._target.split_indices("train")[shard::shards]):
                confusion += confusion_of(self.loss.predictions(self.model(batch.images)))
        return confusion

    def _begun(self, state: ModelState, token: Token) -> OpenStep:
        """The step with its batch, blended with another domain's where the objective mixes, and its loss."""
        waited_s = self.loader.stalled_s
        with self.recorder.span("wait for batch"):
            batch = self.loader.batch(token.step)
        loading_s = self.loader.stalled_s - waited_s
        loss = self.loss.with_vectors({name: torch.from_numpy(vector.copy()) for name, vector in state.loss.items()})
        if self.mixer is not None:
            with self.recorder.span("mix"):
                batch, loss = self.mixer.mixed(batch, loss, token.step)
            loading_s += self.mixer.waited_s
        return OpenStep(token=token, batch=batch, loss=loss, loading_s=loading_s)

    def _step_of(self, token: Token) -> OpenStep:
        """The step in hand; asking for another is a bug of the caller."""
        step = self._open
        assert step is not None, f"no graph is held for {token}"
        assert step.token == token, f"the graph held is of {step.token}, asked for {token}"
        return step

    def _answer(self, step: OpenStep, answered: Mapping[str, Tensor], started: float) -> Statistics:
        vectors = {name: vector.detach().cpu().numpy() for name, vector in answered.items()}
        return Statistics(
            token=step.token,
            loss=step.risk,
            accuracy=step.correct,
            vectors=vectors,
            compute_s=time.perf_counter() - started,
            loading_s=step.loading_s,
            samples=self.samples,
            spans=self.recorder.take(),
        )

    def _constant(self, vector: np.ndarray) -> Tensor:
        """A broadcast vector in the model's precision, on its device."""
        return torch.tensor(vector, dtype=self.parameters[0].dtype, device=self.device)


def _add(total: dict[str, Tensor], vectors: Mapping[str, Tensor], share: float) -> None:
    """Adds a piece's answers to those of the batch; a whole batch keeps its own bits."""
    for name, vector in vectors.items():
        part = vector.detach() if share == 1.0 else share * vector.detach()
        total[name] = total[name] + part if name in total else part
