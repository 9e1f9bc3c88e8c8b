"""The sum of the workers' alignment rows is the gradient of the joint penalty, computed a second way by autograd."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from difc_ray.errors import ConfigError
from difc_ray.models import Model
from difc_ray.objectives import OBJECTIVES, Coefficients, Measurement, ObjectiveSettings, Vectors, penalties
from difc_ray.objectives.curvature import rademacher
from difc_ray.objectives.losses import LOSSES
from difc_ray.step.worker import head_curvature

K, BATCH, INPUTS, HIDDEN = 3, 6, 5, 4
WEIGHTS = np.array([0.5, 0.2, 0.3])
COEFFICIENTS = Coefficients(alpha=0.7, beta=0.4)


class Tiny(Model):
    """A smooth two-layer model, so that third derivatives exist everywhere."""

    def __init__(self, outputs: int) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, HIDDEN), nn.Tanh()), nn.Linear(HIDDEN, outputs))


class Case:
    """Three domains with a model in float64, and everything autograd needs to check them."""

    def __init__(self, loss_name: str = "cross_entropy", classes: int = 3) -> None:
        torch.manual_seed(11)
        self.loss = LOSSES.get(loss_name)()
        self.model = Tiny(self.loss.n_outputs(classes)).double()
        self.parameters = list(self.model.parameters())
        self.head = [self.model.head.weight, self.model.head.bias]
        self.images = [torch.randn(BATCH, 1, 1, INPUTS, dtype=torch.float64) * (1 + 0.5 * e) for e in range(K)]
        self.labels = [torch.randint(0, classes, (BATCH,)) for _ in range(K)]

    def value(self, e: int) -> Tensor:
        return self.loss.value(self.model(self.images[e]), self.labels[e])

    def gradient(self, e: int) -> Tensor:
        return flat(torch.autograd.grad(self.value(e), self.head, create_graph=True))

    def product(self, e: int, vector: Tensor) -> Tensor:
        """H_e v by double backward, differentiable in the parameters and in v."""
        gradient = self.gradient(e)
        dummy = torch.zeros_like(gradient, requires_grad=True)
        pulled = flat(torch.autograd.grad(gradient, self.head, dummy, create_graph=True))
        return torch.autograd.grad(pulled, dummy, vector, create_graph=True)[0]

    def diagonal(self, e: int) -> Tensor:
        gradient = self.gradient(e)
        eye = torch.eye(len(gradient), dtype=torch.float64)
        return torch.stack([flat(torch.autograd.grad(gradient @ eye[i], self.head, create_graph=True))[i]
                            for i in range(len(gradient))])  # fmt: skip

    def estimate(self, e: int, probes: Tensor) -> Tensor:
        return torch.stack([v * self.product(e, v) for v in probes]).mean(0)

    def mean(self, values: list[Tensor]) -> Tensor:
        return sum(w * v for w, v in zip(WEIGHTS.tolist(), values, strict=True))

    def spread(self, values: list[Tensor], mean: Tensor) -> Tensor:
        return sum(w * (v - mean).square().sum() for w, v in zip(WEIGHTS.tolist(), values, strict=True))

    def penalty_gradient(self, penalty: Tensor, *, keep: bool = False) -> Tensor:
        given = {"retain_graph": keep, "allow_unused": True, "materialize_grads": True}
        return flat(torch.autograd.grad(penalty, self.parameters, **given))

    def scale_gradient(self, e: int) -> Tensor:
        """d/ds of the loss of s times the logits, at 1."""
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        loss = self.loss.value(scale * self.model(self.images[e]), self.labels[e])
        return torch.autograd.grad(loss, scale, create_graph=True)[0]

    def variance(self, e: int) -> Tensor:
        """Of the gradients of single examples with respect to the head."""
        gradients = [
            flat(torch.autograd.grad(self.loss.value(self.model(self.images[e][n : n + 1]), self.labels[e][n : n + 1]),
                                     self.head, create_graph=True))
            for n in range(BATCH)
        ]  # fmt: skip
        return torch.stack(gradients).var(0, correction=0)

    def size(self) -> int:
        return sum(p.numel() for p in self.head)


def flat(tensors: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


WHOLE = (slice(0, BATCH),)
PARTS = (slice(0, 4), slice(4, BATCH))


def rows_by_protocol(
    case: Case, name: str, options: ObjectiveSettings, probes: list[dict[str, Tensor]], parts: Sequence[slice] = WHOLE
) -> tuple[Tensor, float]:
    """The conversation of workers and coordinator, in this process; returns the sum of the rows and the penalty.

    Args:
        case: domains and model.
        name: of the objective.
        options: its options.
        probes: by domain.
        parts: what each of a domain's workers takes of its batch; their answers and rows are averaged by examples.
    """
    objective = OBJECTIVES.get(name)(options)
    shares = [(part.stop - part.start) / BATCH for part in parts]
    workers: list[list[Measurement]] = []
    for e in range(K):
        features = case.model.featurizer(case.images[e])
        heads = [
            head_curvature(case.loss, case.model, features[part], case.model.head(features[part]), case.labels[e][part])
            for part in parts
        ]
        workers.append([Measurement(head=h, probes=probes[e], answered=dict(objective.measure(h, probes[e])))
                        for h in heads])  # fmt: skip

    def merged(answers: Sequence[Mapping[str, Tensor]]) -> Vectors:
        pairs = list(zip(shares, answers, strict=True))
        return {n: np.sum([s * a[n].detach().numpy() for s, a in pairs], axis=0) for n in answers[0]}

    known_K = [merged([worker.answered for worker in own]) for own in workers]
    for number in range(1, objective.exchanges):
        told_K = objective.broadcasts(number, known_K, WEIGHTS)
        for own, known, vectors in zip(workers, known_K, told_K, strict=True):
            told = {n: torch.from_numpy(v) for n, v in vectors.items()}
            found = [objective.respond(worker, number, told) for worker in own]
            known.update(merged(found))
            for worker, answer in zip(own, found, strict=True):
                worker.answered.update(answer)
    cotangents, terms = objective.cotangents(known_K, WEIGHTS, COEFFICIENTS)
    total = torch.zeros(sum(p.numel() for p in case.parameters), dtype=torch.float64)
    for own, cotangent in zip(workers, cotangents, strict=True):
        pulled = {n: torch.from_numpy(v) for n, v in cotangent.items()}
        surrogate = sum(s * objective.surrogate(worker, pulled) for s, worker in zip(shares, own, strict=True))
        total += case.penalty_gradient(surrogate, keep=True)
    return total, sum(terms.values())


NO_PROBES: list[dict[str, Tensor]] = [{} for _ in range(K)]


def gradient_spread(case: Case) -> Tensor:
    gradients = [case.gradient(e) for e in range(K)]
    return COEFFICIENTS.beta * case.spread(gradients, case.mean(gradients))


def joint_hutchinson(case: Case, probes: list[dict[str, Tensor]], *, released: bool, detach: bool) -> Tensor:
    own = [case.estimate(e, probes[e]["own"]) for e in range(K)] if probes[0] else [case.diagonal(e) for e in range(K)]
    mean = case.mean([case.estimate(e, probes[e]["mean"]) for e in range(K)] if released else own)
    return COEFFICIENTS.alpha * case.spread(own, mean.detach() if detach else mean) + gradient_spread(case)


def joint_hgp(case: Case, *, detach: bool) -> Tensor:
    gradients = [case.gradient(e) for e in range(K)]
    mean_gradient = case.mean(gradients)
    products = [case.product(e, gradients[e]) for e in range(K)]
    mean = case.mean([case.product(e, mean_gradient) for e in range(K)])
    return COEFFICIENTS.alpha * case.spread(products, mean.detach() if detach else mean) + gradient_spread(case)


def joint_irm(case: Case) -> Tensor:
    squares = [case.scale_gradient(e).square() for e in range(K)]
    return COEFFICIENTS.alpha * case.mean(squares)


def joint_vrex(case: Case) -> Tensor:
    risks = [case.value(e) for e in range(K)]
    return COEFFICIENTS.alpha * case.spread(risks, case.mean(risks))


def joint_fishr(case: Case) -> Tensor:
    variances = [case.variance(e) for e in range(K)]
    return COEFFICIENTS.alpha * case.spread(variances, case.mean(variances))


def pair_mean(case: Case, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Mean over pairs of domains, weighted by the product of their weights, of a function of their features."""
    features = [case.model.featurizer(images) for images in case.images]
    pairs = [(a, b) for a in range(K) for b in range(a)]
    total = sum(float(WEIGHTS[a] * WEIGHTS[b]) for a, b in pairs)
    found = [float(WEIGHTS[a] * WEIGHTS[b]) / total * of(features[a], features[b]) for a, b in pairs]
    return COEFFICIENTS.alpha * torch.stack(found).sum()


