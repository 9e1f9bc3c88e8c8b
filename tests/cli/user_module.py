"""What a user may bring: the text of a module with a small dataset and a model, fast enough to train in a test."""

from __future__ import annotations

TEXT = """
import os
from pathlib import Path

import numpy as np
from torch import nn

from difc_ray.data import DATASETS, DatasetFamily, Domain
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
    "plugins=squares", "dataset=squares", "sources=plain,bright@1 é", "target=far", "model=flat", "steps=5",
    "eval_every=3", "batch_size=8", "optimizer.lr=0.1",
)  # fmt: skip
"""A run with them, when the text is in ``squares.py``."""
