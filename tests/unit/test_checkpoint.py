"""Checkpoints: bits in = bits out, every damage named with a sentence of its own, no pickle."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from difc_ray.errors import CheckpointError
from difc_ray.runs.checkpoint import (
    DamagedCheckpointError,
    Snapshot,
    best,
    compare_layout,
    find_newest_run,
    load,
    newest_valid,
    save,
)
from difc_ray.runs.state import Progress, train_state
from difc_ray.step.coordinator import TrainState
from difc_ray.vectors import ParameterLayout
from tests.checkpoints import (
    FILES,
    ROOT,
    assert_same,
    names,
    raw,
    sha256sum,
    snapshot_of,
)

# --------------------------------------------------------------------------------------------------- round trip


def test_round_trip_is_bitwise(tmp_path: Path) -> None:
    snapshot = snapshot_of(7)
    path = save(tmp_path / "run" / "checkpoints", snapshot, keep=2, best=False)
    assert path.name == "step-00000007"
    assert names(path) == sorted(FILES)
    assert_same(load(path), snapshot)


def test_every_part_of_a_training_state_has_a_name() -> None:
    state = TrainState(
        step=4,
        theta_P=torch.tensor([1.0, 2.0]),
        buffers={"n.mean": torch.tensor(1.0)},
        optimizer={"exp_avg": torch.tensor([0.5, 0.5])},
        harmonizer={"gram": np.eye(2), "n": np.array(3)},
        curvature={"diagonal": torch.ones(2)},
        loss={"margins": np.array([0.1], dtype=np.float32)},
        skipped=[2],
    )
    assert all(getattr(state, each.name) for each in fields(state) if each.name != "theta_P"), "a part is empty"
    named = state.named()
    assert sorted(named) == [
        "buffer.n.mean", "curvature.diagonal", "harmonizer.gram", "harmonizer.n", "loss.margins", "optimizer.exp_avg",
        "theta",
    ]  # fmt: skip
    again = TrainState.from_named(named, step=4, skipped=[2])
    assert (again.step, again.skipped) == (4, [2])
    assert {name: raw(value) for name, value in again.named().items()} == {n: raw(v) for n, v in named.items()}
    assert all(isinstance(value, np.ndarray) for value in [*again.harmonizer.values(), *again.loss.values()])
    assert again.theta_P.data_ptr() == state.theta_P.data_ptr()


def test_a_checkpoint_of_the_first_version_is_read(tmp_path: Path) -> None:
    """Written file by file as version 1 of the format has it: a change of ours must not make old runs unreadable."""
    folder = tmp_path / "step-00000004"
    folder.mkdir()
    weight, layout = torch.tensor([[1.0, 2.0]]), ParameterLayout.of(torch.nn.Linear(2, 1))
    save_file({"weight": weight, "bias": torch.zeros(1), "buffer.n": torch.tensor(7)}, folder / "weights.safetensors")
    save_file(
        {
            "optimizer.exp_avg": torch.tensor([0.1, 0.2, 0.3]),
            "harmonizer.gram": torch.eye(2, dtype=torch.float64),
            "curvature.diagonal": torch.ones(3),
            "loss.margins": torch.tensor([0.5]),
        },
        folder / "state.safetensors",
    )
    progress = {"evaluated": 4, "best_step": 2, "best_score": 0.5, "elapsed_s": 1.0, "seconds": {"step": 0.5}}
    identity = {"data": "abc", "class_names": ["a"], "versions": {"torch": "2.14.1"}}
    meta = {"step": 4, "skipped": [3], "progress": progress, "identity": identity}
    (folder / "state.json").write_text(json.dumps(meta))
    (folder / "config.yaml").write_text("seed: 0\n")
    listed = {n: {"bytes": (folder / n).stat().st_size, "sha256": sha256sum(folder / n)} for n in FILES[:-1]}
    manifest = {"format": "difc_ray checkpoint", "schema": 1, "step": 4, "files": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))

    snapshot = load(folder)
    state = train_state(snapshot, layout)
    assert (state.step, state.skipped) == (4, [3])
    assert state.theta_P.tolist() == [1.0, 2.0, 0.0]
    assert (state.buffers, state.optimizer["exp_avg"].tolist()) == (
        {"n": torch.tensor(7)},
        pytest.approx([0.1, 0.2, 0.3]),
    )
    assert (state.harmonizer["gram"] == np.eye(2)).all()
    assert state.curvature["diagonal"].tolist() == [1.0] * 3
    assert state.loss["margins"].tolist() == [0.5]
    assert asdict(Progress(**snapshot.meta["progress"])) == progress


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, -0.0, 3e38], dtype=torch.bfloat16),
        torch.tensor([1.5, 6e-8], dtype=torch.float16),
        torch.tensor([1e-310, 0.1], dtype=torch.float64),
        torch.tensor([2**62 + 1, -1]),
        torch.tensor([True, False]),
        torch.tensor(3.25),
        torch.tensor(2**53 + 1),
        torch.zeros(0, 4),
        torch.arange(12.0).view(3, 4).T,
        torch.arange(10.0)[::2],
        torch.full((2, 2), 0.5, requires_grad=True),
    ],
    ids=["bf16", "f16", "f64", "int64", "bool", "0-dim", "0-dim int64", "empty", "transposed", "strided", "parameter"],
)
def test_every_kind_of_tensor_round_trips(tmp_path: Path, tensor: torch.Tensor) -> None:
    snapshot = Snapshot({"w": tensor, "alias": tensor}, {"optimizer.x": tensor}, {"step": 1}, "")
    found = load(save(tmp_path, snapshot, keep=1, best=False))
    expected = tensor.detach()
    for each in (found.named_weights["w"], found.named_weights["alias"], found.tensors["optimizer.x"]):
        assert (each.dtype, each.shape) == (expected.dtype, expected.shape)
        assert raw(each) == raw(expected)


def test_empty_state_and_special_floats_round_trip(tmp_path: Path) -> None:
    nan = torch.tensor([float("nan"), float("inf"), -0.0])
    snapshot = Snapshot(
        {"w": torch.ones(1), "buffer.mask": torch.tensor([float("-inf")])}, {"harmonizer.h": nan}, {"step": 0}, ""
    )
    found = load(save(tmp_path, snapshot, keep=1, best=False))
    assert raw(found.tensors["harmonizer.h"]) == raw(nan)
    assert load(save(tmp_path, Snapshot({}, {}, {"step": 1}, ""), keep=1, best=False)).tensors == {}


def test_loaded_tensors_do_not_depend_on_the_files(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot_of(1), keep=1, best=False)
    found = load(path)
    with (path / "weights.safetensors").open("r+b") as file:
        file.write(bytes((path / "weights.safetensors").stat().st_size))
    found.named_weights["f.bias"].add_(0.0)
    assert_same(found, snapshot_of(1))


def test_weights_are_readable_without_this_package(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot_of(1), keep=1, best=False)
    assert set(load_file(path / "weights.safetensors")) == {"f.weight", "f.bias", "buffer.count"}
    manifest = json.loads((path / "manifest.json").read_text())
    for name in FILES[:-1]:
        digest = sha256sum(path / name)
        assert manifest["files"][name] == {"bytes": (path / name).stat().st_size, "sha256": digest}


# ------------------------------------------------------------------------------------------- keeping and pruning


def test_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in range(1, 8):
        save(tmp_path, snapshot_of(step), keep=2, best=step == 3)
    assert names(tmp_path) == ["best.json", "latest", "step-00000003", "step-00000006", "step-00000007"]
    assert best(tmp_path) == tmp_path / "step-00000003"
    assert (tmp_path / "latest").read_text() == "step-00000007\n"
    save(tmp_path, snapshot_of(8), keep=1, best=True)
    assert names(tmp_path) == ["best.json", "latest", "step-00000008"]
    assert json.loads((tmp_path / "best.json").read_text()) == {"checkpoint": "step-00000008", "step": 8}


def test_best_is_none_where_there_is_none(tmp_path: Path) -> None:
    assert best(tmp_path / "absent") is None
    save(tmp_path, snapshot_of(1), keep=1, best=False)
    assert best(tmp_path) is None
    for content in ("", "[]", '{"checkpoint": 3}', '{"checkpoint": "../x"}', '{"checkpoint": "step-00000009"}'):
        (tmp_path / "best.json").write_text(content)
        assert best(tmp_path) is None


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, snapshot_of(5), keep=2, best=True)
    changed = snapshot_of(5)
    changed.config_yaml = "other: true\n"
    save(tmp_path, changed, keep=2, best=False)
    assert_same(newest_valid(tmp_path)[1], changed)
    assert names(tmp_path) == ["best.json", "latest", "step-00000005"]
    assert best(tmp_path) == tmp_path / "step-00000005"


def test_a_left_future_is_removed(tmp_path: Path) -> None:
    """After falling back from a damaged checkpoint the run writes earlier steps again; they must survive pruning."""
    for step in (10, 20, 30, 40):
        save(tmp_path, snapshot_of(step), keep=4, best=step == 30)
    save(tmp_path, snapshot_of(25), keep=2, best=False)
    assert names(tmp_path) == ["best.json", "latest", *(f"step-{step:08d}" for step in (20, 25, 30))]


def test_newest_valid_goes_by_step_and_ignores_other_names(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save(tmp_path, snapshot_of(step), keep=5, best=False)
    for name in ("step-1", "step-abc", "notes", "step-00000009.bak"):
        (tmp_path / name).mkdir()
    path, snapshot, rejected = newest_valid(tmp_path)
    assert (path.name, snapshot.step, rejected) == ("step-100000000", 100_000_000, [])


# -------------------------------------------------------------------------------------------------------- damage


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 0x10
    path.write_bytes(content)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def replace_with_pickle(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps({"step": 3}))


def replace_and_sign(folder: Path, name: str, content: bytes) -> None:
    """Puts other content into a file, with a manifest that matches it."""
    (folder / name).write_bytes(content)
    digest = sha256sum(folder / name)
    edit_manifest(folder, lambda m: m["files"].update({name: {"bytes": len(content), "sha256": digest}}))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing weights": (lambda d: (d / FILES[0]).unlink(), "`weights.safetensors` is missing"),
    "missing state": (lambda d: (d / FILES[1]).unlink(), "`state.safetensors` is missing"),
    "missing meta": (lambda d: (d / FILES[2]).unlink(), "`state.json` is missing"),
    "missing config": (lambda d: (d / FILES[3]).unlink(), "`config.yaml` is missing"),
    "missing manifest": (lambda d: (d / FILES[4]).unlink(), "`manifest.json` is missing, so it was not written to"),
    "empty weights": (lambda d: (d / FILES[0]).write_bytes(b""), "`weights.safetensors` is empty"),
    "empty manifest": (lambda d: (d / FILES[4]).write_bytes(b""), "`manifest.json` is empty"),
    "truncated weights": (lambda d: os.truncate(d / FILES[0], 100), r"`weights.safetensors` is truncated \(100 of "),
    "truncated manifest": (lambda d: os.truncate(d / FILES[4], 100), "`manifest.json` is not JSON"),
    "longer": (lambda d: (d / FILES[3]).write_text("x" * 500), r"`config.yaml` has \d+ bytes instead of \d+"),
    "bit flip in weights": (lambda d: flip(d / FILES[0], -1), r"`weights.safetensors` was changed .* \(sha256"),
    "bit flip in state": (lambda d: flip(d / FILES[1], -1), "`state.safetensors` was changed"),
    "bit flip in meta": (lambda d: flip(d / FILES[2], 3), "`state.json` was changed"),
    "wrong sha": (
        lambda d: edit_manifest(d, lambda m: m["files"][FILES[0]].update(sha256="0" * 64)),
        "`weights.safetensors` was changed after it was written",
    ),
    "not listed": (lambda d: edit_manifest(d, lambda m: m["files"].pop(FILES[1])), "does not list `state.safetensors`"),
    "no list": (lambda d: edit_manifest(d, lambda m: m.update(files=3)), "does not list `weights.safetensors`"),
    "newer schema": (lambda d: edit_manifest(d, lambda m: m.update(schema=2)), "schema version 2, newer than 1"),
    "no schema": (lambda d: edit_manifest(d, lambda m: m.pop("schema")), "no valid schema version"),
    "other step": (lambda d: edit_manifest(d, lambda m: m.update(step=4)), "name different steps"),
    "other format": (lambda d: edit_manifest(d, lambda m: m.update(format="x")), "not a difc_ray checkpoint"),
    "list as manifest": (lambda d: (d / FILES[4]).write_text("[1]"), "not a difc_ray checkpoint"),
    "binary manifest": (lambda d: (d / FILES[4]).write_bytes(b"\xff\xfe\x00"), "`manifest.json` is not JSON"),
    "empty directory": (lambda d: [file.unlink() for file in d.iterdir()], "the directory is empty"),
    "pickle as weights": (
        lambda d: replace_with_pickle(d, FILES[0]),
        r"not a difc_ray checkpoint \(`weights.safetensors` contains Python objects\)",
    ),
    "pickle as manifest": (lambda d: replace_with_pickle(d, FILES[4]), r"\(`manifest.json` contains Python objects\)"),
    "torch archive, signed": (
        lambda d: (torch.save({}, d / "x"), replace_and_sign(d, FILES[1], (d / "x").read_bytes())),
        r"\(`state.safetensors` contains Python objects\)",
    ),
    "text as weights, signed": (lambda d: replace_and_sign(d, FILES[0], b"hello" * 9), "is not a safetensors file"),
    "list as meta, signed": (lambda d: replace_and_sign(d, FILES[2], b"[1]"), "`state.json` names no step"),
    "meta not JSON, signed": (lambda d: replace_and_sign(d, FILES[2], b"step: 3"), "text files cannot be read"),
    "config not UTF-8, signed": (lambda d: replace_and_sign(d, FILES[3], b"\xff\xff"), "text files cannot be read"),
    "NaN weight, signed": (
        lambda d: replace_and_sign(d, FILES[0], with_nan(d / FILES[0])),
        "step 3 contains non-finite values in `f.weight`",
    ),
    "a torch.save folder": (
        lambda d: ([file.unlink() for file in d.iterdir()], (d / "model.pt").write_bytes(b"")),
        r"not a difc_ray checkpoint \(contains Python objects: model.pt\)",
    ),
    "another folder": (
        lambda d: ([file.unlink() for file in d.iterdir()], (d / "a.txt").write_text("")),
        "no `manifest.json` among its files",
    ),
}


def with_nan(path: Path) -> bytes:
    """The file with the first float of its data replaced by a NaN."""
    content = bytearray(path.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    start = 8 + int.from_bytes(content[:8], "little") + header["f.weight"]["data_offsets"][0]
    content[start : start + 4] = np.float32("nan").tobytes()
    return bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_has_its_own_sentence_and_the_previous_one_is_used(tmp_path: Path, damage: str) -> None:
    older, newer = (save(tmp_path, snapshot_of(step), keep=2, best=False) for step in (2, 3))
    harm, words = DAMAGES[damage]
    harm(newer)
    with pytest.raises(DamagedCheckpointError, match=words) as caught:
        load(newer)
    assert str(newer) in str(caught.value)
    assert caught.value.exit_code == 6
    path, snapshot, rejected = newest_valid(tmp_path)
    assert path == older
    assert_same(snapshot, snapshot_of(2))
    assert [(each.path, each.reason) for each in rejected] == [(newer, caught.value.reason)]
    # The run goes on from there: the damaged one is replaced or removed, and not taken for the newest again.
    save(tmp_path, snapshot_of(3), keep=2, best=False)
    assert_same(newest_valid(tmp_path)[1], snapshot_of(3))


def test_any_flipped_bit_is_found_or_without_effect(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot_of(3), keep=1, best=False)
    rng = np.random.Generator(np.random.PCG64(0))
    found = 0
    for name in FILES:
        intact = (path / name).read_bytes()
        for position in rng.choice(len(intact), size=min(60, len(intact)), replace=False):
            content = bytearray(intact)
            content[position] ^= 1 << int(rng.integers(8))
            (path / name).write_bytes(content)
            try:
                assert_same(load(path), snapshot_of(3))
                assert name == "manifest.json"  # white space there means nothing
            except DamagedCheckpointError:
                found += 1
        (path / name).write_bytes(intact)
    assert found > 200
    assert_same(load(path), snapshot_of(3))


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "checkpoints", snapshot_of(1), keep=1, best=False)
    (tmp_path / "model.pt").write_bytes(b"\x80\x02}.")
    (tmp_path / "weights.safetensors").write_bytes(b"12345678{}")
    for name, words in {
        "absent": "it does not exist",
        "model.pt": r"not a difc_ray checkpoint \(contains Python objects\)",
        "weights.safetensors": "it is a file, not a directory",
        "checkpoints": "a folder of checkpoints, not one of them .it has step-00000001",
    }.items():
        with pytest.raises(CheckpointError, match=words):
            load(tmp_path / name)


def test_all_damaged_is_refused_with_every_reason(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, snapshot_of(step), keep=2, best=False)
    (tmp_path / "step-00000001" / "state.json").unlink()
    flip(tmp_path / "step-00000002" / "weights.safetensors", -1)
    with pytest.raises(CheckpointError) as caught:
        newest_valid(tmp_path)
    message = str(caught.value)
    assert "step-00000002: `weights.safetensors` was changed" in message
    assert "step-00000001: `state.json` is missing" in message


@pytest.mark.parametrize("exists", [True, False])
def test_no_checkpoint_is_said(tmp_path: Path, exists: bool) -> None:
    with pytest.raises(CheckpointError, match="got none"):
        newest_valid(tmp_path if exists else tmp_path / "absent")


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", FILES)
def test_pickles_are_never_run(tmp_path: Path, name: str, protocol: int) -> None:
    marker = tmp_path / "marker"
    payload = pickle.dumps(Evil(marker), protocol=protocol)
    path = save(tmp_path / "c", snapshot_of(1), keep=1, best=False)
    if name == "manifest.json":
        (path / name).write_bytes(payload)
    else:
        replace_and_sign(path, name, payload)
    if (name, protocol) == ("config.yaml", 0):
        assert load(path).config_yaml == payload.decode()  # text is text; nobody parses it here
    else:
        with pytest.raises(DamagedCheckpointError):
            load(path)
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists()  # the payload works: the test could have failed


def test_sources_use_no_pickle() -> None:
    for file in (ROOT / "difc_ray" / "runs" / "checkpoint").glob("*.py"):
        text = file.read_text()
        assert "import pickle" not in text
        assert "torch.load" not in text
        assert "torch.save(" not in text


# ------------------------------------------------------------------------------------------------ model and runs


def test_compare_layout_shows_three_mismatches_with_both_shapes() -> None:
    snapshot = snapshot_of(1)
    compare_layout(snapshot, {"f.weight": (2, 3), "f.bias": (3,), "buffer.count": ()})
    with pytest.raises(CheckpointError) as caught:
        compare_layout(snapshot, {"f.weight": (2, 4), "head.weight": (1,), "x": (1,), "y": (2,)})
    message = str(caught.value)
    assert "`f.weight` is (2, 3) in the checkpoint and (2, 4) in the model" in message
    assert "`head.weight` is absent in the checkpoint and (1,) in the model" in message
    assert "`y`" not in message
    assert "and 3 more" in message
    with pytest.raises(CheckpointError, match=r"`buffer.count` is \(\) in the checkpoint and absent in the model"):
        compare_layout(snapshot, {"f.weight": (2, 3), "f.bias": (3,)})


def test_find_newest_run(tmp_path: Path) -> None:
    assert find_newest_run(tmp_path) is None
    assert find_newest_run(tmp_path / "absent") is None
    for age, name in ((30, "b"), (10, "a"), (20, "c")):
        path = save(tmp_path / name / "checkpoints", snapshot_of(age), keep=1, best=False)
        os.utime(path / "manifest.json", (time.time() - age, time.time() - age))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "file").write_text("")
    assert find_newest_run(tmp_path) == tmp_path / "a"
