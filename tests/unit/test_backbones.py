"""Networks of torchvision as models: the same numbers, the head, weights from files."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from difc_ray.errors import ConfigError
from difc_ray.models import MODELS, Model, build_model, check_weights, without_weights
from difc_ray.models.backbones import check_forward, split
from difc_ray.models.torchvision import TorchvisionBackbone
from difc_ray.models.weights import our_names
from difc_ray.vectors import ParameterLayout

SHAPE = (3, 64, 64)
HEADS = {"resnet18": "fc", "resnet50": "fc", "convnext_tiny": "classifier.2", "vit_b_16": "heads.head"}
FEATURES = {"resnet18": 512, "resnet50": 2048, "convnext_tiny": 768, "vit_b_16": 768}


def original(name: str, n_outputs: int = 5) -> nn.Module:
    """The network as torchvision makes it for 64 pixels, with random values everywhere (torchvision's take seconds)."""
    extra = {"image_size": 64} if name.startswith("vit") else {}
    with torch.device("meta"):
        network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=n_outputs, **extra)
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.is_floating_point():
                positive = "running_var" in key
                tensor.uniform_(0.5 if positive else -0.05, 1.0 if positive else 0.05, generator=generator)
            else:
                tensor.fill_(9)
    return network.eval()


@pytest.fixture(scope="module")
def resnet18() -> nn.Module:
    return original("resnet18")


