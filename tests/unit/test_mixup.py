"""Mixup between domains: who is mixed with whom, the closed forms of a mixed loss, and steps against a plain loop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from difc_ray.config import Config
from difc_ray.data import Batch, Domain, RawBatch
from difc_ray.determinism import generator
from difc_ray.engines.inline import InlineEngine
from difc_ray.models import build_model
from difc_ray.objectives import MixedLoss, Mixup, ObjectiveSettings
from difc_ray.objectives.losses import LOSSES, Loss
from difc_ray.objectives.losses.ldam import Ldam
from difc_ray.runs.setup import prepare
from difc_ray.step.factory import load_domain, loader_of, model_of
from difc_ray.step.worker import LocalStep, Token, head_curvature, held_rows
from difc_ray.step.worker.mixing import BatchMixer
from difc_ray.sweeps.unused_keys import reason_for
from tests.runs import digest, run_inline, same_records, small_config

DOUBLE = torch.float64


def mixed(**changes: Any) -> Config:
    return small_config(**{"objective": "mixup", "harmonize": {"rule": "mean"}, **changes})


def circle_of(config: Config, step: int) -> list[tuple[int, int, float]]:
    """DomainBed's pairs of minibatches, by the draws of the docstring: (i, j, λ_i), i in the order of the circle."""
    k, rng = len(config.sources), generator(config.seed, "mixup", step=step)
    order = rng.permutation(k).tolist()
    shares = rng.beta(config.alignment.mixup, config.alignment.mixup, size=k)
    return [(i, order[(place + 1) % k], float(shares[i])) for place, i in enumerate(order)]


def flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def test_pairs_are_a_circle_drawn_anew_every_step() -> None:
    objective, seen = Mixup(ObjectiveSettings(mixup=0.2)), set()
    for step in range(200):
        partners = objective.pairing(3, step, 4).partners_K.tolist()
        assert partners == objective.pairing(3, step, 4).partners_K.tolist()
        walk = [0]
        for _ in range(3):
            walk.append(partners[walk[-1]])
        assert sorted(walk) == [0, 1, 2, 3]  # one circle through all of them
        seen.add(tuple(partners))
    assert len(seen) == 6  # (4 − 1)! circles
    assert objective.pairing(3, 0, 2).partners_K.tolist() == [1, 0]


