"""Nothing of ours stays behind: neither in a Ray job's package of a checkout, nor out of git."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package

from tests.cli.shell import ROOT


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


def test_git_ignores_no_module() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT, input="\n".join(sorted(modules())), capture_output=True, text=True,
    )  # fmt: skip
    assert (ignored.returncode, ignored.stdout) == (1, ""), ignored.stdout + ignored.stderr