@pytest.fixture(scope="module")
def file(resnet18: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ResNet-18's weights for five classes, by torchvision's names."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(dict(resnet18.state_dict()), path)
    return path


def images(n: int = 2, side: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(3))


def on_meta(name: str, options: dict[str, Any], shape: tuple[int, int, int] = SHAPE, n_outputs: int = 5) -> Model:
    with torch.device("meta"):
        return build_model(name, shape, n_outputs, options, 0)


@pytest.mark.parametrize("name", HEADS)
def test_the_layout_ends_with_the_head_and_keeps_torchvision_s_order(name: str) -> None:
    model = on_meta(name, {})
    layout = ParameterLayout.of(model)
    assert layout.names[-2:] == ("head.weight", "head.bias")
    assert (model.head_name, model.head.in_features) == (HEADS[name], FEATURES[name])
    with torch.device("meta"):
        theirs = [n for n, _ in original_names(name)]
    ours = [n.removeprefix("featurizer.").replace("head.", f"{HEADS[name]}.", 1) if n.startswith("head.") else
            n.removeprefix("featurizer.") for n in layout.names]  # fmt: skip
    assert ours == theirs


def original_names(name: str) -> list[tuple[str, nn.Parameter]]:
    extra = {"image_size": 64} if name.startswith("vit") else {}
    return list(torchvision.models.get_model(name, weights=None, num_classes=5, **extra).named_parameters())


@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_16"])
def test_logits_are_those_of_torchvision_bit_for_bit(name: str) -> None:
    theirs = original(name)
    with torch.device("meta"):
        model = build_model(name, SHAPE, 5, {}, 0)
    held = our_names(theirs.state_dict(), HEADS[name])
    model.load_state_dict({ours: theirs.state_dict()[n] for n, ours in held.items()}, assign=True)
    with torch.no_grad():
        found = model.eval()(images())
        assert torch.equal(found, theirs(images()))
    assert len(found.unique()) == 10
    assert bool(torch.isfinite(found).all())


def test_a_file_of_torchvision_s_names_gives_its_logits_bit_for_bit(resnet18: nn.Module, file: Path) -> None:
    model = build_model("resnet18", SHAPE, 5, {"weights": str(file)}, 0).eval()
    with torch.no_grad():
        assert torch.equal(model(images()), resnet18(images()))
    assert model.loaded is not None
    assert (model.loaded.head, model.loaded.source) == (True, str(file))
    assert model.loaded.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_initial_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = (build_model("resnet18", SHAPE, 5, {}, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.head.weight, other.head.weight)


def test_dropout_is_on_the_features() -> None:
    model = build_model("resnet18", SHAPE, 5, {"dropout": 0.5}, 0)
    for module in model.modules():
        module.train(isinstance(module, nn.Dropout))
    with torch.no_grad():
        share = float((model.features(images(8)) == 0).float().mean())
    assert 0.4 < share < 0.6
    plain = build_model("resnet18", SHAPE, 5, {}, 0)
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in model.named_parameters()]


# ---- weights ---------------------------------------------------------------------------------------------------------


def test_a_saved_model_is_read_back_under_our_names_too(file: Path, tmp_path: Path) -> None:
    model = build_model("resnet18", SHAPE, 5, {"weights": str(file)}, 0)
    save_file(dict(model.state_dict()), tmp_path / "ours.safetensors")
    again = build_model("resnet18", SHAPE, 5, {"weights": str(tmp_path / "ours.safetensors")}, 1)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_head_of_another_size_keeps_its_initial_values(file: Path, resnet18: nn.Module) -> None:
    model = build_model("resnet18", SHAPE, 3, {"weights": str(file)}, 4)
    plain = build_model("resnet18", SHAPE, 3, {}, 4)
    assert model.loaded is not None
    assert not model.loaded.head
    assert torch.equal(model.head.weight, plain.head.weight)
    assert torch.equal(model.featurizer.conv1.weight, resnet18.conv1.weight)


def test_weights_are_not_read_where_they_are_overwritten_anyway() -> None:
    options = {"weights": "/no/such/file.safetensors"}
    assert build_model("resnet18", SHAPE, 5, options, 0, load_weights=False).loaded is None
    assert on_meta("resnet18", options).loaded is None
    with pytest.raises(ConfigError, match=r"Found no such file \(`/no/such/file\.safetensors`\)"):
        build_model("resnet18", SHAPE, 5, options, 0)
    assert without_weights("resnet18", {**options, "download": True, "dropout": 0.1}) == {"dropout": 0.1}
    assert without_weights("mlp", {"weights": 1}) == {"weights": 1}


def test_half_precision_files_and_files_without_counters_fit(resnet18: nn.Module, tmp_path: Path) -> None:
    held = {n: t.half() if t.is_floating_point() else t for n, t in resnet18.state_dict().items()}
    save_file({n: t for n, t in held.items() if "num_batches" not in n}, tmp_path / "half.safetensors")
    model = build_model("resnet18", SHAPE, 5, {"weights": str(tmp_path / "half.safetensors")}, 0)
    assert model.featurizer.conv1.weight.dtype == torch.float32
    assert torch.equal(model.featurizer.conv1.weight, held["conv1.weight"].float())


@pytest.mark.parametrize("load", [True, False])
def test_weights_of_another_architecture_name_the_tensors(file: Path, load: bool) -> None:
    """By the header alone (as before a run), and when they are loaded."""
    options = {"weights": str(file)}
    model = on_meta("resnet50", options)
    with pytest.raises(ConfigError) as caught:
        build_model("resnet50", SHAPE, 5, options, 0) if load else check_weights("resnet50", model, options)
    told = str(caught.value)
    ours, theirs = (set(torchvision.models.get_model(n).state_dict()) for n in ("resnet50", "resnet18"))
    missing = [name for name in ours - theirs if "num_batches" not in name]
    assert f"{len(missing)} missing (`layer1.0.conv3.weight`; " in told
    assert "unexpected" not in told
    assert "`layer1.0.conv1.weight`, (64, 64, 3, 3) in the file and (64, 64, 1, 1) in the model" in told
    assert "must hold the tensors of model `resnet50`" in told
    with pytest.raises(ConfigError, match=r"180 missing .* 122 unexpected \(`bn1\.num_batches_tracked`; "):
        build_model("convnext_tiny", SHAPE, 5, options, 0)


def test_bad_files_are_refused(resnet18: nn.Module, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"\x10\0\0\0\0\0\0\0 no header here")
    with pytest.raises(ConfigError, match=r"must name a readable \.safetensors file\. Found `.*broken"):
        build_model("resnet18", SHAPE, 5, {"weights": str(broken)}, 0)
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(ConfigError, match="Found a folder"):
        build_model("resnet18", SHAPE, 5, {"weights": str(tmp_path / "x.safetensors")}, 0)
    held = {n: t.clone() for n, t in resnet18.state_dict().items()}
    held["layer1.0.bn1.running_var"][3] = math.nan
    save_file(held, tmp_path / "nan.safetensors")
    with pytest.raises(ConfigError, match=r"NaN or an infinity in `featurizer\.layer1\.0\.bn1\.running_var`"):
        build_model("resnet18", SHAPE, 5, {"weights": str(tmp_path / "nan.safetensors")}, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "imagnet"}, r"none, imagenet or the path .* Found 'imagnet'\. Did you mean `weights=imagenet`\?"),
        ({"weights": "w.pth"}, r"Convert it: `safetensors\.torch\.save_file\(torch\.load\(PATH, weights_only=True\)"),
        ({"weights": 3}, r"`model_options.weights` must be none, imagenet or the path of a .safetensors file, got 3"),
        ({"download": "yes"}, "`model_options.download` must be true or false, got 'yes'"),
        ({"dropout": 1}, r"`model_options.dropout` must be a number in \[0, 1\), got 1"),
        ({"droput": 0.1}, r"Unknown option `droput` of model `resnet18`\. Did you mean `dropout`\?"),
        (
            {"head": "fcc"},
            r"`head` must name a module of model `resnet18`\. Found `head = 'fcc'`\. Did you mean `fc`\?",
        ),
        ({"head": "layer4.1.conv2"}, r"The module named, `layer4\.1\.conv2`, is Conv2d\. .*linear layers are `fc`"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        on_meta("resnet18", options)


# ---- ImageNet --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_weights_that_are_not_there_say_where_they_belong(cache: Path) -> None:
    options = {"weights": "imagenet"}
    for attempt in (
        lambda: check_weights("resnet50", on_meta("resnet50", options), options),
        lambda: build_model("resnet50", SHAPE, 5, options, 0),
    ):
        with pytest.raises(ConfigError) as caught:
            attempt()
        for words in (f"{cache}/resnet50-0676ba61.pth", "https://download.pytorch.org/models/resnet50-0676ba61.pth",
                      "model_options.download=true", "TORCH_HOME"):  # fmt: skip
            assert words in str(caught.value)
    assert not list(cache.iterdir())


def pretend(monkeypatch: pytest.MonkeyPatch, where: Path, network: nn.Module) -> str:
    """A server with the network's weights in torchvision's format, under a name with their hash."""
    torch.save(network.state_dict(), where / "w.pth")
    digest = hashlib.sha256((where / "w.pth").read_bytes()).hexdigest()
    url = (where / "w.pth").rename(where / f"resnet18-{digest[:8]}.pth").as_uri()
    monkeypatch.setattr(TorchvisionBackbone, "imagenet_url", lambda self: url)
    return digest


def test_imagenet_weights_are_fetched_if_asked_and_then_come_from_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = original("resnet18", n_outputs=1000)
    digest = pretend(monkeypatch, tmp_path, theirs)
    options: dict[str, Any] = {"weights": "imagenet"}
    with pytest.raises(ConfigError, match=f"Found no `.*resnet18-{digest[:8]}.pth`"):
        build_model("resnet18", SHAPE, 5, options, 0)
    check_weights("resnet18", on_meta("resnet18", options), {**options, "download": True})
    assert not list(cache.iterdir())
    for download in (True, False):
        model = build_model("resnet18", SHAPE, 5, {**options, "download": download}, 0)
        assert model.loaded is not None
        assert (model.loaded.sha256, model.loaded.head) == (digest, False)
        assert torch.equal(model.featurizer.conv1.weight, theirs.conv1.weight)
        assert torch.equal(model.featurizer.bn1.running_var, theirs.bn1.running_var)
    kept = cache / f"resnet18-{digest[:8]}.pth"
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"must have the hash in their name.*Remove the file"):
        build_model("resnet18", SHAPE, 5, options, 0)


