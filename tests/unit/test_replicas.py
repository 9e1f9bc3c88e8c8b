"""Several workers that divide a domain's batch answer like one: statistics, rows, dropout, augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import stochastic_depth

from difc_ray.config import Config, resolve
from difc_ray.errors import ConfigError
from difc_ray.models import MODELS, Model
from difc_ray.objectives import Vectors
from difc_ray.runs.setup import prepare
from difc_ray.step.coordinator import GlobalStep, TrainState
from difc_ray.step.division import part_of
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, ModelState, Rows, Statistics, Token, held_rows, merge_rows, merge_statistics
from difc_ray.step.worker.dropout import SeededDropout
from tests.runs import PENALTIES, run_inline, small_config

BATCH = 7


class DividedDomains:
    """The source domains in this process, each as several workers that divide its batch."""

    def __init__(self, config: Config) -> None:
        self.sources, self.parts = config.sources, config.cluster.replicas
        self.steps = {
            (name, part): LocalStep(config, load_domain(config, name), *model_of(config), part=part)
            for name in self.sources
            for part in range(self.parts)
        }

    def statistics(self, state: ModelState, step: int) -> list[Statistics]:
        return self._merged(merge_statistics, lambda local, token, _: local.statistics(state, token), step)

    def exchange(self, step: int, number: int, broadcasts: Sequence[Vectors]) -> list[Statistics]:
        return self._merged(merge_statistics, lambda local, token, told: local.exchange(token, number, told), step,
                            broadcasts)  # fmt: skip

    def rows(self, step: int, cotangents: Sequence[Vectors]) -> list[Rows]:
        return self._merged(merge_rows, lambda local, token, own: local.rows(token, own), step, cotangents)

    def close(self) -> None:
        for local in self.steps.values():
            local.close()

    def products(self, step: int, vectors_VS: object) -> list[Any]:
        raise AssertionError

    def confusion(self, state: ModelState, step: int) -> list[Any]:
        raise AssertionError

    def _merged(
        self, merge: Callable[[Sequence[Any]], Any], ask: Callable[[LocalStep, Token, Any], Any], step: int,
        told: Sequence[Any] | None = None,
    ) -> list[Any]:  # fmt: skip
        found = []
        for name, own in zip(self.sources, told or [None] * len(self.sources), strict=True):
            tokens = [Token(run="r", attempt=0, step=step, domain=name, part=part) for part in range(self.parts)]
            found.append(merge([ask(self.steps[name, token.part], token, own) for token in tokens]))
        return found


def divided(replicas: int, **changes: Any) -> Config:
    config = small_config(**{"batch_size": BATCH, "optimizer": {"name": "sgd", "lr": 0.5}, **changes})
    return config.model_copy(update={"cluster": config.cluster.model_copy(update={"replicas": replicas})})


def run_divided(config: Config, steps: int) -> TrainState:
    domains, prepared = DividedDomains(config), prepare(config, None)
    layout = next(iter(domains.steps.values())).layout
    step = GlobalStep(config, layout, prepared.state)
    for _ in range(steps):
        assert not step.take(domains).skipped
    domains.close()
    return step.state


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_parts_cover_the_batch() -> None:
    for size, parts in ((7, 3), (6, 3), (3, 3), (64, 5)):
        places = [list(range(size))[part_of(size, part, parts)] for part in range(parts)]
        assert [place for own in places for place in own] == list(range(size))
        assert {len(own) for own in places} <= {size // parts, size // parts + 1}


CASES: dict[str, dict[str, Any]] = {
    **{name: {"alignment": penalty} for name, penalty in PENALTIES.items()},
    "dropout": {"model": "lenet", "model_options": {"dropout": 0.5}},
    "mixed": {"objective": "mixup", "harmonize": {"rule": "mean"}, "augment": "light", "loader": {"processes": 0}},
    "augmented": {"augment": "light", "sampler": "class_balanced", "loss": "ldam", "loader": {"processes": 0}},
}


@pytest.mark.parametrize("replicas", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_a_divided_batch_takes_the_steps_of_a_whole_one(case: str, replicas: int) -> None:
    changes = {**CASES[case], "optimizer": {"name": "sgd", "lr": 10.0}}  # long: the rounding of θ does not count
    start = prepare(divided(1, **changes), None).state.theta_P
    whole, _ = run_inline(divided(1, **changes), 1)
    found = run_divided(divided(replicas, **changes), 1)
    assert distance(found.theta_P - start, whole.theta_P - start) < 1e-6


def test_without_its_weights_a_ragged_batch_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: 7 examples as 4 + 3 are not the plain mean of two parts."""
    whole, _ = run_inline(divided(1), 1)
    monkeypatch.setattr(LocalStep, "rows", _as_if_equal(LocalStep.rows))
    start = prepare(divided(1), None).state.theta_P
    assert distance(run_divided(divided(2), 1).theta_P - start, whole.theta_P - start) > 1e-2


def _as_if_equal(rows: Callable[..., Rows]) -> Callable[..., Rows]:
    from dataclasses import replace

    return lambda local, token, cotangent: replace(rows(local, token, cotangent), samples=1)


