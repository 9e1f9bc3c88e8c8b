from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from difc_ray.config import (
    Config,
    ConfigProblems,
    cautions,
    check,
    differences,
    documentation,
    flat,
    has_penalty,
    load_config,
    objective_name,
    resolve,
    rule_options,
    run_folder,
    to_yaml,
)
from difc_ray.harmonizers import HARMONIZERS
from tests.sentences import SENTENCE

NO_PENALTY = ["alignment.alpha=0", "alignment.beta=0"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_are_valid_and_as_documented() -> None:
    config = load_config(None)
    assert config == Config()
    assert check(config) == []
    assert (config.sources, config.target) == (("mnist", "optdigits", "fonts"), "mnistm")
    assert (config.batch_size, config.steps, config.optimizer.lr) == (64, 300, 1e-3)
    assert (config.alignment.alpha, config.harmonize.rule, config.harmonize.lam) == (0.1, "ghpp", 0.5)
    rows = documentation()
    dumped = config.model_dump()
    for key, kind, default, doc in rows:
        value: Any = dumped
        for part in key.split("."):
            value = value[part]
        assert value == default, key
        assert kind, key
        assert doc.endswith("."), key
    assert len({key for key, *_ in rows}) == len(rows) == sum(1 for _ in _leaves(dumped))


def _leaves(tree: dict[str, Any]) -> Iterator[Any]:
    for key, value in tree.items():
        if isinstance(value, dict) and not key.endswith(("options", "bundles")):
            yield from _leaves(value)
        else:
            yield value


def test_later_ones_win_key_by_key(folder: Path) -> None:
    Path("a.yaml").write_text(
        "steps: 20\nseed: 4\noptimizer:\n  lr: 1e-2\n  name: sgd\nalignment:\nmodel_options: {dropout: 0.5}\n"
    )
    base = {"steps": 10, "batch_size": 8, "optimizer": {"eps": 1e-6, "lr": 1}, "model_options": {"other": 1}}
    config = load_config(Path("a.yaml"), ["seed=5", "optimizer.name=adamw"], base=base)
    assert (config.steps, config.batch_size, config.seed) == (20, 8, 5)
    assert (config.optimizer.lr, config.optimizer.eps, config.optimizer.name) == (0.01, 1e-6, "adamw")
    assert config.model_options == {"dropout": 0.5}
    assert config.alignment == Config().alignment
    assert base == {"steps": 10, "batch_size": 8, "optimizer": {"eps": 1e-6, "lr": 1}, "model_options": {"other": 1}}


def test_a_free_option_changes_alone() -> None:
    base = {"model_options": {"hidden": [8, 4]}}
    config = load_config(None, ["model=mlp", "model_options.dropout=0.5"], base=base)
    assert config.model_options == {"hidden": [8, 4], "dropout": 0.5}
    assert base == {"model_options": {"hidden": [8, 4]}}


@pytest.mark.parametrize(
    ("argument", "key", "expected"),
    [
        ("optimizer.lr=1e-2", "optimizer.lr", 0.01),
        ("optimizer.lr=1", "optimizer.lr", 1.0),
        ("sources=mnist,fonts", "sources", ("mnist", "fonts")),
        ("sources=[mnist, fonts]", "sources", ("mnist", "fonts")),
        ("sources= mnist , fonts ", "sources", ("mnist", "fonts")),
        ('sources=["mnist", "fonts"]', "sources", ("mnist", "fonts")),
        ("target=", "target", None),
        ("target=null", "target", None),
        ("name=2024", "name", "2024"),
        ("name=012", "name", "012"),
        ("name='a-b'", "name", "a-b"),
        ("name=true", "name", "true"),
        ("tracking.mode=off", "tracking.mode", "off"),
        ("tracking.uri=http://me:pw@host:5000/#x", "tracking.uri", "http://me:pw@host:5000/#x"),
        ("tracking.uri=sqlite:////a/b.db?x=1&y=2", "tracking.uri", "sqlite:////a/b.db?x=1&y=2"),
        ("cluster.address=ray://10.0.0.9:10001", "cluster.address", "ray://10.0.0.9:10001"),
        ("cluster.gpus_per_worker=0.5", "cluster.gpus_per_worker", 0.5),
        ("cluster.gpus_per_worker=auto", "cluster.gpus_per_worker", "auto"),
        ("alignment.detach_mean=false", "alignment.detach_mean", False),
        ("optimizer.betas=0.8,0.99", "optimizer.betas", (0.8, 0.99)),
        ("harmonize.weights=1,2,3", "harmonize.weights", (1.0, 2.0, 3.0)),
        ("harmonize.weights=", "harmonize.weights", None),
        ("harmonize.options={s_min: 1e-1}", "harmonize.options", {"s_min": 0.1}),
        ("harmonize.options.s_min=1e-1", "harmonize.options", {"s_min": 0.1}),
        ("output=a b/ü", "output", Path("a b/ü")),
        ("root=/data", "root", Path("/data")),
        ("resume=auto", "resume", "auto"),
    ],
)
def test_arguments_are_read_as_their_key_demands(argument: str, key: str, expected: object) -> None:
    value: Any = load_config(None, [argument])
    for part in key.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected) or isinstance(value, Path)


