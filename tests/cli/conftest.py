"""A trained run for the commands that need one, and the command line in this process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from difc_ray.cli.app import execute
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
def cli(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Runs a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = execute(list(arguments))
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run
