"""A user's own dataset, model and rule, in a module beside the user: no fork, and the same on Ray workers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from tests.cli import user_module
from tests.cli.shell import ROOT, Cli, difc_ray

SETTINGS = (*user_module.SETTINGS, "harmonize.rule=longest", "tracking.mode=off")

PRELUDE = """
from dataclasses import dataclass
from difc_ray.harmonizers import HARMONIZERS, Harmonization, Harmonizer
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the module; its rule is the one that the documentation shows."""
    rule = re.search(r"```python\n(@HARMONIZERS.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert rule is not None
    (tmp_path / "squares.py").write_text(user_module.TEXT + PRELUDE + rule[1])
    return tmp_path


@pytest.mark.ray
def test_inline_and_on_ray_workers(folder: Path, cli: Cli) -> None:
    distributed = difc_ray("train", "name=ray", *SETTINGS, cwd=folder)
    assert (distributed.code, distributed.err) == (0, "")
    importers = set((folder / "imported-by.txt").read_text().split())
    assert len(importers) >= 4  # driver, coordinator and two workers
    inline = cli("train", "name=inline", "engine=inline", *SETTINGS)
    assert (inline.code, inline.err) == (0, "")
    assert str(os.getpid()) in (folder / "imported-by.txt").read_text().split()
    one, other = (json.loads((folder / "runs" / name / "summary.json").read_text()) for name in ("inline", "ray"))
    assert one["accuracy"] == other["accuracy"]
