# ruff: noqa: E501  (the table of cases keeps one case per line)
from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from difc_ray.config import (
    Config,
    ConfigProblems,
    DataProblems,
    check,
    check_paths,
    import_plugins,
    load_config,
)
from difc_ray.data import DATASETS
from difc_ray.errors import ConfigError, DataError
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.models import MODELS
from difc_ray.objectives import OBJECTIVES
from difc_ray.objectives.losses import LOSSES
from tests.sentences import SENTENCE

NO_PENALTY = ["alignment.alpha=0", "alignment.beta=0"]


@pytest.fixture(autouse=True)
def _own_registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    for registry in (DATASETS, MODELS, LOSSES, OBJECTIVES, HARMONIZERS):
        monkeypatch.setattr(registry, "_items", dict(registry._items))
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("plugin_"):
            del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problems_of(*overrides: str, text: str | None = None, **more: Any) -> list[str]:
    """What is wrong; the working directory is as before, and every sentence has its form."""
    file = None
    if text is not None:
        file = Path("run.yaml")
        file.write_text(text, encoding="utf-8")
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises((ConfigProblems, DataProblems)) as caught:
        load_config(file, overrides, **{"paths": True, **more})
    assert sorted(Path.cwd().rglob("*")) == before
    problems = caught.value.problems
    assert str(caught.value) == "\n".join(problems)
    assert len(set(problems)) == len(problems)
    for problem in problems:
        assert SENTENCE.fullmatch(problem), problem
    return problems


