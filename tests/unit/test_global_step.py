"""The coordinator's half of a step: views, annealing, skipping, buffers, optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from difc_ray.config import OptimizerConfig, domain_weights
from difc_ray.errors import NumericError
from difc_ray.harmonizers.views import make_view
from difc_ray.objectives.losses import Confusion
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import GlobalStep, TrainState, merged_buffers, raw_rows
from difc_ray.step.optimizer import FlatOptimizer, learning_rate
from difc_ray.step.worker import Products, Rows, Statistics, Token
from difc_ray.vectors import ParameterLayout, combine, gram
from tests.runs import digest, run_inline, small_config

K, P = 3, 40
WEIGHTS = np.array([0.5, 0.3, 0.2])
NAMES = ("a", "b", "c")


def replies(seed: int = 0, **buffers: np.ndarray) -> list[Rows]:
    rng = np.random.default_rng(seed)
    return [
        Rows(
            token=Token(run="r", attempt=0, step=0, domain=name),
            rows_RP=rng.standard_normal((2, P)).astype(np.float32),
            buffers={n: v[i] for n, v in buffers.items()},
            compute_s=0.0,
        )
        for i, name in enumerate(NAMES)
    ]


@pytest.mark.parametrize("between", ["tasks", "domains", "both"])
def test_base_weights_of_every_view_give_the_plain_direction(between: str) -> None:
    """Σ w_e g_e + Σ a_e, computed on the vectors themselves."""
    answers = replies()
    view = make_view(between, WEIGHTS, NAMES)
    rows = raw_rows(answers) if between != "domains" else [
        torch.from_numpy(r.rows_RP[0] + r.rows_RP[1] / np.float32(w)) for w, r in zip(WEIGHTS, answers, strict=True)
    ]  # fmt: skip
    direction = combine(view.matrix_VN.T @ view.base_V, rows)
    expected = sum(w * r.rows_RP[0].astype(float) + r.rows_RP[1] for w, r in zip(WEIGHTS, answers, strict=True))
    np.testing.assert_allclose(direction.numpy(), expected, rtol=2e-6, atol=1e-6)


def test_view_rows_are_what_their_names_say() -> None:
    answers = replies()
    g, a = (np.stack([r.rows_RP[k].astype(float) for r in answers]) for k in (0, 1))
    raw = np.vstack([g, a])
    tasks = make_view("tasks", WEIGHTS, NAMES)
    np.testing.assert_allclose(tasks.matrix_VN @ raw, [a.sum(0), WEIGHTS @ g])
    assert tasks.names == ("alignment", "classification")
    domains = make_view("domains", WEIGHTS, NAMES)
    rows = g + a / WEIGHTS[:, None]  # as workers make them
    np.testing.assert_allclose(domains.matrix_VN @ rows, rows)
    both = make_view("both", WEIGHTS, NAMES)
    np.testing.assert_allclose(both.matrix_VN @ raw, [*g, a.sum(0)])
    found = both.matrix_VN @ gram(raw_rows(answers)) @ both.matrix_VN.T
    np.testing.assert_allclose(found, (both.matrix_VN @ raw) @ (both.matrix_VN @ raw).T, rtol=1e-10)


def test_domain_weights_sum_to_one() -> None:
    np.testing.assert_allclose(domain_weights(small_config()), np.full(3, 1 / 3))
    np.testing.assert_allclose(domain_weights(small_config(harmonize={"weights": [2, 1, 1]})), [0.5, 0.25, 0.25])


def test_coefficients_follow_annealing_and_reduction() -> None:
    anneal = {"weight_before": 0.5, "steps": 3, "weight_after": 40.0, "rescale_loss": True}
    config = small_config(alignment={"alpha": 0.2, "beta": 0.1, "anneal": anneal, "reduction": "sum"})
    step = GlobalStep(config, prepare(config, None).layout, prepare(config, None).state)
    before, after = step.coefficients(2), step.coefficients(3)
    assert (before.alpha, before.beta) == pytest.approx((0.5 * 3 * 0.2, 0.5 * 3 * 0.1))
    assert (after.alpha, after.beta) == pytest.approx((40 * 3 * 0.2, 40 * 3 * 0.1))
    assert (step.rescale(2), step.rescale(3)) == (1.0, 1 / 40)


def test_rescaling_divides_the_whole_direction() -> None:
    """Two runs that differ in `rescale_loss` only, by plain SGD from the same state: one step is 40 times shorter."""
    moved = []
    for rescale in (False, True):
        config = small_config(
            steps=1, optimizer={"name": "sgd", "momentum": 0, "lr": 0.01}, harmonize={"rule": "mean"},
            alignment={"anneal": {"weight_after": 40.0, "rescale_loss": rescale}},
        )  # fmt: skip
        start = prepare(config, None).state.theta_P.clone()
        moved.append(run_inline(config, 1)[0].theta_P - start)
    torch.testing.assert_close(moved[1] * 40, moved[0], rtol=1e-3, atol=1e-6)


def test_resetting_the_optimizer_forgets_its_moments() -> None:
    anneal = {"steps": 3, "reset_optimizer": True}
    state, _ = run_inline(small_config(alignment={"anneal": anneal}), 4)
    assert float(state.optimizer["step"]) == 1.0
    state, _ = run_inline(small_config(), 4)
    assert float(state.optimizer["step"]) == 4.0


def test_buffers_are_the_weighted_mean_and_counters_the_first() -> None:
    means = np.arange(6, dtype=np.float32).reshape(3, 2)
    counts = np.array([[7], [8], [9]], dtype=np.int64)
    merged = merged_buffers(replies(running_mean=means, seen=counts), WEIGHTS)
    np.testing.assert_allclose(merged["running_mean"].numpy(), WEIGHTS @ means, rtol=1e-6)
    assert merged["seen"].tolist() == [7]


class FixedDomains:
    """Answers that a test has prepared."""

    def __init__(self, losses: list[float], rows: list[Rows]) -> None:
        self.losses, self.answer = losses, rows

    def statistics(self, state: object, step: int) -> list[Statistics]:
        return [
            Statistics(token=r.token, loss=loss, accuracy=0.5, vectors={}, compute_s=0.0)
            for loss, r in zip(self.losses, self.answer, strict=True)
        ]

    def exchange(self, step: int, number: int, broadcasts: object) -> list[Statistics]:
        raise AssertionError

    def rows(self, step: int, cotangents: object) -> list[Rows]:
        return self.answer

    def products(self, step: int, vectors_VS: object) -> list[Products]:
        raise AssertionError

    def confusion(self, state: object, step: int) -> list[Confusion]:
        raise AssertionError


def plain_step(**changes: object) -> GlobalStep:
    """A step of plain training on a layout of 40 parameters."""
    config = small_config(alignment={"alpha": 0, "beta": 0}, harmonize={"rule": "mean"}, **changes)
    layout = ParameterLayout(("first", "second"), ((30,), (10,)))
    return GlobalStep(config, layout, TrainState(step=0, theta_P=torch.zeros(P)))


def one_row(rows: list[Rows]) -> list[Rows]:
    return [Rows(token=r.token, rows_RP=r.rows_RP[:1].copy(), buffers={}, compute_s=0.0) for r in rows]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_skips_the_step_and_names_its_place(value: float) -> None:
    step, rows = plain_step(), one_row(replies())
    step.take(FixedDomains([1.0, 1.0, 1.0], one_row(replies())))
    before = digest(step.state)
    rows[1].rows_RP[0, 33] = value
    record = step.take(FixedDomains([1.0, 1.0, 1.0], rows))
    assert "domain `b`" in record.skipped
    assert "first in `second`" in record.skipped
    assert step.state.step == 2
    assert step.state.skipped == [1]
    step.state.step, step.state.skipped = 1, []
    assert digest(step.state) == before


def test_a_bad_loss_skips_before_rows_are_asked_for() -> None:
    step = plain_step()
    domains = FixedDomains([1.0, float("nan"), 1.0], [])
    domains.answer = one_row(replies())
    domains.rows = lambda step, cotangents: pytest.fail("rows were asked for")
    assert "domain `b`: the loss is nan" in step.take(domains).skipped


def test_five_skips_in_a_row_end_the_run() -> None:
    step = plain_step()
    bad = FixedDomains([float("nan")] * 3, one_row(replies()))
    for _ in range(4):
        step.take(bad)
    with pytest.raises(NumericError, match="Step 4"):
        step.take(bad)


def test_more_than_ten_skips_in_a_thousand_steps_end_the_run() -> None:
    step = plain_step()
    good, bad = FixedDomains([1.0] * 3, one_row(replies())), FixedDomains([float("nan")] * 3, one_row(replies()))
    for _ in range(10):
        step.take(bad)
        step.take(good)
    with pytest.raises(NumericError, match="11 of the last 1000"):
        step.take(bad)


def test_old_skips_are_forgotten() -> None:
    step = plain_step()
    step.state.step, step.state.skipped = 2_000, list(range(900, 910))
    step.take(FixedDomains([float("nan")] * 3, one_row(replies())))
    assert step.state.skipped == [2_000]


def test_abort_ends_at_the_first() -> None:
    step = plain_step(on_nonfinite="abort")
    with pytest.raises(NumericError, match="on_nonfinite: abort"):
        step.take(FixedDomains([float("nan")] * 3, one_row(replies())))
    assert step.state.step == 0


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_optimizer_equals_torch_on_separate_tensors(name: str) -> None:
    """Fused and flat against the plain implementation on two tensors."""
    config = OptimizerConfig(name=name, lr=0.02, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(P, generator=generator)
    parts = [torch.nn.Parameter(theta[:30].clone()), torch.nn.Parameter(theta[30:].clone())]
    flat = FlatOptimizer(config, 10, theta, {})
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    options = {"momentum": config.momentum} if name == "sgd" else {"betas": config.betas, "eps": config.eps}
    plain = kinds[name](parts, lr=config.lr, weight_decay=config.weight_decay, foreach=False, fused=False, **options)
    for step in range(5):
        direction = torch.randn(P, generator=generator)
        flat.step(direction, step)
        parts[0].grad, parts[1].grad = direction[:30].clone(), direction[30:].clone()
        plain.step()
    torch.testing.assert_close(theta, torch.cat([p.detach() for p in parts]), rtol=1e-5, atol=1e-6)
    continued = FlatOptimizer(config, 10, theta.clone(), {n: t.clone() for n, t in flat.tensors().items()})
    direction = torch.randn(P, generator=generator)
    flat.step(direction, 5)
    continued.step(direction, 5)
    assert torch.equal(flat.theta.detach(), continued.theta.detach())


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("everywhere", [True, False])
def test_weight_decay_without_norms_and_biases_equals_torch_s_parameter_groups(name: str, everywhere: bool) -> None:
    """One flat vector against torch's own optimizer on separate tensors in two groups."""
    shapes = {"conv": (2, 3, 1, 2), "scale": (3,), "shift": (3,), "linear": (4, 4), "bias": (4,), "scalar": (2,)}
    layout = ParameterLayout(tuple(shapes), tuple(shapes.values()))
    assert layout.size == P
    config = OptimizerConfig(name=name, lr=0.02, weight_decay=0.3, decay_norms_and_biases=everywhere, warmup_steps=3)
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(P, generator=generator)
    parts = {n: torch.nn.Parameter(value.clone()) for n, value in layout.named(theta).items()}
    flat = FlatOptimizer(config, 10, theta, {}, layout)
    decayed = [p for p in parts.values() if everywhere or p.ndim >= 2]
    rest = [p for p in parts.values() if not any(p is other for other in decayed)]
    groups = [{"params": decayed, "weight_decay": 0.3}, *([{"params": rest, "weight_decay": 0.0}] if rest else [])]
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}
    options = {"momentum": config.momentum} if name == "sgd" else {"betas": config.betas, "eps": config.eps}
    plain = kinds[name](groups, lr=config.lr, foreach=False, fused=False, **options)
    for step in range(6):
        direction = torch.randn(P, generator=generator)
        for n, value in layout.named(direction.clone()).items():
            parts[n].grad = value
        for group in plain.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 3)
        plain.step()
        flat.step(direction, step)
    expected = torch.cat([p.detach().reshape(-1) for p in parts.values()])
    torch.testing.assert_close(theta, expected, rtol=1e-5, atol=1e-6)


