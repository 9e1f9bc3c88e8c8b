"""Fixtures of several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.published import Part, as_large_as_mnist, write_idx


@pytest.fixture(scope="session")
def mnist_parts() -> tuple[Part, Part]:
    """Train and test part of a set that cannot be told from MNIST by its counts and brightness."""
    return as_large_as_mnist()


@pytest.fixture(scope="session")
def mnist_root(mnist_parts: tuple[Part, Part], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its files, as torchvision lays them out."""
    folder = tmp_path_factory.mktemp("mnist")
    write_idx(folder / "MNIST" / "raw", *mnist_parts)
    return folder
