"""A trained run for the commands that need one, and the command line in this process."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from difc_ray.cli.console import UNWRAPPED, console
from difc_ray.cli.execution import execute
from difc_ray.data import DATASETS
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.models import MODELS
from difc_ray.objectives import OBJECTIVES
from difc_ray.objectives.losses import LOSSES
from difc_ray.registry import Registry
from tests.cli.shell import FAST, Answer, Cli, difc_ray


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """The output folder of one small inline run called `first`, recorded in MLflow, and what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    answer = difc_ray("train", "engine=inline", "name=first", *FAST, cwd=folder)
    assert answer.code == 0, answer.err
    return folder / "runs", answer


@pytest.fixture
def trained(trained_once: tuple[Path, Answer], tmp_path: Path) -> Path:
    """A copy of that run's folder, to do harm to."""
    return Path(shutil.copytree(trained_once[0] / "first", tmp_path / "runs" / "first"))


@pytest.fixture
def _fresh_registries() -> Iterator[None]:
    """What plug-ins register in this process, and their modules, are gone afterwards."""
    registries: tuple[Registry[Any], ...] = (DATASETS, MODELS, LOSSES, OBJECTIVES, HARMONIZERS)
    items, modules = [dict(registry._items) for registry in registries], set(sys.modules)
    yield
    for registry, held in zip(registries, items, strict=True):
        registry._items.clear()
        registry._items.update(held)
    ours = {"squares", "surprise", "normalised", "broken", "my_plugin"}
    for name in [name for name in sys.modules if name.partition(".")[0] in ours and name not in modules]:
        del sys.modules[name]


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _fresh_registries: None
) -> Cli:
    """Runs a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(console, "_width", UNWRAPPED)  # whatever the terminal of whoever runs the tests

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = execute(list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run