# One row per case: the arguments, the file or None, and per expected problem the fragments of its sentence.
CASES: dict[str, tuple[list[str], str | None, list[list[str]]]] = {
    # keys
    "unknown key": (["batchsize=32"], None, [["unknown key `batchsize`, got `32`", "command line", "Did you mean `batch_size`?"]]),
    "unknown key in file": ([], "batchsize: 32\n", [["unknown key `batchsize`, got 32 (run.yaml, line 1)", "`batch_size`"]]),
    "unknown inner key": (["alignment.aplha=1"], None, [["unknown key `alignment.aplha`", "Did you mean `alignment.alpha`?"]]),
    "unknown inner key in file": ([], "steps: 3\nalignment:\n  aplha: 1\n", [["`alignment.aplha`", "line 3", "`alignment.alpha`"]]),
    "near key of its own section": (["optimizer.beta=0"], None, [["Did you mean `optimizer.betas`?"]]),
    "unknown key far from all": (["zzz=1"], None, [["unknown key `zzz`", "`difc-ray config` lists all keys"]]),
    "key without its section": (["lr=0.1"], None, [["unknown key `lr`", "Did you mean `optimizer.lr`?"]]),
    "dotted key in file": ([], "optimizer.lr: 0.1\n", [["unknown key `optimizer.lr`", "Nest it: `optimizer:`"]]),
    "word of other programs": (["epochs=3"], None, [["unknown key `epochs`", "`steps`"]]),
    "hyphens": (["batch-size=3"], None, [["unknown key `batch-size`", "`batch_size`"]]),
    "key below a value": (["seed.x=1"], None, [["`seed` holds a value and no keys", "Write `seed=1`"]]),
    "section set as a whole": (["optimizer=adam"], None, [["`optimizer` is a section of keys", "`optimizer.name=adam`"]]),
    "section in file is a value": ([], "optimizer: adam\n", [["`optimizer` must be a section of keys", "the text `adam`"]]),
    "space before the equals sign": (["steps", "=3"], None, [["got `steps =3`", "Write `steps=3`"]]),
    "space instead of the equals sign": (["steps", "3"], None, [["got `steps 3`", "Write `steps=3`"]]),
    "no equals sign": (["steps"], None, [["must be `key=value`, got `steps`", "Write `steps=VALUE`"]]),
    "flag": (["--batch-size", "64"], None, [["got `--batch-size 64`", "Write `batch_size=64`"]]),
    "flag with equals sign": (["--lr=0.1"], None, [["got `--lr=0.1`", "Write `optimizer.lr=0.1`"]]),
    "spaces around the equals sign": (["steps", "=", "3"], None, [["got `steps = 3`", "Write `steps=3`"]]),
    "empty argument": ([""], None, [["an empty argument", "Write `key=value`"]]),
    "argument twice": (["steps=1", "steps=2"], None, [["`steps` is given twice, got `steps=1` and `steps=2`"]]),
    "arguments overlap": (["model_options={}", "model_options.dropout=0"], None, [["overlap", "Remove one"]]),
    "key twice in file": ([], "steps: 1\nseed: 2\nsteps: 3\n", [["key `steps` is given twice", "lines 1 and 3"]]),
    "key is not text": ([], "on: yes\n", [["config keys must be text, got `on`", "True", 'Quote it: "on"']]),
    # files
    "python tag": ([], "a: 1\nsteps: !!python/object/apply:os.system [ls]\n", [["Python tags are not allowed", "line 2"]]),
    "alias bomb": ([], "a: &a [*a]\n", [["nest at most 20 deep"]]),
    "not a mapping": ([], "- steps\n", [["must be a mapping, got a list"]]),
    "empty file": ([], "", [["must hold keys, got an empty file"]]),
    "broken file": ([], "steps: [1\n", [["valid YAML", "run.yaml, line"]]),
    "broken file and argument": (["steps=0"], "steps: [1\n", [["valid YAML"], ["`steps` must be an integer >= 1, got 0"]]),
    # types and ranges
    "integer 0": (["batch_size=0"], None, [["`batch_size` must be an integer >= 1, got 0 (command line)", "`batch_size=64`"]]),
    "integer negative": (["steps=-1"], None, [["`steps` must be an integer >= 1, got -1"]]),
    "integer as float": (["batch_size=64.0"], None, [["`batch_size` must be an integer", "got 64.0", "Write 64."]]),
    "integer as text": ([], 'batch_size: "64"\n', [["`batch_size` must be an integer", "the text `64`", "without quotes"]]),
    "integer as bool": ([], "batch_size: true\n", [["`batch_size` must be an integer", "got true"]]),
    "integer as list": (["steps=[3]"], None, [["`steps` must be an integer >= 1, got [3]"]]),
    "integer null": (["steps="], None, [["`steps` must be an integer >= 1, got null"]]),
    "integer word": (["steps=many"], None, [["`steps` must be an integer >= 1, got the text `many`"]]),
    "seed negative": (["seed=-1"], None, [["`seed` must be an integer in [0, 2^63)", "got -1"]]),
    "seed too large": (["seed=9223372036854775808"], None, [["`seed` must be an integer in [0, 2^63)"]]),
    "octal": ([], "seed: 012\n", [["`seed` is ambiguous (octal 10), got `012` (run.yaml, line 1)", "Write 10 or 12."]]),
    "octal argument": (["seed=012"], None, [["`seed` is ambiguous (octal 10), got `012`"]]),
    "hexadecimal": (["seed=0x1f"], None, [["`seed` is ambiguous, got `0x1f`"]]),
    "octal option": (["model_options.dropout=012"], None, [["`model_options.dropout` is ambiguous"]]),
    "octal option in file": ([], "model_options: {dropout: 01}\n", [["`model_options.dropout` is ambiguous", "line 1"]]),
    "lr negative": (["optimizer.lr=-0.1"], None, [["`optimizer.lr` must be a finite number > 0, got -0.1", "`optimizer.lr=0.001`"]]),
    "lr zero": (["optimizer.lr=0"], None, [["`optimizer.lr` must be a finite number > 0, got 0 "]]),
    "lr nan": ([], "optimizer:\n  lr: .nan\n", [["`optimizer.lr` must be a finite number > 0, got nan (run.yaml, line 2)"]]),
    "lr nan argument": (["optimizer.lr=nan"], None, [["`optimizer.lr` must be a finite number > 0"]]),
    "lr infinite": ([], "optimizer: {lr: .inf}\n", [["`optimizer.lr` must be a finite number > 0, got inf"]]),
    "lr quoted": ([], "optimizer: {lr: '1e-3'}\n", [["`optimizer.lr` must be", "the text `1e-3`", "1e-3 without quotes"]]),
    "lr bool": (["optimizer.lr=true"], None, [["`optimizer.lr` must be a finite number > 0, got true"]]),
    "momentum 1": (["optimizer.momentum=1"], None, [["`optimizer.momentum` must be a number in [0, 1), got 1"]]),
    "three betas": (["optimizer.betas=0.9,0.9,0.9"], None, [["`optimizer.betas` must be two numbers in [0, 1)"]]),
    "beta 1": (["optimizer.betas=0.9,1"], None, [["`optimizer.betas` must be two numbers", "[0.9, 1]"]]),
    "alpha negative": (["alignment.alpha=-1"], None, [["`alignment.alpha` must be a finite number >= 0, got -1"]]),
    "lam above 1": (["harmonize.lam=1.5"], None, [["`harmonize.lam` must be a number in [0, 1], got 1.5"]]),
    "lam below 0": (["harmonize.lam=-0.1"], None, [["`harmonize.lam` must be a number in [0, 1], got -0.1"]]),
    "probes 0": (["alignment.probes=0"], None, [["`alignment.probes` must be an integer >= 1, got 0"]]),
    "choice": (["optimizer.name=adma"], None, [["`optimizer.name` must be one of `adam`, `adamw`, `sgd`, got `adma`", "`adam`?"]]),
    "choice far from all": (["engine=spark"], None, [["`engine` must be one of `ray`, `inline`, got `spark`", "`engine=ray`"]]),
    "flag as word": (["alignment.anneal.rescale_loss=yes"], None, [["must be true or false, got the text `yes`"]]),
    "auto or bool": (["alignment.detach_mean=maybe"], None, [["`alignment.detach_mean` must be `auto`, true or false"]]),
    "text is a list": ([], "model: [lenet]\n", [["`model` must be non-empty text on one line, got [lenet]"]]),
    "text empty": ([], 'model: ""\n', [["`model` must be non-empty text on one line, got empty text"]]),
    "path empty": ([], 'output: ""\n', [["`output` must be a path, got empty text"]]),
    "names with a gap": (["sources=mnist,,fonts"], None, [["`sources` must be a list of names, got [mnist, , fonts]"]]),
    "sources is text": ([], "sources: mnist\n", [["`sources` must be a list of names, got the text `mnist`"]]),
    "option nan": ([], "model_options: {dropout: .nan}\n", [["`model_options` must be a mapping", "{dropout: nan}"]]),
    "name climbs": (["name=../../x"], None, [["`name` must be at most 128 letters, digits, `.`, `_` or `-`", "`../../x`"]]),
    "name with slash": (["name=a/b"], None, [["`name` must be"]]),
    "name too long": (["name=" + "x" * 129], None, [["`name` must be at most 128"]]),
    "name with NUL": ([], 'name: "a\\0b"\n', [["`name` must be", r"a\x00b"]]),
    "plugin path": (["plugins=my/module.py"], None, [["`plugins` must be a list of dotted module names"]]),
    "object store": (["cluster.object_store_mb=1"], None, [["`cluster.object_store_mb` must be an integer >= 75 (MiB)", "got 1"]]),
    "half a CPU more": (["cluster.cpus_per_worker=1.5"], None, [["`cluster.cpus_per_worker` above 1 must be a whole number, got 1.5"]]),
    "autoscale without numbers": (["cluster.autoscale=true", "cluster.cpus_per_worker=2"], None, [["`cluster.gpus_per_worker` must be a number with `cluster.autoscale`", "got `auto` (default)", "`cluster.gpus_per_worker=1`"]]),
    "negative CPUs": (["cluster.cpus_per_worker=-1"], None, [["`cluster.cpus_per_worker` must be `auto` or a finite number > 0, got -1"]]),
    "negative GPUs": (["cluster.gpus_per_worker=-1"], None, [["`cluster.gpus_per_worker` must be `auto` or a finite number >= 0"]]),
    "address without port": (["cluster.address=10.0.0.9"], None, [["`cluster.address` must be", "`HOST:PORT`", "Give the port"]]),
    "address with a wrong port": (["cluster.address=host:99999"], None, [["port of `cluster.address` must be in [1, 65535]"]]),
    # names that are registered
    "unknown model": (["model=lennet"], None, [["`model` must be a known model, got `lennet`", "Did you mean `lenet`?"]]),
    "unknown dataset": (["dataset=digit"], None, [["`dataset` must be a known dataset, got `digit`", "Did you mean `digits`?"]]),
    "unknown loss": (["loss=cross_entrpy"], None, [["`loss` must be a known loss", "Did you mean `cross_entropy`?"]]),
    "unknown objective": (["objective=hpg"], None, [["`objective` must be a known objective", "Did you mean `hgp`?", "auto"]]),
    "unknown rule": (["harmonize.rule=ghp"], None, [["`harmonize.rule` must be a known harmonizer, got `ghp`", "Did you mean `gh"]]),
    "unknown domain": (["sources=mnist,optdigit"], None, [["`sources` must name domains of dataset `digits`, got `optdigit`", "Did you mean `optdigits`?", "fonts, mnist"]]),
    "unknown target": (["target=svhn"], None, [["`target` must name domains", "got `svhn`", "mnistm"]]),
    "unknown model option": (["model_options.dropuot=0.5"], None, [["`model_options` must suit model `lenet`", "Did you mean `dropout`?"]]),
    "wrong model option": (["model_options.dropout=2"], None, [["`model_options` must suit model `lenet`", "[0, 1)"]]),
    "unknown rule option": (["harmonize.options.smin=0.1"], None, [["`harmonize.options` must suit rule `ghpp`", "`s_min`"]]),
    "unknown dataset option": (["dataset_options.sise=3"], None, [["`dataset_options` must suit dataset `digits`", "`sise`"]]),
    "lam twice": (["harmonize.options.lam=0.3"], None, [["`lam` has a key of its own", "`harmonize.lam`"]]),
    "loss for two classes": (["loss=bce"], None, [["`loss` must suit the 10 classes", "got `bce`", "two classes"]]),
    # combinations
    "target is a source": (["target=mnist"], None, [["target domain `mnist` is also a source", "`target=mnist`", "command line; default"]]),
    "source twice": (["sources=mnist,mnist,fonts"], None, [["domain `mnist` is listed twice"]]),
    "no sources": (["sources=[]"], None, [["at least one source domain, got []"]]),
    "features of a divided batch": (["alignment.penalty=mmd", "cluster.replicas=2", "batch_norm=freeze"], None, [["`cluster.replicas` above 1 cannot serve the objective `mmd`"]]),
    "mixing examples of one source": (["objective=mixup", "harmonize.rule=mean", "sources=mnist"], None, [["objective `mixup` mixes the examples of a source with those of another", "`objective=erm`"]]),
    "mixing data that stay where they are": (["objective=mixup", "harmonize.rule=mean", "cluster.bundles.mnist.resources.site_a=1"], None, [["objective `mixup` gives every worker examples of other domains", "got `cluster.bundles={", "and `objective=mixup`"]]),
    "mixing with a rule for tasks": (["objective=mixup"], None, [["rule `ghpp` combines the tasks", "harmonize.rule=mean"]]),
    "mixup of nothing": (["alignment.mixup=0"], None, [["`alignment.mixup` must be a finite number > 0, got 0"]]),
    "a discriminator for the whole network": (["alignment.penalty=dann_domain", "alignment.scope=all"], None, [["objective `dann_domain` is about the classifier"]]),
    "a discriminator without a weight": (["alignment.penalty=dann_domain", "alignment.alpha=0"], None, [["the weight of penalty `dann_domain` is 0", "Raise `alignment.alpha`"]]),
    "peer without a weight": (["alignment.penalty=irm", "alignment.alpha=0"], None, [["the weight of penalty `irm` is 0", "Raise `alignment.alpha`"]]),
    "one source": (["sources=mnist"], None, [["needs at least two source domains", "spread between domains", "undefined", "`objective=erm harmonize.rule=mean`"]]),
    "one source, explicit objective": (["sources=mnist", "objective=hgp"], None, [["at least two source domains"]]),
    "tasks without a penalty": ([*NO_PENALTY], None, [["rule `ghpp` combines the tasks", "harmonize.rule=mean", "alignment.alpha=0.1"]]),
    "tasks named without a penalty": ([*NO_PENALTY, "harmonize.rule=mean", "harmonize.between=tasks"], None, [["`harmonize.between: tasks` needs an alignment penalty", "alignment.alpha=0.1"]]),
    "both without a penalty": (["objective=erm", "harmonize.rule=mean", "harmonize.between=both"], None, [["`harmonize.between: both` needs an alignment penalty", "`objective=erm`"]]),
    "erm with a rule for tasks": (["objective=erm"], None, [["rule `ghpp` combines the tasks", "harmonize.rule=mean"]]),
    "two rows on three": (["harmonize.between=domains"], None, [["rule `ghpp` is defined for two rows", "has 3", "harmonize.rule=mean"]]),
    "two rows on both": (["harmonize.between=both", "harmonize.rule=gh"], None, [["rule `gh` is defined for two rows", "has 4"]]),
    "scope all, exact": (["alignment.scope=all"], None, [["closed form for the head only", "alignment.estimator=hutchinson"]]),
    "an unknown rule and too many replicas": (["harmonize.rule=ghp", "cluster.replicas=99"], None, [["`harmonize.rule` must be a known harmonizer"], ["`cluster.replicas` workers divide the 64 examples"]]),
    "penalty of weight 0": (["objective=hutchinson", *NO_PENALTY], None, [["weight of penalty `hutchinson` is 0", "objective=erm"]]),
    "gradient without beta": (["alignment.penalty=gradient", "alignment.beta=0"], None, [["weight of penalty `gradient` is 0", "alignment.beta"]]),
    "annealed to nothing": (["alignment.anneal.weight_after=0"], None, [["weight of penalty `hutchinson` is 0", "weight_after=0"]]),
    "unknown penalty": (["alignment.penalty=hutchinsn"], None, [["`alignment.penalty` must be a known penalty, got `hutchinsn`", "Did you mean `hutchinson`?"]]),
    "penalty without one": (["alignment.penalty=erm"], None, [["`alignment.penalty` must be a known penalty, got `erm`", "coral"]]),
    "option of an objective": (["alignment.options.depth=3"], None, [["`alignment.options` must suit objective `hutchinson`, got {depth: 3}", "It takes no options"]]),
    "objective against penalty": (["objective=hgp", "alignment.penalty=gradient"], None, [["`objective` and `alignment.penalty` must agree"]]),
    "two weights for three": (["harmonize.weights=1,2"], None, [["one weight per source (3)", "1.0,2.0"]]),
    "weight 0": (["harmonize.weights=1,1,0"], None, [["`harmonize.weights` must be a list of finite numbers > 0", "[1, 1, 0]"]]),
    "weight nan": ([], "harmonize: {weights: [1, 1, .nan]}\n", [["`harmonize.weights` must be a list of finite numbers > 0"]]),
    "warm-up too long": (["optimizer.warmup_steps=300"], None, [["warm-up must end before the run does", "`steps=300`"]]),
    "oracle without a target": (["selection=oracle", "target="], None, [["`selection: oracle` needs a target"]]),
    # folders
    "output is a file": (["output=run.yaml"], "steps: 3\n", [["`output` must be a folder", "run.yaml`, a file"]]),
    "output below a file": (["output=run.yaml/runs"], "steps: 3\n", [["`output` must be a folder", "a file"]]),
    "output not writable": (["output=/proc/runs"], None, [["`output` must be writable", "`/proc/runs`"]]),
    "missing plugin": (["plugins=plugin_none"], None, [["plugin `plugin_none` must be importable", "ModuleNotFoundError", "PYTHONPATH"]]),
    "missing plugin may know the name": (["plugins=plugin_none", "model=theirs"], None, [["plugin `plugin_none`"]]),
    # several at once
    "all at once": (
        ["batch_size=0", "target=mnist", "model=lennet", "lr=1", "steps=3", "steps=4"],
        "seed: 012\non: 1\noptimizer: {lr: -1}\nalignment: {probes: 0}\n",
        [["keys must be text"], ["`lr`"], ["twice"], ["`batch_size`"], ["`seed`"], ["`optimizer.lr`"], ["probes"],
         ["target domain"], ["`lennet`"]],
    ),
    "bad values cause no further problems": (["sources=", "target=mnist", "harmonize.weights=1,2"], None, [["`sources` must be a list"]]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_all_its_problems(case: str, folder: Path) -> None:
    overrides, text, expected = CASES[case]
    problems = problems_of(*overrides, text=text)
    assert len(problems) == len(expected), problems
    for fragments in expected:
        assert any(all(fragment in problem for fragment in fragments) for problem in problems), (fragments, problems)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sources=mnist"],
        ["sources=mnist", "objective=hgp", "harmonize.rule=gh"],
        ["sources=mnist", "objective=coral", "harmonize.rule=pcgrad", "harmonize.between=both"],
        ["sources=mnist", "objective=mixup", "harmonize.rule=mean"],
        ["objective=hutchinson", "harmonize.between=tasks", *NO_PENALTY],
        ["alignment.penalty=irm", "alignment.anneal.weight_after=0", "harmonize.rule=mean"],
    ],
)
def test_the_way_to_do_without_a_penalty_can_be_followed(overrides: list[str], folder: Path) -> None:
    (problem,) = problems_of(*overrides)
    (settings,) = re.findall(r"or write `([^`]*)`", problem)
    keys = {setting.partition("=")[0] for setting in settings.split()}
    load_config(None, [*(each for each in overrides if each.partition("=")[0] not in keys), *settings.split()])