def test_a_failed_download_says_how_to_do_it_by_hand(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchvisionBackbone, "imagenet_url", lambda self: (tmp_path / "gone-12345678.pth").as_uri())
    with pytest.raises(
        ConfigError, match=r"or come from the network\. Found file://.*gone-12345678\.pth.* Try again, or"
    ):
        build_model("resnet18", SHAPE, 5, {"weights": "imagenet", "download": True}, 0)
    assert not list(cache.iterdir())


def test_pickled_code_in_a_cached_file_is_not_run(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "broken-into",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    (tmp_path / "w.pth").rename(cache / f"w-{digest[:8]}.pth")
    monkeypatch.setattr(TorchvisionBackbone, "imagenet_url", lambda self: f"https://nowhere/w-{digest[:8]}.pth")
    with pytest.raises(ConfigError, match="must be readable"):
        build_model("resnet18", SHAPE, 5, {"weights": "imagenet"}, 0)
    assert not (tmp_path / "broken-into").exists()


# ---- images and heads ------------------------------------------------------------------------------------------------


def test_position_embeddings_are_interpolated() -> None:
    """A field that is linear in the row stays so, and rises; the class token stays as it is."""
    backbone = TorchvisionBackbone("vit_b_16")
    small, large = on_meta("vit_b_16", {}, (3, 64, 64)), on_meta("vit_b_16", {}, (3, 128, 128))
    shapes = {name: tuple(tensor.shape) for name, tensor in large.state_dict().items()}
    assert backbone._fits(shapes, small, Path("w.safetensors"))
    with pytest.raises(ConfigError, match=r"1 of another shape \(`encoder.pos_embedding`, \(1, 63, 768\)"):
        backbone._fits({**shapes, "featurizer.encoder.pos_embedding": (1, 63, 768)}, small, Path("w.safetensors"))
    held = torch.full((1, 65, 768), -2.0)
    held[0, 1:] = (torch.arange(8.0)[:, None] + torch.zeros(8, 8)).reshape(64, 1)
    found = backbone.resized("featurizer.encoder.pos_embedding", held, (1, 17, 768))[0]
    assert found.shape == (17, 768)
    assert torch.equal(found[0], held[0, 0])
    grid = found[1:].reshape(4, 4, 768)
    torch.testing.assert_close(grid, grid[:, :1, :1].expand(4, 4, 768))
    assert torch.all(grid[1:, 0, 0] > grid[:-1, 0, 0])
    assert float(grid[:, 0, 0].mean()) == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("vit_b_16", (3, 30, 30), r"multiple of 16 pixels\. Found 30x30\. Write for example `image_size=32`"),
        ("vit_b_16", (3, 32, 48), "must be square"),
        ("resnet18", (1, 64, 64), r"must have 3 channels\. Found 1"),
        (
            "convnext_tiny",
            (3, 28, 28),
            r"must suit model `convnext_tiny`\. Found 3x28x28 .* Choose another `image_size`",
        ),
    ],
)
def test_images_that_a_network_cannot_take(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        on_meta(name, {}, shape)


class Odd(nn.Module):
    """A network whose last module is a convolution, and which has two linear layers before it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Flatten(), nn.Linear(12, 8))
        self.classifier = nn.Linear(8, 5)
        self.unused = nn.Conv2d(1, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.stem(x).relu())


def test_a_head_that_is_not_linear_is_named_with_those_that_are() -> None:
    with pytest.raises(ConfigError) as caught:
        split(Odd(), None, 0.0, "model `odd`")
    assert "The head of model `odd` must be a linear layer" in str(caught.value)
    assert "The module found last, `unused`, is Conv2d" in str(caught.value)
    assert "`model_options.head=NAME`; linear layers are `classifier`, `stem.1`" in str(caught.value)
    with pytest.raises(ConfigError, match="no linear layer; take another"):
        split(nn.Sequential(nn.Conv2d(1, 1, 1)), None, 0.0, "model `conv`")


def test_a_named_head_is_taken_and_must_be_the_last_layer() -> None:
    network, x = Odd(), torch.randn(4, 3, 2, 2)
    expected = network(x)
    assert torch.equal(split(network, "classifier", 0.0, "model `odd`")(x), expected)
    with torch.device("meta"):
        inner = split(Odd(), "stem.1", 0.0, "model `odd`")
    with pytest.raises(ConfigError, match=r"must be its last layer|Images must suit"):
        check_forward(inner, (3, 2, 2), 5, "model `odd`")
    with torch.device("meta"):
        square = nn.Sequential(nn.Flatten(), nn.Linear(12, 12), nn.Linear(12, 5))
        wrong = split(square, "1", 0.0, "model `square`")
    with pytest.raises(ConfigError, match=r"must be its last layer\. Found `1`, from 12 features to 12 outputs"):
        check_forward(wrong, (3, 2, 2), 5, "model `square`")


def test_timm_names_are_models_and_others_with_a_colon_are_not() -> None:
    assert "timm:anything" in MODELS
    assert "tim:anything" not in MODELS
