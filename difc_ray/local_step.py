"""One domain, one step: state and batch -> statistics, cotangents -> rows. No Ray, no input or output.

Shape suffixes: P parameters, R rows of one domain (1, or 2 with a penalty), S entries of the scope.

A :class:`LocalStep` keeps nothing between steps but its data and an empty model: the batch, the dropout and the probes
are functions of (seed, purpose, domain, step), and everything else arrives with the state. A replacement on another
process therefore answers with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from difc_ray.config import Config, batch_norm_policy, metric_kind
from difc_ray.curvature import HeadCurvature, rademacher
from difc_ray.determinism import derive_seed
from difc_ray.domains import DatasetFamily, Domain, open_domain, open_family
from difc_ray.losses import LOSSES, Loss
from difc_ray.models import Model, build_model, train_mode
from difc_ray.objectives import OBJECTIVES, Measurement, Objective, ObjectiveOptions, Vectors
from difc_ray.vectors import ParameterLayout, as_tensor, write_row, write_theta


@dataclass(frozen=True, kw_only=True)
class Token:
    """Names the one message that an answer belongs to; answers under another token are not used."""

    run: str
    attempt: int
    step: int
    domain: str


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """What the coordinator broadcasts: flat float32 parameters and named buffers (see :func:`domain_buffer`)."""

    theta_P: np.ndarray
    buffers: dict[str, np.ndarray]


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
    """

    token: Token
    loss: float
    accuracy: float
    vectors: Vectors
    compute_s: float

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
        rows_RP: contiguous (R, P): the classification gradient, then the alignment gradient if there is a penalty.
        buffers: the model's buffers after the forward pass, by name.
        compute_s: seconds of this process spent on the answer.
        curvature_P: (P,) Hessian diagonal of the batch, where the rule asks for one.
        noise: variance of the head's batch gradient, where the rule asks for the curvature.
    """

    token: Token
    rows_RP: np.ndarray
    buffers: dict[str, np.ndarray]
    compute_s: float
    curvature_P: np.ndarray | None = None
    noise: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Products:
    """A worker's answer to a request for products with its head's Hessian: (V, S) in the order asked."""

    token: Token
    vectors_VS: np.ndarray
    compute_s: float


@dataclass(frozen=True, kw_only=True)
class _Graph:
    """The autograd graph of the step in hand."""

    token: Token
    loss: Tensor
    accuracy: float
    measurement: Measurement


def objective_of(config: Config) -> Objective:
    """The objective of a resolved configuration, with its options."""
    alignment = config.alignment
    assert isinstance(alignment.detach_mean, bool), "resolve the configuration first"
    options = ObjectiveOptions(
        estimator=alignment.estimator,
        probes=alignment.probes,
        probe_sets=alignment.probe_sets,
        detach_mean=alignment.detach_mean,
    )
    return OBJECTIVES.get(config.objective)(options)


def family_of(config: Config) -> DatasetFamily:
    """The configured dataset."""
    return open_family(
        config.dataset, config.dataset_options, config.root, config.seed, config.image_size, config.on_bad_image
    )


def load_domain(config: Config, domain: str) -> Domain:
    """One domain of the configured dataset."""
    return open_domain(config.dataset, family_of(config), domain)


def model_of(config: Config, *, load_weights: bool = False) -> tuple[Model, Loss]:
    """The configured model at its initial weights (a function of the seed), and the loss.

    Files of weights are loaded if asked for; where the weights are overwritten anyway, they need not even be there.
    """
    family = family_of(config)
    loss = LOSSES.get(config.loss)()
    n_outputs = loss.n_outputs(len(family.class_names))
    options, seed = config.model_options, config.seed
    return build_model(config.model, family.image_shape, n_outputs, options, seed, load_weights=load_weights), loss


class LocalStep:
    """The worker's half of the algorithm for one domain.

    Args:
        config: the run's configuration.
        domain: the source domain.
        model: a model of the run's layout; its weights are overwritten at every step.
        loss: the classification loss.
        device: where to compute.
    """

    def __init__(
        self, config: Config, domain: Domain, model: Model, loss: Loss, device: torch.device | None = None
    ) -> None:
        self.config = config
        self.domain = domain
        self.device = device or torch.device("cpu")
        self.model = model.to(self.device)
        self.model.precision = config.precision
        self.frozen = batch_norm_policy(config) == "freeze"
        self.loss = loss
        self.objective = objective_of(config)
        self.layout = ParameterLayout.of(model)
        self.parameters = list(model.parameters())
        self._graph: _Graph | None = None
        self.metric = metric_kind(config)
        self._head: HeadCurvature | None = None
        self._curvature_P = torch.empty(self.layout.size if self.metric == "diagonal" else 0)
        n_rows = 2 if self.objective.has_penalty else 1
        self._rows_RP = torch.empty(n_rows, self.layout.size, dtype=self.parameters[0].dtype)

    def load_state(self, state: ModelState, domain: str = "") -> None:
        """Overwrites the model's parameters and buffers, with a domain's own buffers where the state has them."""
        write_theta(as_tensor(state.theta_P).to(self.device), self.parameters)
        for name, buffer in self.model.named_buffers():
            own = state.buffers.get(domain_buffer(domain, name))
            buffer.copy_(as_tensor(state.buffers[name] if own is None else own))

    def statistics(self, state: ModelState, token: Token) -> Statistics:
        """Forward pass of the step's batch and the first answer; keeps the graph for :meth:`rows`."""
        started = time.perf_counter()
        self._graph = None
        self.load_state(state, self.domain.name)
        train_mode(self.model, frozen=self.frozen)
        batch = self.domain.batch(self.config.seed, token.step, self.config.batch_size)
        images, labels = batch.images.to(self.device), batch.labels.to(self.device)
        with self._dropout_drawn_for(token.step):
            features = self.model.features(images)
        logits = self.model.head(features)
        loss = self.loss.value(logits, labels)
        head = head_curvature(self.loss, self.model, features, logits, labels)
        probes = self._probes(token.step, head.size)
        answered = self.objective.measure(head, probes)
        self._head = detached_head(self.loss, self.model, features, labels) if self.metric == "hvp" else None
        accuracy = float((self.loss.predictions(logits.detach()).argmax(1) == labels).float().mean())
        self._graph = _Graph(
            token=token,
            loss=loss,
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

        The rows lie in a buffer that the next call overwrites.
        """
        started = time.perf_counter()
        graph = self._held(token)
        penalised = self.objective.has_penalty
        second = self.metric == "diagonal" and self.config.harmonize.curvature.rest == "hutchinson"
        gradients = torch.autograd.grad(
            graph.loss, self.parameters, retain_graph=penalised or second, create_graph=second
        )
        write_row([gradient.detach() for gradient in gradients], self._rows_RP[0])
        if self.metric == "diagonal":
            self._write_curvature(graph, gradients)
        if penalised:
            pulled = {name: self._constant(vector) for name, vector in cotangent.items()}
            surrogate = self.objective.surrogate(graph.measurement, pulled)
            gradients = torch.autograd.grad(surrogate, self.parameters, allow_unused=True, materialize_grads=True)
            write_row(gradients, self._rows_RP[1])
        self._graph = None
        buffers = {name: buffer.detach().cpu().numpy().copy() for name, buffer in self.model.named_buffers()}
        return Rows(
            token=token,
            rows_RP=self._rows_RP.numpy(),
            buffers=buffers,
            compute_s=time.perf_counter() - started,
            curvature_P=self._curvature_P.numpy() if self.metric == "diagonal" else None,
            noise=graph.measurement.head.gradient_noise() if self.metric else 0.0,
        )

    def products(self, token: Token, vectors_VS: np.ndarray) -> Products:
        """Products of the batch's head Hessian with vectors; the graph is not needed."""
        started = time.perf_counter()
        assert self._head is not None, f"no head is held for {token}"
        found = self._head.hessian_product(self._constant(vectors_VS))
        return Products(token=token, vectors_VS=found.cpu().numpy(), compute_s=time.perf_counter() - started)

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
        )

    def _constant(self, vector: np.ndarray) -> Tensor:
        """A broadcast vector in the model's precision, on its device."""
        return torch.tensor(vector, dtype=self.parameters[0].dtype, device=self.device)

    def _dropout_drawn_for(self, step: int) -> _Seeded:
        """A context in which torch's generators start from the step's seed and are restored afterwards."""
        return _Seeded(derive_seed(self.config.seed, "dropout", self.domain.name, step), self.device)

    def _probes(self, step: int, size: int) -> dict[str, Tensor]:
        """The step's Rademacher probes by set; shared sets carry no domain in their seed."""
        found = {}
        for name, shared in self.objective.probe_sets().items():
            seed = derive_seed(self.config.seed, f"probes-{name}", "" if shared else self.domain.name, step)
            found[name] = rademacher(self.config.alignment.probes, size, seed, self.parameters[0].dtype).to(self.device)
        return found


