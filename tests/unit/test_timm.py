"""Networks of timm: those without timm installed, and, where it is, real ones."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from difc_ray.config import ConfigProblems, load_config
from difc_ray.errors import ConfigError
from difc_ray.models import Model, build_model
from difc_ray.vectors import ParameterLayout

SHAPE = (3, 64, 64)
installed = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="the extra `timm` is not installed")


def on_meta(name: str, options: dict[str, Any], shape: tuple[int, int, int] = SHAPE) -> Model:
    with torch.device("meta"):
        return build_model(name, shape, 5, options, 0)


def made(name: str, **arguments: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return importlib.import_module("timm").create_model(name, pretrained=False, **arguments).eval()


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"model `timm:resnet10t` needs .* Run `pip install 'difc-ray\[timm\]'`"):
        build_model("timm:resnet10t", SHAPE, 5, {}, 0)
    with pytest.raises(ConfigProblems, match=r"difc-ray\[timm\]"):
        load_config(None, ["model=timm:resnet10t"])


@installed
@pytest.mark.parametrize(
    ("name", "head"),
    [("resnet10t", "fc"), ("mobilenetv3_small_050", "classifier"), ("vit_tiny_patch16_224", "head")],
)
def test_logits_are_those_of_timm_bit_for_bit(name: str, head: str, tmp_path: Path) -> None:
    theirs = made(name, num_classes=5, **({"img_size": (64, 64)} if name.startswith("vit") else {}))
    save_file(dict(theirs.state_dict()), tmp_path / "w.safetensors")
    model = build_model(f"timm:{name}", SHAPE, 5, {"weights": str(tmp_path / "w.safetensors")}, 0).eval()
    assert model.head_name == head
    assert ParameterLayout.of(model).names[-2:] == ("head.weight", "head.bias")
    images = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))


@installed
def test_channels_follow_the_images() -> None:
    assert on_meta("timm:resnet10t", {}, (1, 64, 64)).featurizer.conv1[0].in_channels == 1


@installed
def test_a_head_that_is_a_convolution_is_named() -> None:
    with pytest.raises(ConfigError, match=r"The module found last, `head\.fc`, is Conv2d\. The network has no linear"):
        on_meta("timm:resnetv2_50", {})


@installed
def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown model `timm:resnet10`\. Did you mean .*`timm:resnet10t`"):
        on_meta("timm:resnet10", {})


@installed
def test_pretrained_weights_come_from_the_hub_s_cache_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub = importlib.import_module("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(importlib.import_module("huggingface_hub.file_download"), "constants", hub.constants)
    with pytest.raises(ConfigError) as caught:
        build_model("timm:resnet10t", SHAPE, 5, {"weights": "imagenet"}, 0)
    for words in (
        "Found no `model.safetensors` of `timm/resnet10t.c3_in1k`",
        str(tmp_path),
        "download=true",
        "HF_HOME",
    ):
        assert words in str(caught.value)
    theirs = made("resnet10t")
    folder = tmp_path / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(dict(theirs.state_dict()), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    model = build_model("timm:resnet10t", SHAPE, 5, {"weights": "imagenet"}, 0)
    assert torch.equal(model.featurizer.conv1[0].weight, theirs.conv1[0].weight)
    assert torch.equal(model.featurizer.layer4[0].bn2.running_var, theirs.layer4[0].bn2.running_var)
    assert model.loaded is not None
    assert not model.loaded.head
    assert torch.equal(model.head.weight, build_model("timm:resnet10t", SHAPE, 5, {}, 0).head.weight)