def test_two_sources_are_enough_to_mix(folder: Path) -> None:
    config = load_config(None, ["objective=mixup", "harmonize.rule=mean", "sources=mnist,fonts"], paths=True)
    assert check(config) == []


def test_exit_codes(folder: Path) -> None:
    with pytest.raises(ConfigError) as config:
        load_config(None, ["steps=0"])
    assert config.value.exit_code == 2
    with pytest.raises(DataError) as data:
        load_config(None, ["root=nowhere"], paths=True)
    assert data.value.exit_code == 3
    assert "`root` must be a folder, got `nowhere`, which does not exist (command line)" in str(data.value)
    with pytest.raises(ConfigError):  # anything else wrong: 2
        load_config(None, ["root=nowhere", "steps=0"], paths=True)
    load_config(None, ["root=nowhere"])  # folders are looked at only before a new run


def test_missing_file_and_directory(folder: Path) -> None:
    with pytest.raises(ConfigProblems, match=r"config file must exist, got no such file \(`none.yaml`\)"):
        load_config(Path("none.yaml"))
    with pytest.raises(ConfigProblems, match="must be a file, got a directory"):
        load_config(folder)


PLUGIN = """
from difc_ray.data import DATASETS, DatasetFamily
from difc_ray.errors import DataError
from difc_ray.models import MODELS, Model
from torch import nn


@MODELS.register("theirs")
def theirs(image_shape, n_outputs, options):
    return Model(nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8)), nn.Linear(8, n_outputs))


@MODELS.register("stubborn")
def stubborn(image_shape, n_outputs, options):
    raise NotImplementedError("needs real memory")  # as a model may that is built on the `meta` device


@DATASETS.register("pairs")
class Pairs(DatasetFamily):
    description, class_names, image_shape = "two classes", ("a", "b"), (1, 16, 16)

    def domain_names(self):
        if self.root is not None:
            raise DataError("The folder must hold domains. Found none. Put them there.")
        return ("one", "two", "12")

    def load(self, domain_name):
        raise AssertionError("checks load no data")
"""