def test_text_keys_take_a_file_s_text_as_written(folder: Path) -> None:
    Path("a.yaml").write_text("name: 1.10\ntracking: {mode: on, experiment: 012}\noutput: 2024\n")
    config = load_config(Path("a.yaml"))
    assert (config.name, config.tracking.mode, config.tracking.experiment) == ("1.10", "on", "012")
    assert config.output == Path("2024")


def test_configurations_are_frozen_and_travel() -> None:
    config = load_config(None, ["harmonize.options.s_min=0.1", "output=x"])
    with pytest.raises(ValueError, match="frozen"):
        config.steps = 3
    assert pickle.loads(pickle.dumps(config)) == config
    problems = ConfigProblems(["a", "b"])
    assert pickle.loads(pickle.dumps(problems)).problems == ["a", "b"]


def test_allowed_combinations() -> None:
    for overrides in (
        [*NO_PENALTY, "harmonize.rule=mean"],
        [*NO_PENALTY, "harmonize.rule=mean", "sources=mnist"],
        ["harmonize.rule=mean", "harmonize.lam=0.7"],
        ["harmonize.rule=mean", "harmonize.between=both"],
        ["harmonize.between=domains", "sources=mnist,fonts"],
        [*NO_PENALTY, "harmonize.rule=gh", "harmonize.between=domains", "sources=mnist,fonts"],
        ["alignment.alpha=0"],
        ["alignment.beta=0"],
        ["alignment.penalty=gradient", "alignment.alpha=0"],
        ["alignment.anneal.weight_before=0", "alignment.anneal.steps=100"],
        ["alignment.probes=5", "alignment.probe_sets=released"],
        ["objective=hgp"],
        ["target="],
        ["cluster.cpus_per_worker=2", "cluster.gpus_per_worker=0"],
    ):
        assert check(load_config(None, overrides)) == [], overrides


def test_checking_draws_nothing() -> None:
    before = torch.random.get_rng_state()
    load_config(None)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_resolve_writes_out_what_the_configuration_decides(folder: Path) -> None:
    now = datetime(2031, 2, 3, 4, 5, 6)
    config = resolve(load_config(None, ["output=x", "resume=x/y"]), now)
    assert re.fullmatch(r"digits-ghpp-20310203-040506-[0-9a-f]{4}", config.name or "")
    assert config.output == folder / "x"
    assert config.resume == str(folder / "x" / "y")
    assert run_folder(config) == folder / "x" / str(config.name)
    assert (config.objective, config.harmonize.between, config.alignment.detach_mean) == ("hutchinson", "tasks", False)
    assert config.cluster.cpus_per_worker == "auto"
    assert resolve(config) == config
    assert check(config) == []
    assert len({resolve(Config(), now).name for _ in range(8)}) > 1
    other = resolve(load_config(None, [*NO_PENALTY, "harmonize.rule=mean", "name=n", "resume=auto", "root=~/d"]))
    assert (other.objective, other.harmonize.between, other.name, other.resume) == ("erm", "domains", "n", "auto")
    assert other.root == Path.home() / "d"
    assert resolve(load_config(None, ["objective=hgp"])).alignment.detach_mean is True
    assert resolve(load_config(None, ["objective=hgp", "alignment.detach_mean=false"])).alignment.detach_mean is False


def test_names_survive_strange_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HARMONIZERS._items, "../theirs: " + "x" * 200, HARMONIZERS.get("mean"))
    config = Config(harmonize={"rule": "../theirs: " + "x" * 200})
    name = resolve(config).name
    assert load_config(None, [f"name={name}"]).name == name