def test_runs_leave_norms_and_biases_undecayed() -> None:
    """Through the whole step: with a direction of zero only decay moves, and only the matrices."""
    options = {"name": "sgd", "momentum": 0, "lr": 0.1, "weight_decay": 0.5, "decay_norms_and_biases": False}
    config = small_config(alignment={"alpha": 0, "beta": 0}, harmonize={"rule": "mean"}, optimizer=options)
    layout = ParameterLayout(("weight", "bias"), ((6, 5), (10,)))
    step = GlobalStep(config, layout, TrainState(step=0, theta_P=torch.ones(P)))
    still = [Rows(token=r.token, rows_RP=np.zeros((1, P), np.float32), buffers={}, compute_s=0.0) for r in replies()]
    assert not step.take(FixedDomains([1.0] * 3, still)).skipped
    torch.testing.assert_close(step.state.theta_P, torch.cat([torch.full((30,), 0.95), torch.ones(10)]))


@pytest.mark.parametrize("limit", [1e-3, 0.5, 1e6])
def test_a_direction_longer_than_the_limit_is_cut_to_it(limit: float) -> None:
    rows = one_row(replies())
    mean = np.mean([r.rows_RP[0].astype(float) for r in rows], axis=0)
    norm = np.linalg.norm(mean)
    sgd = {"name": "sgd", "momentum": 0, "lr": 1.0}
    step = plain_step(optimizer={**sgd, "clip_norm": limit})
    record = step.take(FixedDomains([1.0] * 3, rows))
    moved = -step.state.theta_P.double().numpy()
    np.testing.assert_allclose(moved, mean * min(1.0, limit / norm), rtol=1e-5, atol=1e-8)
    assert record.values["direction_norm"] == pytest.approx(norm)
    assert record.values["clipped"] == float(limit < norm)
    if limit > norm:
        free = plain_step(optimizer=sgd)
        assert "clipped" not in free.take(FixedDomains([1.0] * 3, rows)).values
        assert torch.equal(free.state.theta_P, step.state.theta_P)


def test_learning_rate_warms_up_and_falls() -> None:
    config = OptimizerConfig(lr=0.4, schedule="cosine", warmup_steps=4)
    rates = [learning_rate(config, 14, step) for step in range(15)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[4] == pytest.approx(0.4)
    assert rates[9] == pytest.approx(0.2)
    assert rates[14] == pytest.approx(0.0, abs=1e-12)
    assert learning_rate(OptimizerConfig(lr=0.4), 14, 13) == 0.4


def test_learning_rate_falls_in_steps() -> None:
    config = OptimizerConfig(lr=0.8, schedule="step", step_every=3, step_factor=0.5, warmup_steps=2)
    rates = [learning_rate(config, 100, step) for step in range(10)]
    assert rates == pytest.approx([0.4, 0.8, 0.8, 0.8, 0.8, 0.4, 0.4, 0.4, 0.2, 0.2])
    assert learning_rate(config, 5, 9) == rates[9]