def head_curvature(loss: Loss, model: Model, features: Tensor, logits: Tensor, labels: Tensor) -> HeadCurvature:
    """The closed forms of a model's linear head on a batch, in the precision of the parameters."""
    has_bias = model.head.bias is not None
    ones = torch.ones_like(features[:, :1])
    return HeadCurvature(
        features_ND=torch.cat([features, ones], dim=1) if has_bias else features,
        residual_NC=loss.residual(logits, labels),
        diagonal_NC=loss.hessian_diagonal(logits),
        product=lambda outputs: loss.hessian_product(logits, outputs),
        has_bias=has_bias,
    )


def detached_head(loss: Loss, model: Model, features: Tensor, labels: Tensor) -> HeadCurvature:
    """The head's closed forms without a graph, to answer products after the rows."""
    with torch.no_grad():
        held = features.detach()
        return head_curvature(loss, model, held, model.head(held), labels)


def diagonal_row(
    kind: str,
    head: HeadCurvature,
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    probe_P: Tensor | None,
    out_P: Tensor,
) -> None:
    """Writes one domain's Hessian diagonal, made positive semidefinite, into ``out_P``.

    Args:
        kind: what stands outside the head: `squared_gradient` (B times the squared batch gradient, which for small mean
            gradients is the diagonal of the empirical Fisher matrix), `hutchinson` (one probe, negative entries set to
            0) or `none` (0).
        head: the head of the batch, whose closed form fills the last S entries.
        gradients: the classification gradient by parameter; differentiable for `hutchinson`.
        parameters: the parameters.
        probe_P: Rademacher probe for `hutchinson`.
        out_P: (P,) the row.
    """
    if kind == "squared_gradient":
        write_row([gradient.detach() for gradient in gradients], out_P)
        out_P.square_().mul_(len(head.residual_NC))
    elif kind == "hutchinson":
        assert probe_P is not None
        probes, start = [], 0
        for parameter in parameters:
            probes.append(probe_P[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()
        products = torch.autograd.grad(gradients, parameters, probes, retain_graph=True, materialize_grads=True)
        write_row([p * v for p, v in zip(products, probes, strict=True)], out_P)
        out_P.clamp_(min=0)
    else:
        out_P.zero_()
    out_P[-head.size :] = head.hessian_diagonal().detach()


class _Seeded:
    """Context: torch's generators of a device seeded, and put back on the way out."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed = seed
        self.fork = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])

    def __enter__(self) -> None:
        self.fork.__enter__()
        torch.manual_seed(self.seed)

    def __exit__(self, *exc: object) -> None:
        self.fork.__exit__(None, None, None)
