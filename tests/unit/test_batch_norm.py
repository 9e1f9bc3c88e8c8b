"""BatchNorm's running statistics: frozen, shared as the mean, or kept per source; and what never moves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from difc_ray.config import Config, batch_norm_policy, cautions, check
from difc_ray.engines.inline import InlineEngine
from difc_ray.errors import CheckpointError, ConfigError
from difc_ray.models import MODELS, Model, build_model, train_mode
from difc_ray.runs.checkpoint import Snapshot, compare_layout
from difc_ray.runs.evaluate import evaluate
from difc_ray.runs.setup import expected_shapes, prepare
from difc_ray.runs.state import Progress, export_model, make_snapshot, train_state
from difc_ray.step.coordinator import TrainState
from difc_ray.step.evaluation import evaluate_state
from difc_ray.step.factory import load_domain, model_of
from difc_ray.step.worker import LocalStep, Token, domain_buffer
from difc_ray.vectors import ParameterLayout
from tests.runs import digest, run_inline, same_records, small_config, train

SOURCES = ("mnist", "optdigits", "fonts")
WEIGHTS = (0.5, 0.3, 0.2)
MEAN, VAR = "featurizer.1.running_mean", "featurizer.1.running_var"


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with BatchNorm that trains in milliseconds."""

    def tiny(shape: tuple[int, int, int], n_outputs: int, options: Any) -> Model:
        layers = (nn.Conv2d(3, 4, 5, stride=3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        return Model(nn.Sequential(*layers), nn.Linear(16, n_outputs))

    monkeypatch.setitem(MODELS._items, "tiny", tiny)


def tiny_config(batch_norm: str, **changes: Any) -> Config:
    harmonize = {"rule": "mean", "weights": list(WEIGHTS)}
    return small_config(model="tiny", batch_norm=batch_norm, harmonize=harmonize, **changes)


def engine_at(config: Config, steps: int) -> InlineEngine:
    engine = InlineEngine(config, "test", lambda: False, lambda text: None)
    engine.connect()
    engine.start(prepare(config, None).state)
    engine.advance(steps)
    return engine


def batch_statistics(
    config: Config, domain: str, step: int, theta_P: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and unbiased variance of the convolution's output on the batch of a step, in float64."""
    model, _ = model_of(config)
    torch.nn.utils.vector_to_parameters(theta_P, model.parameters())
    images = load_domain(config, domain).batch(config.seed, step, config.batch_size).images
    out = model.featurizer[0](images).detach().double().transpose(0, 1).flatten(1)
    return out.mean(1), out.var(1)


@pytest.mark.parametrize("policy", ["mean", "per_domain"])
def test_running_statistics_are_those_of_the_batches(policy: str) -> None:
    """0.9 of the old and 0.1 of the batch for every source; the shared ones are their weighted mean."""
    config = tiny_config(policy)
    own = {name: (torch.zeros(4).double(), torch.ones(4).double()) for name in SOURCES}
    engine = engine_at(config, 0)
    for step in range(3):
        theta_P = engine.snapshot().theta_P
        engine.advance(1)
        for name, (mean, var) in own.items():
            m, v = batch_statistics(config, name, step, theta_P)
            own[name] = (0.9 * mean + 0.1 * m, 0.9 * var + 0.1 * v)
    buffers = engine.snapshot().buffers
    for key, part in ((MEAN, 0), (VAR, 1)):
        shared = sum(w * own[name][part] for w, name in zip(WEIGHTS, SOURCES, strict=True))
        torch.testing.assert_close(buffers[key].double(), shared, rtol=1e-5, atol=1e-6)
        for name in SOURCES:
            if policy == "per_domain":
                found = buffers[domain_buffer(name, key)].double()
                torch.testing.assert_close(found, own[name][part], rtol=1e-5, atol=1e-6)
            else:
                assert domain_buffer(name, key) not in buffers
    assert int(buffers["featurizer.1.num_batches_tracked"]) == 3


def test_the_parameters_do_not_depend_on_where_the_statistics_are_kept() -> None:
    """In training BatchNorm normalises by the batch: `mean` and `per_domain` take the same steps."""
    shared, own = (engine_at(tiny_config(policy), 4).snapshot() for policy in ("mean", "per_domain"))
    assert torch.equal(shared.theta_P, own.theta_P)
    torch.testing.assert_close(shared.buffers[MEAN], own.buffers[MEAN], rtol=1e-6, atol=1e-7)
    frozen = engine_at(tiny_config("freeze"), 4).snapshot()
    assert not torch.equal(frozen.theta_P, own.theta_P)


def test_frozen_statistics_stay_and_scale_and_shift_train() -> None:
    config = tiny_config("freeze")
    start = prepare(config, None)
    before = start.state.theta_P.clone()
    after, records = run_inline(config, 3)
    assert not any(record.skipped for record in records)
    assert all(torch.equal(after.buffers[name], value) for name, value in start.state.buffers.items())
    layout = start.layout
    for name in ("featurizer.1.weight", "featurizer.1.bias"):
        assert not torch.equal(after.theta_P[layout.slices[name]], before[layout.slices[name]])
    model, _ = model_of(config)
    train_mode(model, frozen=True)
    assert [module.training for module in model.featurizer] == [True, False, True, True, True]
    train_mode(model, frozen=False)
    assert model.featurizer[1].training


def test_frozen_batches_normalise_by_the_kept_statistics_so_one_image_will_do() -> None:
    assert check(tiny_config("freeze", batch_size=1)) == []
    _, records = run_inline(tiny_config("freeze", batch_size=1, alignment={"alpha": 0, "beta": 0}), 2)
    assert not any(record.skipped for record in records)
    with pytest.raises(ConfigError, match="normalises over the batch"):
        tiny_config("mean", batch_size=1)


def test_a_source_is_evaluated_with_its_own_statistics_and_the_target_with_the_mean() -> None:
    config = tiny_config("per_domain", target="mnistm")
    engine = engine_at(config, 3)
    state = engine.snapshot()
    found = {m.domain: m for m in engine.evaluate([("fonts", "val"), ("mnistm", "all")])}
    model, loss = model_of(config)
    for domain, split, prefix in (("fonts", "val", "fonts/"), ("mnistm", "all", "")):
        torch.nn.utils.vector_to_parameters(state.theta_P, model.parameters())
        for name, buffer in model.named_buffers():
            buffer.copy_(state.buffers[prefix + name])
        total, n = 0.0, 0
        for batch in load_domain(config, domain).evaluation_batches(split, 64):
            with torch.no_grad():
                total += len(batch) * float(loss.value(model.eval()(batch.images), batch.labels))
            n += len(batch)
        assert found[domain].loss == pytest.approx(total / n, rel=1e-5)
    mean = tiny_config("mean", target="mnistm")
    shared = {m.domain: m for m in engine_at(mean, 3).evaluate([("fonts", "val"), ("mnistm", "all")])}
    assert shared["fonts"].loss != pytest.approx(found["fonts"].loss, rel=1e-4)
    assert shared["mnistm"].loss == pytest.approx(found["mnistm"].loss, rel=1e-5)


@pytest.mark.parametrize("policy", ["mean", "per_domain"])
@pytest.mark.parametrize(
    "changes",
    [
        {"alignment": {"penalty": "hgp"}},
        {"alignment": {"estimator": "hutchinson", "probes": 3}},
        {"rule": "flat_dualproj", "curvature": {"kind": "diagonal", "rest": "hutchinson"}},
        {"rule": "flat_dualproj", "curvature": {"kind": "hvp", "order": 3}},
    ],
)
def test_penalties_flatness_and_evaluation_move_no_statistics(policy: str, changes: dict[str, Any]) -> None:
    """A batch moves them once, whatever else is computed from it: as in a run that computes nothing else."""
    harmonize: dict[str, Any] = {k: v for k, v in changes.items() if k in ("rule", "curvature")}
    plain = small_config(model="tiny", batch_norm=policy, alignment={"alpha": 0, "beta": 0}, harmonize={"rule": "mean"})
    asked = small_config(
        model="tiny", batch_norm=policy, harmonize=harmonize,
        alignment=changes.get("alignment", {"alpha": 0, "beta": 0} if harmonize else {}),
    )  # fmt: skip
    engine, expected = engine_at(asked, 1), engine_at(plain, 1).snapshot().buffers
    held = engine.snapshot().buffers
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[name], value) for name, value in expected.items())
    before = digest(engine.snapshot())
    engine.evaluate([(domain, split) for domain in SOURCES for split in ("val", "test")])
    assert digest(engine.snapshot()) == before


def test_a_repeated_first_half_moves_statistics_once() -> None:
    """As of a replaced worker, or after an evaluation in between."""
    config = tiny_config("per_domain", alignment={"alpha": 0, "beta": 0})
    state = engine_at(config, 2).snapshot().model_state()
    model, loss = model_of(config)
    step = LocalStep(config, load_domain(config, "fonts"), model, loss)
    token = Token(run="r", attempt=0, step=2, domain="fonts")
    found = []
    for _ in range(2):
        step.statistics(state, token)
        found.append(step.rows(token, {}))
        evaluate_state(step, state, step.domain, "val")
    assert all(np.array_equal(found[0].buffers[name], value) for name, value in found[1].buffers.items())
    assert int(found[0].buffers["featurizer.1.num_batches_tracked"]) == 3


# ---- checkpoints, resuming, export -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["freeze", "mean", "per_domain"])
def test_a_checkpoint_gives_the_state_back_and_the_run_goes_on(policy: str) -> None:
    config = tiny_config(policy)
    straight, records = run_inline(config, 5)
    start = prepare(config, None)
    half, first = run_inline(config, 2)
    snapshot = make_snapshot(config, half, start.layout, Progress(), start.identity)
    compare_layout(snapshot, expected_shapes(model_of(config)[0], snapshot))
    resumed = train_state(snapshot, start.layout)
    assert digest(resumed) == digest(half)
    ended, rest = run_inline(config, 3, resumed)
    assert digest(ended) == digest(straight)
    assert same_records(first + rest, records)


def test_a_checkpoint_without_a_source_s_statistics_is_refused() -> None:
    config = tiny_config("per_domain")
    start = prepare(config, None)
    snapshot = make_snapshot(config, start.state, start.layout, Progress(), start.identity)
    lost = f"buffer.fonts/{MEAN}"
    less = {name: value for name, value in snapshot.named_weights.items() if name != lost}
    with pytest.raises(CheckpointError, match=f"`{lost}` is absent in the checkpoint"):
        compare_layout(
            Snapshot(less, snapshot.tensors, snapshot.meta, snapshot.config_yaml),
            expected_shapes(model_of(config)[0], snapshot),
        )


@pytest.mark.slow
def test_a_run_is_resumed_evaluated_and_exported(tmp_path: Path) -> None:
    """The whole command, with an interruption; the exported model has the mean."""
    settings = {"output": str(tmp_path), "target": "mnistm", "steps": 4, "eval_every": 2, "checkpoint": {"every": 2}}
    whole = train(tiny_config("per_domain", **settings, engine="inline", name="whole"))
    train(tiny_config("per_domain", **{**settings, "steps": 2}, engine="inline", name="parts"))
    parts = train(tiny_config("per_domain", **settings, engine="inline", name="parts", resume=str(tmp_path / "parts")))
    assert parts.summary["accuracy"] == whole.summary["accuracy"]
    one, other = (load_file(Path(r.summary["checkpoint"]) / "weights.safetensors") for r in (whole, parts))
    assert one.keys() == other.keys()
    assert f"buffer.fonts/{MEAN}" in one
    assert all(torch.equal(one[name], other[name]) for name in one)
    _, again = evaluate(whole.run_dir)
    assert again.summary["accuracy"] == whole.summary["accuracy"]
    _, narrower = evaluate(whole.run_dir, ["sources=fonts,mnist", "harmonize.weights=0.5,0.5"])
    assert narrower.summary["accuracy"]["fonts"] == whole.summary["accuracy"]["fonts"]
    held = load_file(whole.run_dir / "export" / "weights.safetensors")
    described = json.loads((whole.run_dir / "export" / "model.json").read_text("utf-8"))
    model = build_model(described["name"], tuple(described["image_shape"]), described["n_outputs"], {}, 0)
    model.load_state_dict(held)
    assert torch.equal(held[MEAN], one[f"buffer.{MEAN}"])


def test_exported_names_are_those_of_the_state_dict_and_counters_are_there(tmp_path: Path) -> None:
    from difc_ray.runs.checkpoint import save

    config = small_config(model="resnet18", batch_norm="per_domain")
    start = prepare(config, None)
    snapshot = make_snapshot(config, start.state, start.layout, Progress(), start.identity)
    folder = save(tmp_path, snapshot, keep=1, best=False)
    export_model(config, folder, tmp_path / "export", start.identity)
    model, _ = model_of(config)
    model.load_state_dict(load_file(tmp_path / "export" / "weights.safetensors"))


# ---- configuration ---------------------------------------------------------------------------------------------------


def test_auto_freezes_pretrained_statistics() -> None:
    assert batch_norm_policy(Config()) == "mean"
    assert batch_norm_policy(Config(model_options={"weights": "none"})) == "mean"
    assert batch_norm_policy(Config(model_options={"weights": "imagenet"})) == "freeze"
    assert batch_norm_policy(Config(model_options={"weights": "imagenet"}, batch_norm="per_domain")) == "per_domain"
    assert tiny_config("auto").batch_norm == "mean"


def test_freezing_random_statistics_is_told() -> None:
    assert any("normalises nothing" in text for text in cautions(tiny_config("freeze")))
    assert not any("normalises nothing" in text for text in cautions(tiny_config("mean")))
    pretrained = Config(batch_norm="freeze", model_options={"weights": "imagenet"})
    assert not any("normalises nothing" in text for text in cautions(pretrained))


def test_a_buffer_with_a_slash_is_refused_under_per_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    def slashed(shape: tuple[int, int, int], n_outputs: int, options: Any) -> Model:
        featurizer = nn.Sequential(nn.Flatten())
        featurizer.add_module("a/b", nn.BatchNorm1d(2352))
        return Model(featurizer, nn.Linear(2352, n_outputs))

    monkeypatch.setitem(MODELS._items, "slashed", slashed)
    with pytest.raises(ConfigError, match=r"no `/` in their names .* Found `featurizer\.a/b\.running_mean`"):
        prepare(small_config(model="slashed", batch_norm="per_domain"), None)
    prepare(small_config(model="slashed", batch_norm="mean"), None)


def test_the_state_on_the_wire_has_all_copies() -> None:
    state = TrainState(step=0, theta_P=torch.zeros(3), buffers={"b": torch.ones(1), "photo/b": torch.zeros(1)})
    assert set(state.model_state().buffers) == {"b", "photo/b"}
    assert ParameterLayout.of(nn.Linear(2, 1)).size == 3
