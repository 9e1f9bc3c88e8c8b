"""A user's own dataset, model and rule, in a module beside the user: no fork, and the same on Ray workers."""

from __future__ import annotations

import json
import re
import sqlite3
from pathlib import Path

import pytest

from tests.cli.shell import ROOT, difc_ray

MODULE = """
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from difc_ray.domains import DATASETS, DatasetFamily, Domain
from difc_ray.harmonizers import HARMONIZERS, Harmonization, Harmonizer
from difc_ray.models import MODELS, Model

with Path(__file__).with_name("imported-by.txt").open("a") as log:
    print(os.getpid(), file=log)


class Squares(Domain):
    def __init__(self, name, brightness, seed):
        self.brightness = brightness
        super().__init__(name, ("dark", "light"), (1, 4, 4), np.arange(200) % 2, seed)

    def images_at(self, indices):
        noise = np.random.default_rng(7).random((200, 1, 4, 4), dtype=np.float32)
        signal = self.brightness * self.labels[indices].astype(np.float32)
        return noise[indices] + signal[:, None, None, None]


@DATASETS.register("squares")
class SquaresFamily(DatasetFamily):
    description = "bright and dark squares"
    class_names = ("dark", "light")
    image_shape = (1, 4, 4)

    def domain_names(self):
        return ("plain", "bright@1 é", "far")

    def load(self, domain_name):
        self.check_domain(domain_name)
        return Squares(domain_name, 1.0 + self.domain_names().index(domain_name), self.seed)


@MODELS.register("flat")
def flat(image_shape, n_outputs, options):
    return Model(nn.Flatten(), nn.Linear(16, n_outputs))

"""

SETTINGS = (
    "plugins=mine", "dataset=squares", "sources=plain,bright@1 é", "target=far", "model=flat",
    "harmonize.rule=longest", "steps=5", "batch_size=8", "optimizer.lr=0.1",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the module: dataset and model from above, the rule as the documentation shows it."""
    rule = re.search(r"```python\n(@HARMONIZERS.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    assert rule is not None
    (tmp_path / "mine.py").write_text(MODULE + rule[1])
    return tmp_path


@pytest.mark.ray
def test_inline_and_on_ray_workers(folder: Path) -> None:
    inline = difc_ray("train", "engine=inline", "name=inline", *SETTINGS, cwd=folder)
    assert (inline.code, inline.err) == (0, "")
    assert len(importers(folder)) == 1  # MLflow's uploader may be a second one when it saves the model
    distributed = difc_ray("train", "name=ray", "tracking.mode=off", *SETTINGS, cwd=folder)
    assert (distributed.code, distributed.err) == (0, "")
    assert len(importers(folder)) >= 1 + 4  # driver, coordinator and two workers
    one, other = (json.loads((folder / "runs" / name / "summary.json").read_text()) for name in ("inline", "ray"))
    assert one["accuracy"] == other["accuracy"]
    assert one["accuracy"]["far"]["all"] > 0.9

    # 30: a name that MLflow refuses is changed for it, and the change is noted once
    with sqlite3.connect(folder / "runs" / "mlflow.db") as database:
        keys = {key for (key,) in database.execute("SELECT DISTINCT key FROM metrics")}
        tags = {key: value for key, value in database.execute("SELECT key, value FROM tags")}
    renamed = [key for key in keys if key.startswith("final/val/accuracy/bright")]
    assert len(renamed) == 1
    assert tags[f"difc_ray.renamed.{renamed[0]}"] == "final/val/accuracy/bright@1 é"


def importers(folder: Path) -> set[str]:
    """The processes that imported the module."""
    return set((folder / "imported-by.txt").read_text().split())
