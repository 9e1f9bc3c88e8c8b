"""Checkpoints from strangers: whole by their hashes, and of a content that no run could have written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from difc_ray.errors import CheckpointError
from difc_ray.runs.checkpoint import DamagedCheckpointError, UnreadableCheckpointError, newest_valid
from difc_ray.runs.reading import newest_checkpoint, read_checkpoint
from tests.checkpoints import FILES, sha256sum
from tests.faults import end_of
from tests.runs import run_inline, small_config, train

STEPS = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with a checkpoint after every third."""
    output = tmp_path_factory.mktemp("strange")
    config = small_config(
        engine="inline", steps=STEPS, eval_every=STEPS, checkpoint={"every": 3, "keep": 3}, tracking={"mode": "off"},
        output=str(output), name="run", loss="ldam",
    )  # fmt: skip
    return train(config).run_dir


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(".lock"))
    return tmp_path / "run"


def newest(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / f"step-{STEPS:08d}"


def sign(folder: Path) -> None:
    """A manifest that fits whatever the files are now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name in FILES[:4]:
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256sum(folder / name)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def tensors(change: Callable[[dict[str, Any]], Any], file: str = "state.safetensors") -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        held: dict[str, Any] = load_file(folder / file)
        change(held)
        save_file(held, folder / file)

    return harm


def meta(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def harm(folder: Path) -> None:
        held = json.loads((folder / "state.json").read_text())
        change(held)
        (folder / "state.json").write_text(json.dumps(held))

    return harm


def cut(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda held: held.update({name: held[name][:1].clone()})


STRANGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "moments of one parameter": (tensors(cut("optimizer.exp_avg")), r"`exp_avg` of its state is torch.float32 \(1,\)"),
    "moments of integers": (
        tensors(lambda held: held.update({"optimizer.exp_avg_sq": held["optimizer.exp_avg_sq"].int()})),
        "`exp_avg_sq` of its state is torch.int32",
    ),
    "no moments": (
        tensors(lambda held: [held.pop(name) for name in list(held) if name.startswith("optimizer.")]),
        "the optimizer `adam` keeps exp_avg, exp_avg_sq, step, and it has nothing",
    ),
    "moments of another optimizer": (
        tensors(lambda held: held.update({"optimizer.momentum_buffer": held.pop("optimizer.exp_avg")})),
        "and it has exp_avg_sq, momentum_buffer, step",
    ),
    "a tensor of nothing": (
        tensors(lambda held: held.update({"gift.x": torch.zeros(2)})), "`gift.x` is no part of a training state",
    ),
    "weights of integers": (
        tensors(lambda held: held.update({n: v.to(torch.int64) for n, v in held.items()}), FILES[0]),
        "is of type torch.int64, not float32",
    ),
    "no step to skip": (meta(lambda held: held.pop("skipped")), "`skipped` is wrong .* in its `state.json`"),
    "text for a number": (meta(lambda held: held["progress"].update(best_step="7")), "`progress.best_step` is wrong"),
    "a number for text": (meta(lambda held: held["identity"].update(data=7)), "`identity.data` is wrong"),
    "a class without a name": (
        meta(lambda held: held["identity"].update(class_names=[None])), "`identity.class_names.0` is wrong",
    ),
    "a step to come": (meta(lambda held: held.update(skipped=[2, 99])), "tells of step 99, after its own, 6"),
    "an unknown fact": (meta(lambda held: held["progress"].update(magic=1)), "`progress.magic` .* is not known"),
    "a step below zero": (meta(lambda held: held.update(step=-1)), "`state.json` names no step"),
    "deep nesting": (
        lambda folder: (folder / "state.json").write_text("[" * 100_000) and None, "its text files cannot be read",
    ),
    "an optimizer of a list": (
        lambda folder: (folder / "config.yaml").write_text("optimizer: [1]\n") and None,
        "`optimizer` is wrong .* in its `config.yaml`",
    ),
    "a configuration that is none": (
        lambda folder: (folder / "config.yaml").write_text("a: [\n") and None, "its `config.yaml` cannot be used",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGE)
def test_a_content_that_no_run_wrote_is_damage(copy: Path, kind: str) -> None:
    harm, words = STRANGE[kind]
    harm(newest(copy))
    sign(newest(copy))
    with pytest.raises(DamagedCheckpointError, match=words):
        read_checkpoint(newest(copy))
    snapshot, rejected = newest_checkpoint(copy)
    assert (snapshot.step, [each.path for each in rejected]) == (3, [newest(copy)])


def test_what_a_run_wrote_is_none(run: Path) -> None:
    """Before its first step, too, when the optimizer has no memory yet."""
    assert [read_checkpoint(path).step for path in sorted((run / "checkpoints").glob("step-*"))] == [0, 3, STEPS]


def test_a_run_goes_on_from_the_checkpoint_before_and_ends_in_the_same_bits(run: Path, copy: Path) -> None:
    """With the moments of one parameter torch's fused optimizer wrote beyond the end of its memory."""
    tensors(cut("optimizer.exp_avg"))(newest(copy))
    sign(newest(copy))
    train(small_config(
        engine="inline", steps=STEPS, eval_every=STEPS, checkpoint={"every": 3}, tracking={"mode": "off"},
        resume=str(copy), loss="ldam",
    ))  # fmt: skip
    assert (end_of(copy).weights, end_of(copy).state) == (end_of(run).weights, end_of(run).state)


def test_the_memory_of_the_loss_is_that_of_its_classes(copy: Path) -> None:
    for step in (3, STEPS):
        folder = copy / "checkpoints" / f"step-{step:08d}"
        tensors(cut("loss.margins"))(folder)
        sign(folder)
    with pytest.raises(CheckpointError, match=r"the memory of the loss must be that of `ldam`.*other names, sizes"):
        train(small_config(engine="inline", steps=STEPS, tracking={"mode": "off"}, resume=str(copy), loss="ldam"))


def test_the_memory_of_the_rule_has_its_names(run: Path) -> None:
    config = small_config(harmonize={"rule": "ema", "options": {"inner": "dualproj"}}, steps=3)
    state, _ = run_inline(config, 3)
    name = min(state.harmonizer)
    state.harmonizer["other"] = state.harmonizer.pop(name)
    with pytest.raises(CheckpointError, match=f"memory of `ema` must have .*{name}.*got none called {name}"):
        run_inline(config, 1, state)


@pytest.mark.parametrize("file", ["manifest.json", "weights.safetensors"])
def test_a_storage_that_refuses_is_no_damage(copy: Path, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older checkpoint is not used either: what was learnt since then would be removed after the next save."""
    opened = Path.open

    def refuse(path: Path, *args: Any, **options: Any) -> Any:
        if path == newest(copy) / file:
            raise OSError(5, "Input/output error", str(path))
        return opened(path, *args, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(
        UnreadableCheckpointError, match=r"must be readable, got Input/output error .*Nothing was chang"
    ):
        newest_checkpoint(copy)
    assert newest(copy).is_dir()


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(UnreadableCheckpointError, match="got Permission denied"):
        newest_valid(tmp_path / "checkpoints")