def test_statistics_of_the_head_are_exact() -> None:
    """Gradient and Hessian diagonal are means over examples: the parts give them to the last bits of a float32."""
    one, three = DividedDomains(divided(1)), DividedDomains(divided(3))
    state = prepare(divided(1), None).state.model_state()
    for whole, parts in zip(one.statistics(state, 0), three.statistics(state, 0), strict=True):
        assert parts.samples == whole.samples == BATCH
        assert parts.accuracy == pytest.approx(whole.accuracy, abs=1e-7)
        assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
        for name, vector in whole.vectors.items():
            np.testing.assert_allclose(parts.vectors[name], vector, atol=1e-6 * np.abs(vector).max(), rtol=0)


def test_buffers_and_rows_of_one_part_are_its_own() -> None:
    token = Token(run="r", attempt=0, step=0, domain="mnist")
    rows = Rows(token=token, rows_RP=np.ones((2, 5), np.float32), buffers={}, compute_s=0.0, samples=3)
    assert merge_rows([rows]) is rows
    other = Rows(token=token, rows_RP=np.full((2, 5), 5.0, np.float32), buffers={}, compute_s=0.0, samples=1)
    np.testing.assert_array_equal(held_rows(merge_rows([rows, other])), np.full((2, 5), 2.0, np.float32))


# ---- dropout ------------------------------------------------------------------------------------------------------


def masks(part: slice) -> Iterator[Tensor]:
    """What several kinds of dropout make of ones."""
    like = torch.ones(part.stop - part.start, 4, 3, 3)
    with SeededDropout(5, torch.device("cpu"), part, BATCH):
        yield nn.Dropout(0.5)(like)
        yield nn.Dropout2d(0.3)(like)
        yield stochastic_depth(like, 0.4, "row")
        yield functional.dropout(like.flatten(0, 1), 0.2)
        yield nn.Dropout(0.5).eval()(like)


def test_masks_are_those_of_the_whole_batch() -> None:
    whole = list(masks(slice(0, BATCH)))
    for place in [part_of(BATCH, part, 3) for part in range(3)]:
        for name, mine, all_ in zip("abcde", masks(place), whole, strict=True):
            each = len(all_) // BATCH
            assert torch.equal(mine, all_[place.start * each : place.stop * each]), name
    assert (whole[0] == 0).any()
    assert (whole[2] == 0).any()


def test_generators_are_put_back() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    list(masks(slice(0, 4)))
    assert torch.equal(torch.rand(3), expected)


def test_a_tensor_without_samples_is_refused() -> None:
    with (
        SeededDropout(5, torch.device("cpu"), slice(0, 4), BATCH),
        pytest.raises(ConfigError, match=r"4 examples in front .* shape \(3, 2\)"),
    ):
        functional.dropout(torch.ones(3, 2), 0.5)


class Attention(nn.Module):
    """Three pixels in a row that attend to each other, with dropout of the weights."""

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.flatten(2)[:, :, :3]
        return functional.scaled_dot_product_attention(tokens, tokens, tokens, dropout_p=0.1).flatten(1)


class Folded(nn.Module):
    """Dropout over a sum of the batch."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :9] + functional.dropout(images.flatten(1).sum(0), 0.1)[:9]


@pytest.mark.parametrize(
    ("features", "words"),
    [(Attention(), "dropout of attention weights must be 0 .*, got 0.1"), (Folded(), "needs the 11 examples in front")],
    ids=["attention", "folded"],
)
@pytest.mark.parametrize("divided", [True, False])
def test_a_model_that_cannot_be_divided_is_refused_before_the_run(
    features: nn.Module, words: str, divided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS._items, "odd", lambda shape, n, options: Model(features, nn.Linear(9, n)))
    config = small_config(model="odd", model_options={}, cluster={"replicas": 1 + divided})
    if divided:
        with pytest.raises(ConfigError, match=words):
            prepare(config, None)
    else:
        prepare(config, None)
        plain = {"objective": "erm", "harmonize": {"rule": "mean"}}  # has no pieces
        pieces = {"scope": "all", "estimator": "hutchinson", "micro_batches": 2}
        prepare(small_config(**plain, model="odd", model_options={}, alignment=pieces), None)


# ---- what cannot be divided ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cluster": {"replicas": 0}}, r"`cluster.replicas` must be an integer >= 1, got 0"),
        (
            {"cluster": {"replicas": 9}},
            r"divide the 8 examples of a batch, and each needs one, got `cluster.replicas=9`",
        ),
        ({"cluster": {"replicas": 2}, "model": "resnet18"}, r"needs frozen BatchNorm in model `resnet18`"),
        ({"cluster": {"replicas": 2}, "harmonize": {"rule": "flat_dualproj"}}, r"that of a batch is not the mean"),
        (
            {"cluster": {"transport": "collective"}, "harmonize": {"rule": "flat_dualproj"}},
            r"`cluster.transport=collective` cannot serve rule `flat_dualproj`",
        ),
        ({"cluster": {"backend": "nccl", "transport": "object_store"}}, r"is read by `cluster.transport=collective`"),
        (
            {"cluster": {"backend": "nccl", "gpus_per_worker": 0.5}},
            r"`cluster.backend=nccl` needs a GPU of its own for every domain worker, got `cluster.gpus_per_worker=0.5`",
        ),
    ],
)
def test_configurations_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(small_config(**changes))
