"""Models: layout, initial weights, options."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from difc_ray.errors import ConfigError
from difc_ray.models import MODELS, Model, build_model
from difc_ray.vectors import ParameterLayout

SHAPE = (3, 28, 28)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def test_lenet_has_the_published_size() -> None:
    """431,080 parameters for one channel and ten classes; each channel more costs 20 · 25."""
    assert flat(build_model("lenet", (1, 28, 28), 10, {}, 0)).numel() == 431_080
    assert flat(build_model("lenet", SHAPE, 10, {}, 0)).numel() == 431_080 + 2 * 20 * 25


def test_lenet_computes_the_published_network() -> None:
    model = build_model("lenet", SHAPE, 10, {}, 1)
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2, w3, b3, w4, b4 = model.parameters()
    hidden = functional.relu(functional.max_pool2d(functional.conv2d(images, w1, b1), 2))
    hidden = functional.relu(functional.max_pool2d(functional.conv2d(hidden, w2, b2), 2))
    features = functional.relu(hidden.reshape(4, 800) @ w3.T + b3)
    assert torch.allclose(model.featurizer(images), features, atol=1e-6)
    assert torch.allclose(model(images), features @ w4.T + b4, atol=1e-5)


def test_mlp_computes_its_layers() -> None:
    model = build_model("mlp", (1, 4, 5), 3, {"hidden": [7, 6]}, 1)
    images = torch.randn(5, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    w1, b1, w2, b2, w3, b3 = model.parameters()
    assert [tuple(w.shape) for w in (w1, w2, w3)] == [(7, 20), (6, 7), (3, 6)]
    hidden = functional.relu(functional.relu(images.reshape(5, 20) @ w1.T + b1) @ w2.T + b2)
    assert torch.allclose(model(images), hidden @ w3.T + b3, atol=1e-6)


def test_xavier_weights_have_their_bound_and_no_bias() -> None:
    model = build_model("mlp", (2, 14, 14), 1, {"hidden": [390, 390], "init": "xavier_uniform"}, 1)
    for weight, bias in zip(*[iter(model.parameters())] * 2, strict=True):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.9 * bound < float(weight.detach().abs().max()) <= bound
        assert not bias.any()
    again = build_model("mlp", (2, 14, 14), 1, {"hidden": [390, 390], "init": "xavier_uniform"}, 1)
    assert torch.equal(flat(model), flat(again))


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_the_head_is_the_end_of_the_flat_vector(name: str) -> None:
    model = build_model(name, SHAPE, 10, {}, 0)
    layout = ParameterLayout.of(model)
    assert layout.names[-2:] == ("head.weight", "head.bias")
    assert layout.slices["head.weight"].start == layout.size - model.head.weight.numel() - 10
    assert not any(parameter.startswith("head") for parameter in layout.names[:-2])


@pytest.mark.parametrize("name", ["lenet", "mlp"])
def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    first = flat(build_model(name, SHAPE, 10, {}, 5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    assert torch.equal(flat(build_model(name, SHAPE, 10, {}, 5)), first)
    assert not torch.equal(flat(build_model(name, SHAPE, 10, {}, 6)), first)
    assert torch.isfinite(first).all()


@pytest.mark.parametrize(("name", "n_masks"), [("lenet", 2), ("mlp", 2)])
def test_dropout_is_off_by_default_and_follows_the_global_generator_when_on(name: str, n_masks: int) -> None:
    images = torch.randn(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    plain = build_model(name, SHAPE, 10, {}, 0).train()
    assert torch.equal(plain(images), plain(images))
    dropped = build_model(name, SHAPE, 10, {"dropout": 0.5}, 0).train()
    assert torch.equal(flat(dropped), flat(plain))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        first, second = dropped(images), dropped(images)
        torch.manual_seed(1)
        assert torch.equal(dropped(images), first)
    assert not torch.equal(first, second)
    assert torch.equal(dropped.eval()(images), plain.eval()(images))
    layers = [m for m in dropped.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert [layer.p for layer in layers] == [0.5] * n_masks


@pytest.mark.parametrize("side", [16, 17, 28, 33])
def test_lenet_takes_other_sizes(side: int) -> None:
    model = build_model("lenet", (2, side, side + 3), 4, {}, 0)
    assert model(torch.zeros(2, 2, side, side + 3)).shape == (2, 4)


def test_lenet_refuses_small_images() -> None:
    with pytest.raises(ConfigError, match=r"at least 16x16\. Found 28x15"):
        build_model("lenet", (1, 28, 15), 10, {}, 0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lenet", {"dropuot": 0.1}, r"`dropuot` of model `lenet`\. Did you mean `dropout`\?"),
        ("mlp", {"hiden": [3]}, r"`hiden` of model `mlp`\. Did you mean `hidden`\?"),
        ("lenet", {"dropout": 1.0}, r"`model_options.dropout` must be a number in \[0, 1\), got 1.0 \(model `lenet`\)"),
        ("lenet", {"dropout": -0.1}, "got -0.1"),
        ("lenet", {"dropout": math.nan}, "got nan"),
        ("lenet", {"dropout": "0.5"}, "got '0.5'"),
        ("mlp", {"dropout": True}, "got True"),
        ("mlp", {"init": "xavier"}, "`model_options.init` must be one of `torch`, `xavier_uniform`, got 'xavier'"),
        ("mlp", {"hidden": []}, r"`model_options.hidden` must be a non-empty list of integers >= 1, got \[\]"),
        ("mlp", {"hidden": 64}, "got 64 .*`hidden=256,256`"),
        ("mlp", {"hidden": "64"}, "got '64'"),
        ("mlp", {"hidden": [64, 0]}, r"got \[64, 0\]"),
        ("mlp", {"hidden": [64, 2.5]}, r"got \[64, 2.5\]"),
        ("lennet", {}, r"Unknown model `lennet`\. Did you mean `lenet`\?"),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, SHAPE, 10, options, 0)


def test_a_foreign_model_must_end_in_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reversed(Model):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.head = nn.Linear(12, 2)
            self.featurizer = nn.Sequential(nn.Flatten(), nn.Linear(12, 12))

    monkeypatch.setitem(MODELS._items, "reversed", lambda shape, n_outputs, options: Reversed())
    with pytest.raises(ConfigError, match=r"Found `featurizer\.1\.bias` as the last parameter of model `reversed`"):
        build_model("reversed", (3, 2, 2), 2, {}, 0)
    model = Model(nn.Flatten(), nn.Linear(12, 2))
    monkeypatch.setitem(MODELS._items, "linear", lambda shape, n_outputs, options: model)
    assert build_model("linear", (3, 2, 2), 2, {}, 0) is model
