"""Files that installed packages ship, found and read without importing the package, which takes seconds."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def shipped(package: str, *parts: str) -> Path:
    """A file or folder inside of an installed package.

    Args:
        package: name of a top-level package.
        parts: the path below it.

    Raises:
        ImportError: the package is not installed.
        FileNotFoundError: it ships no such thing.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"{package} is not installed")
    path = Path(spec.origin).parent.joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(f"no `{'/'.join(parts)}` in {package}")
    return path