@pytest.fixture
def plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a model and a dataset of the user's own."""
    (folder / "modules").mkdir()
    (folder / "modules" / "plugin_own.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(folder / "modules")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return "plugin_own"


def test_plugins_are_imported_before_names_are_looked_up(plugin: str) -> None:
    own = [f"plugins={plugin}", "dataset=pairs", "sources=one,12", "target=two"]
    config = load_config(None, [*own, "model=theirs", "loss=bce"])
    assert config.sources == ("one", "12")
    assert check(config) == []
    problems = problems_of(*own, "model=theirs", "batch_size=1")
    assert len(problems) == 1
    assert "`batch_size` must be at least 2 for model `theirs`, which normalises over the batch, got 1" in problems[0]
    assert load_config(None, [*own, "model=stubborn"]).model == "stubborn"


def test_a_dataset_s_folder_is_a_matter_of_data(plugin: str, folder: Path) -> None:
    problems = problems_of(f"plugins={plugin}", "dataset=pairs", "sources=one,12", "target=two", f"root={folder}")
    assert len(problems) == 1
    assert "files of dataset `pairs` must be usable" in problems[0]
    with pytest.raises(DataProblems):
        load_config(None, [f"plugins={plugin}", "dataset=pairs", f"root={folder}"])


@pytest.mark.parametrize(
    ("body", "fragment"),
    [("1/0", "ZeroDivisionError: division by zero"), ("import plugin_other", "No module named 'plugin_other'"),
     ("raise SystemExit(3)", "SystemExit: 3"), ("def (", "SyntaxError")],
)  # fmt: skip
def test_plugins_that_fail_are_named_with_the_cause(body: str, fragment: str, plugin: str, folder: Path) -> None:
    (folder / "modules" / "plugin_bad.py").write_text(body)
    problems = problems_of(f"plugins={plugin},plugin_bad", "model=unknown")
    assert len(problems) == 1
    assert "plugin `plugin_bad` must be importable" in problems[0]
    assert fragment in problems[0]
    assert "Correct the module." in problems[0]
    with pytest.raises(ConfigProblems, match="plugin_bad"):
        import_plugins(["plugin_bad"])


def test_no_secret_is_shown(folder: Path) -> None:
    secret = "hunter2"
    for overrides in (
        [f"tracking.url=http://me:{secret}@host"],
        [f"token={secret}"],
        [f"--token={secret}"],
        ["--password", secret],
        [f"tracking.uri=http://me:{secret}@host", "tracking.uri=x"],
        [f"dataset_options.api_key={secret}"],
        [f"dataset_options={{a: {{password: {secret}}}}}"],
        [f"model=http://me:{secret}@host/?token={secret}"],
        [f"optimizer=http://me:{secret}@host"],
        [f"seed.token={secret}"],
    ):
        said = "\n".join(problems_of(*overrides))
        assert secret not in said
        assert "***" in said, said
    assert secret not in "\n".join(
        problems_of(text=f"tracking: {{uri: [http://me:{secret}@host]}}\nmy_token: {secret}\n")
    )


def test_run_folder_and_output(folder: Path) -> None:
    run = folder / "runs" / "a"
    run.mkdir(parents=True)
    assert check_paths(Config(name="a")) == []  # an empty folder holds no run
    (run / "config.yaml").write_text("")
    (problem,) = problems_of("name=a")
    assert "the run folder must be new" in problem
    assert f"resume={run}" in problem
    assert "another `name`" in problem
    assert check_paths(Config(name="b")) == []
    assert check_paths(Config(name="a", resume="auto")) == []
    assert check_paths(Config(output=Path("not/yet/there"))) == []
    assert sorted(folder.rglob("*")) == [folder / "runs", run, run / "config.yaml"]
