"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.published import Part


@pytest.fixture(scope="session")
def mnist_parts() -> tuple[Part, Part]:
    """Train and test part of a set that cannot be told from MNIST by its counts and brightness."""
    from tests.published import as_large_as_mnist  # imports torch, which most files here do without

    return as_large_as_mnist()


@pytest.fixture(scope="session")
def mnist_root(mnist_parts: tuple[Part, Part], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files, as torchvision lays them out."""
    from tests.published import write_idx

    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder / "MNIST" / "raw", *mnist_parts)
    return folder
