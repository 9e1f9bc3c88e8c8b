"""Nothing of ours stays behind: neither in a Ray job's package of a checkout, nor out of git."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package
from ray._private.runtime_env.working_dir import upload_working_dir_if_needed

from tests.cli.shell import ROOT
from tests.clusters import data_of


def modules() -> set[str]:
    """Every module of the package, as a path below the checkout."""
    return {str(path.relative_to(ROOT)) for path in (ROOT / "difc_ray").rglob("*.py")}


def test_a_job_gets_every_module_of_a_checkout(tmp_path: Path) -> None:
    """Ray leaves out what `.gitignore` and `.rayignore` name, at any depth unless the name begins with a slash."""
    package = tmp_path / "package.zip"
    excluded = ray_constants.get_runtime_env_default_excludes()
    create_package(str(ROOT), package, include_gitignore=True, excludes=excluded)
    packed = set(zipfile.ZipFile(package).namelist())
    assert len(modules()) > 100
    assert not modules() - packed
    assert not {name for name in packed if name.startswith(("tests/", "benchmarks/", ".git/", ".venv/"))}


def test_no_secret_travels_with_our_runtime_env(tmp_path: Path) -> None:
    """From a folder that ignores nothing itself, at any depth."""
    home, packed = tmp_path / "home", set[str]()
    for folder in (home, home / "deep", home / "deep" / "deeper"):
        folder.mkdir()
        for name in (".env", ".env.local", "host.pem", "id.key", "run.yaml"):
            (folder / name).touch()

    def pack(folder: str, excludes: list[str]) -> None:
        create_package(folder, tmp_path / "package.zip", include_gitignore=True, excludes=excludes)
        packed.update(name for name in zipfile.ZipFile(tmp_path / "package.zip").namelist() if name[-1] != "/")

    runtime_env = {**data_of("runtime_env.yaml"), "working_dir": str(home)}
    upload_working_dir_if_needed(runtime_env, True, str(tmp_path), upload_fn=pack)
    assert packed == {"run.yaml", "deep/run.yaml", "deep/deeper/run.yaml"}


def test_git_ignores_no_module() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT, input="\n".join(sorted(modules())), capture_output=True, text=True,
    )  # fmt: skip
    assert (ignored.returncode, ignored.stdout) == (1, ""), ignored.stdout + ignored.stderr
