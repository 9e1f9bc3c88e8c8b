"""What makes a run the run it is: the content of its data, the versions of its libraries, the state of its code."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from difc_ray.data import Domain

LIBRARIES = ("difc-ray", "torch", "torchvision", "ray", "numpy", "mlflow")


def data_fingerprint(domains: Mapping[str, Domain]) -> str:
    """sha256 over the content of all domains of a run, by name."""
    digest = hashlib.sha256()
    for name in sorted(domains):
        digest.update(f"{name}:{domains[name].fingerprint()}\n".encode())
    return digest.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Versions of Python and of the libraries that decide the bits.

    Args:
        *more: libraries that only some runs need.
    """
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_tags() -> dict[str, str]:
    """Commit of the code and whether it was changed since; empty where the code is not in a git checkout."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        dirty = bool(_git(folder, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"git.sha": commit, "git.dirty": str(dirty).lower()}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()