def joint_coral(case: Case) -> Tensor:
    def gap(x: Tensor, y: Tensor) -> Tensor:
        means = (x.mean(0) - y.mean(0)).square().mean()
        return means + (torch.cov(x.T) - torch.cov(y.T)).square().mean()

    return pair_mean(case, gap)


def joint_mmd(case: Case) -> Tensor:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        distance = (x[:, None] - y[None]).square().sum(-1)
        return sum((torch.exp(-(10.0**p) * distance) for p in range(-3, 4)), torch.zeros(())).mean()

    return pair_mean(case, lambda x, y: kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def probes_for(case: Case, sets: str, m: int = 2) -> list[dict[str, Tensor]]:
    def draw(seed: int) -> Tensor:
        return rademacher(m, case.size(), seed, torch.float64)

    if sets == "shared":
        return [{"own": draw(1)} for _ in range(K)]
    own = [{"own": draw(10 + e)} for e in range(K)]
    return own if sets == "independent" else [{**p, "mean": draw(99)} for p in own]


def assert_exact(found: Tensor, value: float, penalty: Tensor, case: Case) -> None:
    expected = case.penalty_gradient(penalty)
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    assert value == pytest.approx(float(penalty.detach()), rel=1e-10)


@pytest.mark.parametrize(("loss_name", "classes"), [("cross_entropy", 3), ("bce", 2)])
@pytest.mark.parametrize(
    ("name", "options", "joint"),
    [
        ("gradient", {}, gradient_spread),
        ("hutchinson", {}, lambda case: joint_hutchinson(case, NO_PROBES, released=False, detach=False)),
        ("hgp", {"detach_mean": True}, lambda case: joint_hgp(case, detach=True)),
        ("hgp", {"detach_mean": False}, lambda case: joint_hgp(case, detach=False)),
        ("irm", {}, joint_irm),
        ("vrex", {}, joint_vrex),
        ("fishr", {}, joint_fishr),
        ("coral", {}, joint_coral),
        ("mmd", {}, joint_mmd),
    ],
)
@pytest.mark.parametrize("parts", [WHOLE, PARTS], ids=["whole", "divided"])
def test_closed_form_penalties(
    loss_name: str, classes: int, name: str, options: dict[str, bool], joint: Callable[[Case], Tensor],
    parts: tuple[slice, ...],
) -> None:  # fmt: skip
    if parts is PARTS and not OBJECTIVES.get(name).divisible:
        pytest.skip("its statistics are no means over examples; a configuration that divides a batch is refused")
    case = Case(loss_name, classes)
    given = ObjectiveSettings(**options, examples=BATCH, divided=len(parts) > 1)
    found, value = rows_by_protocol(case, name, given, NO_PROBES, parts)
    assert_exact(found, value, joint(case), case)


@pytest.mark.parametrize("sets", ["shared", "independent", "released"])
@pytest.mark.parametrize("detach", [True, False])
def test_hutchinson_with_probes(sets: str, detach: bool) -> None:
    case = Case()
    probes = probes_for(case, sets)
    options = ObjectiveSettings(estimator="hutchinson", probes=2, probe_sets=sets, detach_mean=detach)
    found, value = rows_by_protocol(case, "hutchinson", options, probes)
    released = sets == "released"
    # where D̄ is the mean of the D_e, detaching it changes nothing: the test compares with the undetached penalty
    joint = joint_hutchinson(case, probes, released=released, detach=released and detach)
    assert_exact(found, value, joint, case)


def test_detaching_matters_for_hgp_only() -> None:
    case = Case()
    rows = {d: rows_by_protocol(case, "hgp", ObjectiveSettings(detach_mean=d), NO_PROBES)[0] for d in (True, False)}
    assert float((rows[True] - rows[False]).norm() / rows[False].norm()) > 1e-3
    exact = {d: joint_hutchinson(case, NO_PROBES, released=False, detach=d) for d in (True, False)}
    torch.testing.assert_close(case.penalty_gradient(exact[True]), case.penalty_gradient(exact[False]))


def test_two_equal_domains_have_the_scripts_formula_of_vrex(monkeypatch: pytest.MonkeyPatch) -> None:
    """(R_0 − R_1)² is four times the variance, as the docstring says."""
    monkeypatch.setattr(sys.modules[__name__], "K", 2)
    monkeypatch.setattr(sys.modules[__name__], "WEIGHTS", np.array([0.5, 0.5]))
    case = Case("bce", 2)
    found, _ = rows_by_protocol(case, "vrex", ObjectiveSettings(), NO_PROBES)
    expected = case.penalty_gradient(COEFFICIENTS.alpha * (case.value(0) - case.value(1)).square())
    torch.testing.assert_close(4 * found, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ["hutchinson", "hgp", "gradient", "vrex", "fishr", "coral", "mmd"])
def test_equal_domains_have_no_penalty(name: str) -> None:
    case = Case()
    case.images = [case.images[0]] * K
    case.labels = [case.labels[0]] * K
    found, value = rows_by_protocol(case, name, ObjectiveSettings(detach_mean=False, examples=BATCH), NO_PROBES)
    assert value == pytest.approx(0, abs=1e-15 if name == "mmd" else 1e-25)
    assert float(found.abs().max()) < 1e-12


@pytest.mark.parametrize("sets", ["shared", "independent"])
def test_bias_of_the_estimated_penalty(sets: str) -> None:
    """E‖D̂_a − D̂_b‖² − ‖D_a − D_b‖² equals the docstring's off-diagonal terms, within five standard errors."""
    case, m, draws = Case(), 2, 3_000
    heads = []
    for e in range(2):
        features = case.model.featurizer(case.images[e]).detach()
        heads.append(
            head_curvature(case.loss, case.model, features, case.model.head(features).detach(), case.labels[e])
        )
    hessians = [head.hessian_product(torch.eye(head.size, dtype=torch.float64)) for head in heads]
    off = [h - torch.diag(h.diagonal()) for h in hessians]
    if sets == "shared":
        bias = (off[0] - off[1]).square().sum() / m
    else:
        bias = (off[0].square().sum() + off[1].square().sum()) / m
    expected = (hessians[0].diagonal() - hessians[1].diagonal()).square().sum() + bias
    size = heads[0].size
    first = rademacher(draws * m, size, 1, torch.float64).view(draws, m, size)
    second = first if sets == "shared" else rademacher(draws * m, size, 2, torch.float64).view(draws, m, size)
    estimates = [
        (p * head.hessian_product(p.flatten(0, 1)).view_as(p)).mean(1)
        for head, p in zip(heads, (first, second), strict=True)
    ]
    distances = (estimates[0] - estimates[1]).square().sum(1)
    assert abs(float(distances.mean() - expected)) < 5 * float(distances.std()) / draws**0.5
    assert float(bias) > 10 * float(distances.std()) / draws**0.5  # the test would see a missing bias


def test_an_objective_says_what_it_is_in_a_run() -> None:
    weights = Coefficients(alpha=0.1, beta=2.0)

    def line(name: str, **settings: Any) -> str:
        return OBJECTIVES.get(name)(ObjectiveSettings(**settings)).describe(weights)

    assert line("hutchinson", estimator="hutchinson") == "hutchinson (α 0.1, β 2, hutchinson)"
    assert line("gradient") == "gradient (β 2)"
    assert line("irm") == "irm (α 0.1)"
    assert line("mixup", mixup=0.5) == "mixup (a 0.5)"
    assert line("erm") == "erm"
    with pytest.raises(ConfigError, match=r"Unknown option `width` of objective `mmd`\. It takes no options\."):
        OBJECTIVES.get("mmd")(ObjectiveSettings(), {"width": 1})
    assert "erm" not in penalties()
    assert "mixup" not in penalties()
    assert {"hutchinson", "coral", "dann_domain"} <= set(penalties())
