"""What the documents show is run: commands are commands, settings are settings, Python runs."""

from __future__ import annotations

import contextlib
import fnmatch
import itertools
import re
import shlex
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import typer
import yaml

from difc_ray.cli.app import app
from difc_ray.sweeps.find import find_space
from tests.cli.shell import ROOT, Answer, Cli
from tests.documents import blocks, documents, pages
from tests.published import part, write_idx
from tests.spaces import checked

COMMANDS = typer.main.get_command(app).commands
TUTORIAL = (ROOT / "docs" / "tutorials" / "own-rule.md").read_text("utf-8")
CONFIGURATIONS = {
    name: [text for text in blocks(page, "yaml") if "space" not in yaml.safe_load(text)]
    for name, page in pages().items()
}
SPACES = {
    name: [text for text in blocks(page, "yaml") if "space" in yaml.safe_load(text)] for name, page in pages().items()
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the commands of the documents are typed: pictures, the files that they name, the module of the tutorial."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for top, domains, kinds in (
        ("pictures", ("photo", "art", "cartoon", "sketch"), ("circle", "square")),
        ("png", ("mnist", "optdigits", "fonts", "mnistm"), "01"),
    ):
        for domain, kind in itertools.product(domains, kinds):
            (tmp_path / top / domain / kind).mkdir(parents=True)
            (tmp_path / top / domain / kind / "0.png").touch()
    for text in itertools.chain(*CONFIGURATIONS.values(), *SPACES.values()):
        if named := re.match(r"# (\S+\.yaml)\n", text):
            (tmp_path / named[1]).write_text(text)
    (tmp_path / "my_rules.py").write_text(blocks(TUTORIAL, "python")[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_rules", None)


def command_lines(text: str) -> list[list[str]]:
    """What is typed in a document: the words of every line of a block that runs difc_ray, without comments."""
    typed = re.sub(r"\\\n\s*", "", "\n".join(blocks(text, "")))
    lines = re.findall(r"^(?:ray job submit .*-- python -m difc_ray|difc-ray) (.*)$", typed, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z]+[a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in documents().items():
        named = set(re.findall(r"(?:^|`)make ([a-z]+[a-z-]*)", text, re.MULTILINE))
        assert named <= targets, name
    assert {"demo", "test"} <= set(re.findall(r"^make ([a-z]+)", (ROOT / "README.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", documents())
def test_every_command_exists_with_its_options(name: str) -> None:
    text = documents()[name]
    if name != "CHANGELOG.md":  # which names those that are gone
        assert set(re.findall(r"difc-ray ([a-z]+)", text)) <= {*COMMANDS}
    for words in command_lines(text):
        command = COMMANDS[words[0]]
        command = getattr(command, "commands", {}).get("".join(words[1:2]), command)
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        assert {word.partition("=")[0] for word in words if word.startswith("-")} <= known, words


@pytest.mark.parametrize("name", pages())
def test_settings_that_are_typed_are_right(name: str, cli: Cli, folder: Path) -> None:
    lines = [words for words in command_lines(pages()[name]) if words[0] in ("train", "config")]
    for words in lines:
        told = [word.replace("/shared", str(folder)) for word in words[1:] if not word.startswith("resume=")]
        if "--from-run" not in told:
            given = itertools.takewhile(lambda word: not word.startswith("--profile"), told)
            more = [f"root={folder}"] if "clothes.yaml" in told else []
            write_idx(folder / "FashionMNIST" / "raw", part(60, seed=0), part(20, seed=1))
            answer = cli("config", *dict.fromkeys(["--print", *given, *more]))
            assert (answer.code, answer.err) == (0, ""), words


@pytest.mark.parametrize("name", [name for name, texts in CONFIGURATIONS.items() if texts])
def test_configuration_files_are_right(name: str, cli: Cli, folder: Path) -> None:
    write_idx(folder / "FashionMNIST" / "raw", part(60, seed=0), part(20, seed=1))
    for text in CONFIGURATIONS[name]:
        (folder / "shown.yaml").write_text(text)
        answer = cli("config", "--print", "--config", "shown.yaml", f"root={folder}")
        assert (answer.code, answer.err) == (0, "")
        tree, shown = yaml.safe_load(answer.out), yaml.safe_load(text)
        assert {key: tree[key] for key in shown if not isinstance(shown[key], dict)} == {
            key: value for key, value in shown.items() if not isinstance(value, dict)
        }


@pytest.mark.parametrize("name", [name for name, texts in SPACES.items() if texts])
def test_search_spaces_are_right(name: str, cli: Cli, folder: Path) -> None:
    for text in SPACES[name]:
        (folder / "shown.yaml").write_text(text)
        assert checked(folder / "shown.yaml")[2]


def test_spaces_that_are_named_exist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    named = {words[1] for text in pages().values() for words in command_lines(text) if words[0] == "tune"}
    assert len(named) >= 3
    for name in named - {"SPACE"}:
        assert find_space(name).is_file()


@pytest.mark.parametrize("name", ["README.md", "docs/quick-start.md"])
def test_the_rules_alone(name: str) -> None:
    (text,) = [text for text in blocks(pages()[name], "python") if "harmonize" in text]
    told = re.search(r"# (array\(.*\))$", text, re.MULTILINE)
    assert told is not None
    namespace: dict[str, object] = {}
    exec(text, namespace)
    assert repr(namespace["weights"]) == told[1]


@pytest.mark.process  # its figures: matplotlib asks for fonts
def test_the_rule_of_the_tutorial(cli: Cli, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule, trial = blocks(TUTORIAL, "python")
    told = re.search(r"# (\[.*\])$", trial, re.MULTILINE)
    assert told is not None
    exec(trial, {})
    assert capsys.readouterr().out.strip() == told[1]
    module = sys.modules["my_rules"]
    assert module.__file__ == str(folder / "my_rules.py")
    assert Path(module.__file__).read_text() == rule
    settings = ("plugins=my_rules", "harmonize.rule=cautious", "engine=inline", "steps=2", "tracking.mode=off")
    answer = cli("train", "name=p", "model=mlp", *settings)
    assert (answer.code, answer.err) == (0, ""), answer.err
    even = module.Cautious(power=0.0).update
    stats = module.Cautious().checked(_statistics())
    np.testing.assert_allclose(even(stats, {}, None).weights, stats.weights_N)


def _statistics() -> object:
    """Of two rows of different lengths."""
    from difc_ray.harmonizers.base import GramStatistics

    return GramStatistics(gram_NN=np.array([[4.0, 1.0], [1.0, 1.0]]), weights_N=np.array([0.5, 0.5]))


def test_only_python_that_is_run_is_shown() -> None:
    """Besides the blocks above: how MLflow's model is loaded, which tests/mlflow/test_round_trip.py does."""
    shown = {name: len(blocks(text, "python")) for name, text in pages().items() if "```python" in text}
    assert shown == {"README.md": 1, "docs/quick-start.md": 2, "docs/tutorials/own-rule.md": 2}


def named_in(page: str, heading: str) -> list[str]:
    """What the first column of a page's table names."""
    section = pages()[page].partition(heading)[2].partition("\n## ")[0]
    names = [name for row in re.findall(r"^\| (`.*?) \|", section, re.M) for name in re.findall(r"`([^`]+)`", row)]
    return [re.sub(r"DOMAIN|CLASS|SPLIT|…", "*", name) for name in names]


def test_what_a_run_leaves_is_in_the_reference(trained_once: tuple[Path, Answer]) -> None:
    """Its files, its metrics and its tags in MLflow."""
    output, _ = trained_once
    with contextlib.closing(sqlite3.connect(output / "mlflow.db")) as store:
        kept = {table: {key for (key,) in store.execute(f"select distinct key from {table}")} for table in KEPT}
    kept["files"] = {path.name for path in (output / "first").iterdir()}
    documented = {
        "metrics": named_in("docs/reference/mlflow-keys.md", "\n## Metrics\n"),
        "tags": named_in("docs/reference/mlflow-keys.md", "\n## Tags\n"),
        "files": [name.split("/")[0] for name in named_in("docs/reference/run-folder.md", "# Files of a run\n")],
    }
    for kind, names in kept.items():
        unknown = [name for name in names if not any(fnmatch.fnmatch(name, each) for each in documented[kind])]
        assert (kind, unknown) == (kind, [])
        assert len(names) >= 5


KEPT = ("metrics", "tags")
"""Tables of MLflow's store."""
