"""The discriminator: its rows against autograd, its place in θ, and that nothing which is handed over needs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import difc_ray
from difc_ray.config import Config
from difc_ray.models import Model
from difc_ray.objectives import OBJECTIVES, Coefficients, Measurement, ObjectiveSettings, Vectors
from difc_ray.objectives.losses import LOSSES
from difc_ray.runs.evaluate import evaluate
from difc_ray.runs.setup import prepare
from difc_ray.runs.state import Progress, make_snapshot, train_state
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, Token, head_curvature, held_rows
from difc_ray.tracking.model_upload import rebuild_model
from difc_ray.vectors import ParameterLayout
from tests.runs import PENALTIES, digest, run_inline, small_config

K, BATCH, INPUTS, HIDDEN, CLASSES, ALPHA = 3, 6, 5, 4, 3, 0.7
WEIGHTS = np.array([0.5, 0.2, 0.3])


def adversarial(**changes: object) -> Config:
    return small_config(alignment=PENALTIES["dann_domain"], **changes)


def flat(tensors: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@pytest.mark.parametrize("parts", [(slice(0, BATCH),), (slice(0, 4), slice(4, BATCH))], ids=["whole", "divided"])
def test_rows_are_those_of_joint_autograd(parts: tuple[slice, ...]) -> None:
    torch.manual_seed(5)
    kind, loss = OBJECTIVES.get("dann_domain"), LOSSES.get("cross_entropy")()
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.Tanh())
    model = Model(trunk, nn.Linear(HIDDEN, CLASSES)).double()
    critic = kind.companion(HIDDEN, K)
    assert critic is not None
    model.companion = critic.double()
    parameters = list(model.parameters())
    images = [torch.randn(BATCH, 1, 1, INPUTS, dtype=torch.float64) * (1 + e) for e in range(K)]
    labels = [torch.randint(0, CLASSES, (BATCH,)) for _ in range(K)]
    answers: list[Vectors] = []
    surrogates = []
    for e in range(K):
        objective, total = kind(ObjectiveSettings(examples=BATCH, divided=len(parts) > 1)), np.zeros(1)
        objective.join(model.companion, e)
        pieces = []
        for part in parts:
            features, share = model.features(images[e][part]), (part.stop - part.start) / BATCH
            head = head_curvature(loss, model, features, model.head(features), labels[e][part])
            answered = objective.measure(head, {})
            total += share * answered["D"].detach().numpy()
            pieces.append((objective, share, Measurement(head=head, probes={}, answered=answered)))
        answers.append({"D": total})
        surrogates.append(pieces)
    coordinator = kind(ObjectiveSettings(examples=BATCH))
    pulled, terms = coordinator.cotangents(answers, WEIGHTS, Coefficients(alpha=ALPHA, beta=9.0))
    found = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for pieces, cotangent in zip(surrogates, pulled, strict=True):
        told = {name: torch.from_numpy(vector) for name, vector in cotangent.items()}
        row = sum(share * objective.surrogate(measurement, told) for objective, share, measurement in pieces)
        assert isinstance(row, Tensor)
        found += flat(torch.autograd.grad(row, parameters, allow_unused=True, materialize_grads=True))

    told_apart = sum(
        w * functional.cross_entropy(critic(trunk(images[e])), torch.full((BATCH,), e))
        for e, w in enumerate(WEIGHTS.tolist())
    )
    assert isinstance(told_apart, Tensor)
    of_trunk = flat(torch.autograd.grad(told_apart, list(trunk.parameters()), retain_graph=True))
    of_critic = flat(torch.autograd.grad(told_apart, list(critic.parameters())))
    nothing = torch.zeros(sum(p.numel() for p in model.head.parameters()), dtype=torch.float64)
    expected = torch.cat([-ALPHA * of_trunk, ALPHA * of_critic, nothing])
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    assert sum(terms.values()) == pytest.approx(ALPHA * float(told_apart.detach()), rel=1e-10)


def test_steps_are_those_of_a_plain_loop() -> None:
    """Weights that differ, gradient descent, and every sign as it has to be."""
    lr, steps, weights = 0.3, 4, torch.tensor([0.2, 0.5, 0.3])
    config = adversarial(
        harmonize={"rule": "mean", "between": "domains", "weights": weights.tolist()},
        optimizer={"name": "sgd", "lr": lr, "momentum": 0.0}, steps=steps,
    )  # fmt: skip
    model = model_of(config)[0].double()
    critic = model.companion
    assert critic is not None
    domains = [load_domain(config, name) for name in config.sources]
    start = flat(tuple(model.parameters())).detach().clone()
    for step in range(steps):
        batches = [domain.batch(config.seed, step, config.batch_size) for domain in domains]
        features = [model.featurizer(batch.images.double()) for batch in batches]
        risks = [functional.cross_entropy(model.head(z), b.labels) for z, b in zip(features, batches, strict=True)]
        told = [functional.cross_entropy(critic(z), torch.full((len(z),), e)) for e, z in enumerate(features)]
        classified, told_apart = (torch.stack(values) @ weights.double() for values in (risks, told))
        body = [*model.featurizer.parameters(), *model.head.parameters()]
        pairs = list(
            zip(body, torch.autograd.grad(classified - 0.5 * told_apart, body, retain_graph=True), strict=True)
        )
        own = list(critic.parameters())
        pairs += zip(own, torch.autograd.grad(0.5 * told_apart, own), strict=True)
        with torch.no_grad():
            for parameter, gradient in pairs:
                parameter -= lr * gradient
    expected = flat(tuple(model.parameters())).detach()
    found = run_inline(config, steps)[0].theta_P.double()
    assert float((found - expected).norm() / (expected - start).norm()) < 1e-5


def test_the_discriminator_lies_before_the_head_and_moves_no_weight_of_the_model() -> None:
    plain, _ = model_of(small_config())
    model, _ = model_of(adversarial())
    names = ParameterLayout.of(model).names
    assert names[-2:] == ("head.weight", "head.bias")
    assert [name for name in names if not name.startswith("companion.")] == list(ParameterLayout.of(plain).names)
    held = model.state_dict()
    assert all(torch.equal(value, held[name]) for name, value in plain.state_dict().items())
    again, other = model_of(adversarial())[0].state_dict(), model_of(adversarial(seed=1))[0].state_dict()
    assert all(torch.equal(held[name], again[name]) for name in held)
    assert not torch.equal(held["companion.0.weight"], other["companion.0.weight"])
    assert held["companion.4.weight"].shape == (3, 256)


def test_rows_are_zero_where_they_have_no_say() -> None:
    config = adversarial()
    local = LocalStep(config, load_domain(config, "fonts"), *model_of(config))
    token = Token(run="r", attempt=0, step=0, domain="fonts")
    local.statistics(prepare(config, None).state.model_state(), token)
    rows = ParameterLayout.of(local.model)
    risk, alignment = (rows.named(torch.from_numpy(row)) for row in held_rows(local.rows(token, {"D": np.ones(1)})))
    for name in rows.names:
        assert bool(risk[name].any()) == (not name.startswith("companion.")), name
        assert bool(alignment[name].any()) == (not name.startswith("head.")), name


@pytest.mark.parametrize("rest", ["squared_gradient", "hutchinson", "none"])
def test_rules_that_look_at_the_curvature(rest: str) -> None:
    config = adversarial(harmonize={"rule": "flat_dualproj", "curvature": {"rest": rest}})
    state, records = run_inline(config, 2)
    assert not any(record.skipped for record in records)
    assert bool(torch.isfinite(state.theta_P).all())


def test_a_run_goes_on_from_its_checkpoint() -> None:
    config = adversarial(harmonize={"rule": "ghpp"})
    middle, _ = run_inline(config, 2)
    layout = ParameterLayout.of(model_of(config)[0])
    snapshot = make_snapshot(config, middle, layout, Progress(), {})
    assert sum(name.startswith("companion.") for name in snapshot.named_weights) == 6
    assert digest(run_inline(config, 3, train_state(snapshot, layout))[0]) == digest(run_inline(config, 5)[0])


def test_what_is_exported_does_without(tmp_path: Path) -> None:
    config = adversarial(output=str(tmp_path), engine="inline", target="mnistm")
    result = difc_ray.train(config)
    folder = result.run_dir / "export"
    assert not any("companion" in name for name in load_file(folder / "weights.safetensors"))
    rebuilt = rebuild_model(folder, json.loads((folder / "model.json").read_text()))
    held = load_file(Path(result.summary["checkpoint"]) / "weights.safetensors")
    trained, _ = model_of(config)
    trained.load_state_dict({name: held[name] for name in trained.state_dict()})
    images = next(load_domain(config, "mnistm").evaluation_batches("test", 16)).images
    with torch.no_grad():
        assert torch.equal(rebuilt(images), trained.eval()(images))
    _, again = evaluate(result.run_dir)
    assert [m.accuracy for m in again.metrics] == [m.accuracy for m in result.metrics]