def test_meaning() -> None:
    assert objective_name(Config()) == "hutchinson"
    assert objective_name(load_config(None, ["alignment.penalty=hgp", "alignment.alpha=0"])) == "hgp"
    assert has_penalty(Config())
    assert not has_penalty(load_config(None, [*NO_PENALTY, "harmonize.rule=mean"]))
    assert not has_penalty(load_config(None, ["objective=erm", "harmonize.rule=mean"]))
    assert rule_options(load_config(None, ["harmonize.lam=0.25"])) == {"lam": 0.25}
    assert rule_options(load_config(None, ["harmonize.rule=mean"])) == {}
    assert rule_options(load_config(None, ["harmonize.options.s_min=0.1"])) == {"lam": 0.5, "s_min": 0.1}
    assert cautions(Config()) == []
    assert len(cautions(Config(engine="inline", cluster={"address": "auto"}, selection="oracle"))) == 2


FULL = [
    "name=012",
    "seed=7",
    "root=/data dir",
    "sources=mnist,fonts",
    "target=null",
    "model=mlp",
    "model_options.hidden=[8, 4]",
    "model_options.dropout=1e-2",
    "optimizer.eps=1e-12",
    "optimizer.betas=0.5,0.75",
    "harmonize.weights=0.1,0.30000000000000004",
    "harmonize.options={s_min: 0.01}",
    "cluster.cpus_per_worker=0.5",
    "alignment.detach_mean=true",
    "tracking.mode=off",
    "tracking.experiment=on",
    "cluster.object_store_mb=80",
    "alignment.anneal.rescale_loss=true",
    "tracking.uri=sqlite:///ü.db",
]


@pytest.mark.parametrize("overrides", [[], FULL])
def test_yaml_and_flat_give_the_configuration_back(overrides: list[str], folder: Path) -> None:
    config = load_config(None, overrides)
    file = folder / "config.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(file) == config
    assert load_config(None, base=yaml.safe_load(to_yaml(config))) == config
    again = load_config(None, [f"{key}={text}" for key, text in flat(config).items()])
    assert again == config
    assert {key.split(".")[0] for key in flat(config)} == set(Config.model_fields)


def test_flat_and_yaml_hide_secrets() -> None:
    options = {"token": "t0p", "deep": {"password": "t0p", "url": "s3://me:t0p@host/x"}, "list": [{"key": "t0p"}]}
    config = Config(dataset_options=options, tracking={"uri": "http://me:t0p@host:5000"})
    shown = flat(config)
    assert "t0p" not in "".join(shown.values())
    assert shown["tracking.uri"] == "http://***@host:5000"
    assert shown["dataset_options.token"] == "***"
    assert shown["dataset_options.deep.url"] == '"s3://***@host/x"'
    assert "t0p" not in to_yaml(config)
    assert "uri: http://host:5000" in to_yaml(config)
    assert yaml.safe_load(to_yaml(config, secrets=True))["dataset_options"] == options


def test_what_may_differ_when_a_run_is_resumed() -> None:
    run = resolve(load_config(None))
    free = ["steps=600", "eval_every=7", "checkpoint.keep=9", "tracking.mode=off", "cluster.max_worker_restarts=0",
            "engine=inline", "on_nonfinite=abort", "output=z", "name=z", "resume=auto"]  # fmt: skip
    assert differences(run, load_config(None, free)) == []
    assert differences(run, Config()) == []  # `auto` means what the run has written out
    found = differences(run, load_config(None, ["model=mlp", "optimizer.lr=0.5", "sources=mnist,fonts", *free]))
    assert [re.findall("`([^`]*)`", problem)[:3] for problem in found] == [
        ["sources", "mnist,fonts", "mnist,optdigits,fonts"],
        ["model", "mlp", "lenet"],
        ["optimizer.lr", "0.5", "0.001"],
    ]
    assert all(SENTENCE.fullmatch(problem) for problem in found)
    assert differences(run, load_config(None, ["model=mlp"]), allowed=["model", "name"]) == []


def test_a_cosine_schedule_ties_the_steps() -> None:
    cosine = load_config(None, ["optimizer.schedule=cosine"])
    (problem,) = differences(cosine, load_config(None, ["optimizer.schedule=cosine", "steps=600"]))
    assert "`steps` cannot change" in problem
    assert "learning rates all depend on it" in problem
    assert "got `600` (the run has `300`)" in problem


def test_base_in_python_values() -> None:
    config = load_config(None, base={"sources": ("mnist", "fonts"), "output": Path("x"), "root": None})
    assert config.sources == ("mnist", "fonts")
    assert load_config(None, base=Config(seed=3).model_dump()) == Config(seed=3)
    for base in ({"alignment": {1: 2}}, {"steps": "3"}, {"model_options": {"f": object()}}, {"unknown": {}}):
        with pytest.raises(ConfigProblems) as caught:
            load_config(None, base=base)
        assert "(base configuration)" in str(caught.value)
