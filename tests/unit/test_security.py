"""What the package promises about code in data: nothing that is read back can run any, and nobody is handed a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from difc_ray.errors import CheckpointError
from difc_ray.runs.checkpoint import Snapshot
from difc_ray.runs.reading import recorded_settings
from tests.documents import documents

ROOT = Path(__file__).resolve().parents[2]

ALLOWED = {
    ("difc_ray/sweeps/hooks.py", "cloudpickle.loads"),  # the error that Ray has just written beside this very process
}
"""Calls that could run code in a file, where they do not read what anybody else has written."""

DECODERS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "marshal.load", "marshal.loads", "shelve.open", "pandas.read_pickle",
    "pd.read_pickle", "torch.jit.load", "torch.export.load", "mlflow.pytorch.load_model", "mlflow.pyfunc.load_model",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.full_load_all", "yaml.unsafe_load_all",
    "eval", "exec", "compile", "os.system", "os.popen",
}  # fmt: skip


def dangers(source: str, name: str = "x.py") -> Iterator[tuple[str, str]]:
    """(file, call) of everything that could run code from data, or hands a line to a shell."""
    tree = ast.parse(source)
    origin = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            package = node.module.removeprefix("ray.") if node.module.startswith("ray.") else node.module
            inside = "" if node.module == "ray" else f"{package}."
            origin |= {alias.asname or alias.name: f"{inside}{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            origin |= {alias.asname: alias.name for alias in node.names if alias.asname}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        words = ast.unparse(node.func).split(".")
        call = ".".join([origin.get(words[0], words[0]), *words[1:]])
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        unsafe_weights = call == "torch.load" and given.get("weights_only") != "True"
        objects = call in ("numpy.load", "np.load") and given.get("allow_pickle", "False") != "False"
        if call in DECODERS or unsafe_weights or objects or given.get("shell", "False") != "False":
            yield name, call


@pytest.mark.parametrize("folder", ["difc_ray", "benchmarks"])
def test_nothing_that_is_read_can_run_code(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    found = {each for path in files for each in dangers(path.read_text("utf-8"), str(path.relative_to(ROOT)))}
    assert found <= ALLOWED, found - ALLOWED
    if folder == "difc_ray":
        assert found == ALLOWED  # an exception that is not needed any more goes


@pytest.mark.parametrize(
    "line",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads as read\nread(data)",
        "from ray import cloudpickle\ncloudpickle.loads(data)",
        "import torch\ntorch.load(file)",
        "import torch\ntorch.load(file, weights_only=False)",
        "import numpy as np\nnp.load(file, allow_pickle=True)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml as y\ny.unsafe_load(text)",
        "eval(text)",
        "exec(text)",
        "import subprocess\nsubprocess.run(line, shell=True)",
    ],
)
def test_each_of_these_would_be_found(line: str) -> None:
    assert len(list(dangers(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import torch\ntorch.load(file, weights_only=True)",
        "import numpy as np\nnp.load(file, allow_pickle=False)",
        "import yaml\nyaml.safe_load(text)",
        "model.eval()",
        "re.compile(text)",
    ],
)
def test_these_are_harmless(line: str) -> None:
    assert list(dangers(line)) == []


def snapshot(config_yaml: str) -> Snapshot:
    return Snapshot({}, {}, {"step": 1}, config_yaml)


BOMB = "a: &a [1, 1]\n" + "".join(
    f"{each}: &{each} [{', '.join([f'*{before}'] * 9)}]\n" for before, each in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!python/object/apply:os.system [touch x]\n", "Python tags are not allowed"),
        ("steps: !!python/object/apply:os.system [touch x]\n", "Python tags are not allowed"),
        (BOMB, "at most 10,000 values"),
        ("steps: 1\nsteps: 2\n", "`steps` is given twice"),
        ("[1]\n", "must be a mapping"),
    ],
)  # fmt: skip
def test_the_settings_in_a_checkpoint_are_read_like_a_file_of_the_user(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        recorded_settings(snapshot(text))


def test_the_settings_of_a_checkpoint() -> None:
    assert recorded_settings(snapshot("steps: 3\noptimizer:\n  lr: 1e-3\n")) == {"steps": 3, "optimizer": {"lr": 1e-3}}
    assert recorded_settings(snapshot("")) == {}


def open_servers(text: str) -> list[str]:
    """Every `mlflow server` in a text that others could reach and that answers to any name, or to none of theirs."""
    commands = re.findall(r"mlflow server(?: -{1,2}[^`\n]*)?", text)
    return [each for each in commands if "--host" in each and "127.0.0.1" not in each and "--allowed-hosts" not in each]


@pytest.mark.parametrize("name", documents())
def test_mlflow_servers_in_examples_say_who_may_ask(name: str) -> None:
    text = documents()[name]
    assert open_servers(text) == []
    assert "disable-security" not in text.lower()


def test_an_open_server_would_be_found() -> None:
    assert open_servers("`mlflow server --host 0.0.0.0 --port 5000`") == ["mlflow server --host 0.0.0.0 --port 5000"]


def test_the_threat_model_answers_its_three_questions() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    for question in ("somebody on the cluster", "a data file", "a checkpoint"):
        assert f"\n## What {question} can do\n" in text
    assert len(text.split()) < 1000  # one page is read
