"""A user's own dataset, model and rule, in a module beside the user: no fork, and the same on Ray workers."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
import torch

from difc_ray.objectives.losses import LOSSES
from tests.cli import user_module
from tests.cli.shell import ROOT, Cli, assert_sentences, difc_ray

SETTINGS = (*user_module.SETTINGS, "harmonize.rule=longest", "tracking.mode=off")


def documented() -> list[str]:
    """The pieces of Python in CONTRIBUTING.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the module; its rule is the one that the documentation shows."""
    (rule,) = [text for text in documented() if "HARMONIZERS" in text]
    (tmp_path / "squares.py").write_text(user_module.TEXT + rule)
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


def test_what_contributing_shows_trains(cli: Cli, tmp_path: Path) -> None:
    """Every piece alone is complete, and all of them together train, by the command that stands there."""
    pieces = documented()
    kinds = ("DATASETS", "MODELS", "HARMONIZERS", "LOSSES", "OBJECTIVES")
    assert [kind for piece in pieces for kind in kinds if f"@{kind}.register" in piece] == list(kinds)
    package = tmp_path / "my_plugin"
    package.mkdir()
    for i, piece in enumerate(pieces):
        (package / f"piece_{i}.py").write_text(piece)
    (package / "__init__.py").write_text("".join(f"import my_plugin.piece_{i}\n" for i in range(len(pieces))))
    text = (ROOT / "CONTRIBUTING.md").read_text()
    command = re.search(r"^difc-ray train (plugins=my_plugin .*)$", text, re.MULTILINE)
    assert command is not None
    more = ("engine=inline", "steps=3", "batch_size=8", "tracking.mode=off", "name=p")
    more += ("loss=smoothed", "loss_options.smoothing=0.2", "model_options.hidden=16")
    more += ("alignment.penalty=diagonals", "alignment.options.factor=2")
    answer = cli("train", *command[1].split(), *more)
    assert (answer.code, answer.err) == (0, ""), answer.err
    assert "diagonals (α 0.1)" in answer.out
    summary = json.loads((tmp_path / "runs" / "p" / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"dim", "normal", "bright"}
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, loss = torch.tensor([0, 1, 2, 1, 0]), LOSSES.get("smoothed")({"smoothing": 0.2})
    (gradient,) = torch.autograd.grad(5 * loss.value(logits, labels), logits)
    torch.testing.assert_close(gradient, loss.residual(logits, labels))
    answer = cli("config", *command[1].split(), "objective=diagonals", "alignment.options.facto=2", "name=q")
    assert_sentences(answer, ("Unknown option `facto` of objective `diagonals`", "Did you mean `factor`?"))
