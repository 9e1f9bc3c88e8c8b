"""Runs that begin with weights from a file: checked before anything starts, recorded, and not needed afterwards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from difc_ray.config import ConfigProblems, load_config, resolve
from difc_ray.errors import ConfigError
from difc_ray.models import MODELS, build_model
from difc_ray.models.torchvision import TorchvisionBackbone
from difc_ray.runs.checkpoint import newest_valid
from difc_ray.runs.evaluate import evaluate
from difc_ray.runs.setup import prepare, run_tags
from difc_ray.runs.train import Silent
from tests.runs import small_config, train


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """ResNet-18's weights for four classes."""
    path = tmp_path / "w.safetensors"
    save_file(build_model("resnet18", (3, 28, 28), 4, {}, 9).state_dict(), path)
    return path


class Notices(Silent):
    """What a run has told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def notice(self, message: str) -> None:
        self.told.append(message)


def problems(*arguments: str) -> list[str]:
    with pytest.raises(ConfigProblems) as caught:
        load_config(None, arguments, base={"model": "resnet18"}, paths=True)
    return caught.value.problems


def test_files_are_checked_before_a_run_and_only_then(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    where = f"output={tmp_path / 'runs'}"
    found = problems("model_options.weights=imagenet", where)
    assert len(found) == 1
    assert f"Found no `{tmp_path}/hub/checkpoints/resnet18-f37072fd.pth`" in found[0]
    assert load_config(None, ["model=resnet18", "model_options={weights: imagenet, download: true}"], paths=True)
    assert load_config(None, [f"model_options.weights={file}", "model=resnet18", where], paths=True)
    found = problems(f"model_options.weights={tmp_path}/none.safetensors", where)
    assert len(found) == 1
    assert "`model_options.weights` must suit model `resnet18`, got `" in found[0]
    assert "(command line). `weights` must name a .safetensors file. Found no such file" in found[0]
    found = problems(f"model_options.weights={file}", "model=resnet50", where)
    assert len(found) == 1
    assert "missing (`layer1.0.conv3.weight`; " in found[0]
    config = load_config(None, ["model=resnet18", f"model_options.weights={tmp_path}/none.safetensors"])
    assert config.model == "resnet18"
    found = problems("model_options.weights=imagnet", where)
    assert len(found) == 1
    assert "Did you mean `weights=imagenet`?" in found[0]


def test_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["model=resnet18", "model_options.weights=w.safetensors", "model_options.dropout=0.5"]
    resolved = resolve(load_config(None, options))
    assert resolved.model_options == {"weights": f"{tmp_path}/w.safetensors", "dropout": 0.5}
    assert resolved.batch_norm == "freeze"
    assert resolve(load_config(None, ["model=resnet18", "model_options.weights=none"])).model_options == {
        "weights": "none"
    }


class Tiny(TorchvisionBackbone):
    """A network that is made and trained in milliseconds."""

    def network(self, image_shape: tuple[int, int, int], n_outputs: int) -> nn.Module:
        layers = (nn.Conv2d(3, 4, 5, stride=3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(16, n_outputs))


def test_a_run_records_its_weights_and_goes_on_without_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS._items, "tiny", Tiny("tiny"))
    file = tmp_path / "tiny.safetensors"
    held = build_model("tiny", (3, 28, 28), 4, {}, 9)
    save_file(held.state_dict(), file)
    settings = {
        "model": "tiny", "model_options": {"weights": str(file)}, "output": str(tmp_path), "engine": "inline",
        "name": "run", "steps": 1, "eval_every": 1,
    }  # fmt: skip
    start = prepare(small_config(**settings), None)
    head = start.layout.slices["head.weight"].start
    assert torch.equal(start.state.theta_P[:head], nn.utils.parameters_to_vector(held.featurizer.parameters()))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert run_tags(start, {})["weights.sha256"] == digest
    assert start.identity["weights"] == {"source": str(file), "sha256": digest, "head": False}
    seen = Notices()
    whole = train(small_config(**settings), seen)
    assert [text for text in seen.told if "the head begins at the seed's initial values" in text]
    described = json.loads((whole.run_dir / "export" / "model.json").read_text("utf-8"))
    assert described["options"] == {}
    file.unlink()
    _, again = evaluate(whole.run_dir)
    assert again.summary["accuracy"] == whole.summary["accuracy"]
    seen = Notices()
    train(small_config(**{**settings, "steps": 2}, resume=str(whole.run_dir)), seen)
    assert not [text for text in seen.told if "head begins" in text]
    identity = newest_valid(whole.run_dir / "checkpoints")[1].meta["identity"]
    assert identity["weights"]["sha256"] == digest
    with pytest.raises(ConfigError, match="Found no such file"):
        train(small_config(**settings | {"name": "other"}))