@pytest.mark.parametrize("a", [0.2, 3.0])
def test_shares_have_the_moments_of_their_beta(a: float) -> None:
    objective = Mixup(ObjectiveSettings(mixup=a))
    shares = np.concatenate([objective.pairing(0, step, 5).shares_K for step in range(2_000)])
    variance = 1 / (4 * (2 * a + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / len(shares))
    assert shares.var() == pytest.approx(variance, rel=0.05)
    assert ((shares >= 0) & (shares <= 1)).all()


def weighted() -> Loss:
    margins = {"margins": torch.linspace(0, 0.3, 3, dtype=DOUBLE), "weights": torch.tensor([0.5, 1.0, 2.0])}
    return Ldam().with_vectors(margins)


@pytest.mark.parametrize(
    ("loss", "classes"), [(LOSSES.get("cross_entropy")(), 3), (LOSSES.get("bce")(), 2), (weighted(), 3)]
)
def test_a_mixed_loss_has_the_derivatives_of_autograd(loss: Loss, classes: int) -> None:
    torch.manual_seed(2)
    options = {"hidden": [4]}
    model = build_model("mlp", (1, 2, 2), loss.n_outputs(classes), options, 0).double()
    images, share = torch.randn(7, 1, 2, 2, dtype=DOUBLE), 0.3
    one, other = torch.randint(0, classes, (7,)), torch.randint(0, classes, (7,))
    features = model.features(images).detach()
    found = head_curvature(MixedLoss(loss, share, other), model, features, model.head(features), one)

    def risk(flat_S: Tensor) -> Tensor:
        size = model.head.weight.numel()
        logits = features @ flat_S[:size].view_as(model.head.weight).T + flat_S[size:]
        return share * loss.value(logits, one) + (1 - share) * loss.value(logits, other)

    at = flat(model.head.parameters()).detach().requires_grad_()
    hessian = torch.autograd.functional.hessian(risk, at.detach())
    (gradient,) = torch.autograd.grad(risk(at), at)
    vector = torch.randn(len(at), dtype=DOUBLE)
    torch.testing.assert_close(found.gradient(), gradient, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.hessian_diagonal(), hessian.diagonal(), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(found.hessian_product(vector), hessian @ vector, rtol=1e-10, atol=1e-14)
    assert float(found.risk.detach()) == pytest.approx(float(risk(at).detach()), rel=1e-12)


def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Domain.finished

    def finished(domain: Domain, drawn: RawBatch, device: torch.device | None = None) -> Batch:
        batch = plain(domain, drawn, device)
        return replace(batch, images=batch.images.double())

    monkeypatch.setattr(Domain, "finished", finished)


def test_rows_are_those_of_domainbeds_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    in_double(monkeypatch)
    config = mixed()
    domains = [load_domain(config, name) for name in config.sources]
    locals_K = []
    for domain in domains:
        model, loss = model_of(config)
        locals_K.append(LocalStep(config, domain, model.double(), loss))
    oracle, state = model_of(config)[0].double(), prepare(config, None).state.model_state()
    for step in range(3):
        batches = [domain.batch(config.seed, step, config.batch_size) for domain in domains]
        for i, j, share in circle_of(config, step):
            token = Token(run="r", attempt=0, step=step, domain=config.sources[i])
            told = locals_K[i].statistics(state, token)
            logits = oracle(share * batches[i].images + (1 - share) * batches[j].images)
            objective = share * functional.cross_entropy(logits, batches[i].labels)
            objective = objective + (1 - share) * functional.cross_entropy(logits, batches[j].labels)
            expected = flat(torch.autograd.grad(objective, list(oracle.parameters())))
            found = torch.from_numpy(held_rows(locals_K[i].rows(token, {}))[0])
            assert float((found - expected).norm() / expected.norm()) < 1e-10
            assert told.loss == pytest.approx(float(objective.detach()), rel=1e-12)
            right = [(logits.argmax(1) == batch.labels).double().mean() for batch in (batches[i], batches[j])]
            assert told.accuracy == pytest.approx(float(share * right[0] + (1 - share) * right[1]), rel=1e-6)


def test_steps_are_those_of_a_plain_loop() -> None:
    lr, steps, weights = 0.3, 4, [0.2, 0.5, 0.3]
    config = mixed(
        harmonize={"rule": "mean", "weights": weights}, optimizer={"name": "sgd", "lr": lr, "momentum": 0.0},
        alignment={"mixup": 2.0}, steps=steps,
    )  # fmt: skip
    model = model_of(config)[0].double()
    domains = [load_domain(config, name) for name in config.sources]
    parameters = list(model.parameters())
    start = flat(parameters).detach().clone()
    for step in range(steps):
        batches = [domain.batch(config.seed, step, config.batch_size) for domain in domains]
        total = torch.zeros((), dtype=DOUBLE)
        for i, j, share in circle_of(config, step):
            logits = model(share * batches[i].images.double() + (1 - share) * batches[j].images.double())
            total = total + weights[i] * share * functional.cross_entropy(logits, batches[i].labels)
            total = total + weights[i] * (1 - share) * functional.cross_entropy(logits, batches[j].labels)
        gradients = torch.autograd.grad(total, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * gradient
    expected, found = flat(parameters).detach(), run_inline(config, steps)[0].theta_P.double()
    assert float((found - expected).norm() / (expected - start).norm()) < 1e-5


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize("part", [None, slice(3, 8)])
def test_the_partners_batch_is_as_its_own_worker_draws_it(processes: int, part: slice | None) -> None:
    config = mixed(augment="light", sampler="class_balanced", loader={"processes": processes}, steps=8)
    cpu = torch.device("cpu")
    own = loader_of(config, load_domain(config, "optdigits"), cpu, part)
    theirs = {name: loader_of(config, load_domain(config, name), cpu, part) for name in ("mnist", "fonts")}
    mixing = BatchMixer(config, Mixup(ObjectiveSettings()), own)
    partners = {}
    for step in (0, 1, 2, 3, 4, 5, 3, 4, 7):  # as where steps are repeated
        found = mixing.loader.batch(step)
        partners[step] = next(
            config.sources[j] for i, j, _ in circle_of(config, step) if config.sources[i] == own.domain.name
        )
        expected = theirs[partners[step]].batch(step)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
    assert set(partners.values()) == {"mnist", "fonts"}
    assert len(mixing.loader.pids()) == processes
    for loader in (mixing.loader, own, *theirs.values()):
        loader.close()


def test_loader_processes_and_interruptions_change_no_bit() -> None:
    config = mixed(augment="light", loader={"processes": 0})
    whole, records = run_inline(config, 5)
    ahead = mixed(augment="light", loader={"processes": 1})
    engine = InlineEngine(ahead, "ahead", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(ahead, None).state)
    assert same_records(records, engine.advance(5))
    assert digest(whole) == digest(engine.snapshot())
    engine.close()  # and with it all processes, as every test is checked for
    middle, _ = run_inline(config, 2)
    assert digest(run_inline(config, 3, middle)[0]) == digest(whole)
    plain, _ = run_inline(mixed(augment="light", loader={"processes": 0}, objective="erm"), 5)
    assert digest(plain) != digest(whole)


def test_nothing_else_of_the_alignment_is_read() -> None:
    assert reason_for("alignment.mixup", mixed()) == ""
    assert reason_for("alignment.alpha", mixed()) == "the objective `mixup`"
    assert reason_for("alignment.mixup", small_config()) == "the objective `hutchinson`"
    assert reason_for("alignment.mixup", small_config(objective="erm", harmonize={"rule": "mean"})) != ""
