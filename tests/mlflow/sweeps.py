"""Sweeps written into a real MLflow store as `difc-ray tune` writes them, without the training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

SOURCES = ("mnist", "optdigits", "fonts")
TARGET = "mnistm"
DATA = "ab12" * 16


@dataclass
class FakeSweep:
    """A parent run and its trials.

    Args:
        uri: tracking URI.
        name: name of the sweep.
    """

    uri: str
    name: str
    client: MlflowClient = field(init=False)
    parent: str = field(init=False)
    trials: int = 0

    def __post_init__(self) -> None:
        self.client = MlflowClient(self.uri, registry_uri=self.uri)
        held = self.client.get_experiment_by_name("difc_ray")
        store = Path(self.uri.split(":///", 1)[1]).parent / "mlartifacts"
        self.experiment = held.experiment_id if held else self.client.create_experiment("difc_ray", store.as_uri())
        tags = {"kind": "sweep", "sweep": self.name, "sweep.metric": "val/accuracy", "sweep.mode": "max",
                "sweep.space": "space", "target": TARGET, "dataset": "digits"}  # fmt: skip
        self.parent = self.client.create_run(self.experiment, run_name=self.name, tags=tags).info.run_id
        self.client.set_terminated(self.parent)

    def trial(
        self,
        point: int,
        seed: int,
        accuracies: Mapping[str, float] | None,
        target_accuracy: float | None,
        *,
        rule: str = "ghpp",
        objective: str = "hutchinson",
        values: Mapping[str, Any] | None = None,
        target: str = TARGET,
        sources: Sequence[str] = SOURCES,
        fold: str | None = None,
        status: str = "FINISHED",
        tags: Mapping[str, str] | None = None,
        hessian: Sequence[float] | None = None,
        steps: int = 100,
        curve_to: int | None = None,
        fingerprint: str = DATA,
        dataset: str = "digits",
    ) -> str:
        """One child run; accuracies None: it ended before its evaluation of the end."""
        own = {
            "mlflow.parentRunId": self.parent, "sweep": self.name, "sweep.trial": str(self.trials),
            "sweep.point": str(point), "sweep.values": json.dumps(dict(values or {})),
            "dataset": dataset, "dataset.fingerprint": fingerprint, "domains": ",".join(sources), "target": target,
            "rule": rule, "seed": str(seed),
        }  # fmt: skip
        own |= {"sweep.fold": fold} if fold else {}
        own |= dict(tags or {})
        run = self.client.create_run(self.experiment, run_name=f"{self.name}-{self.trials:03d}", tags=own).info.run_id
        self.trials += 1
        params = {"alignment.alpha": "0.1", "alignment.beta": "0.1", "harmonize.lam": "0.5", "harmonize.rule": rule,
                  "objective": objective, "seed": str(seed), "steps": str(steps), "batch_size": "64", "model": "lenet",
                  "selection": "train_domain_val"}  # fmt: skip
        params |= {key: str(value) for key, value in (values or {}).items()}
        metrics: list[Metric] = []
        for index, domain in enumerate(sources):
            end = (accuracies or {}).get(domain, 0.9 - 0.02 * index)
            for step in range(10, (curve_to or steps) + 1, 10):
                value = end * (1 - math.exp(-step / 12)) / (1 - math.exp(-steps / 12))
                metrics.append(Metric(f"val/accuracy/{domain}", value, step, step))
            if accuracies is not None:
                metrics.append(Metric(f"final/val/accuracy/{domain}", end, steps, steps))
        if target_accuracy is not None:
            metrics.append(Metric(f"final/all/accuracy/{target}", target_accuracy, steps, steps))
        for step, value in enumerate(hessian or (), 1):
            metrics.append(Metric("align/hessian", value, step, step))
        for first in range(0, len(metrics), 900):
            self.client.log_batch(run, metrics=metrics[first : first + 900])
        self.client.log_batch(run, params=[Param(*item) for item in params.items()], tags=[RunTag("engine.name", "x")])
        self.client.set_terminated(run, status)
        return str(run)


def fill_alpha_beta(sweep: FakeSweep) -> None:
    """Twelve settings of `ghpp + hutchinson`, six of them stopped, one failed; and the plain mean; five seeds each."""
    rng = np.random.default_rng(3)
    for seed in range(5):
        noise = rng.normal(0, 0.006, size=4)
        good = {domain: 0.93 - 0.02 * i + float(noise[i]) for i, domain in enumerate(SOURCES)}
        sweep.trial(0, seed, good, 0.58 + float(noise[3]), rule="mean", objective="erm",
                    values={"harmonize.rule": "mean", "alignment.alpha": 0, "alignment.beta": 0})  # fmt: skip
    for point in range(1, 13):
        lam, alpha, beta = rng.uniform(0, 1), 10 ** rng.uniform(-3, 1), 10 ** rng.uniform(-3, 1)
        values = {"harmonize.lam": round(float(lam), 4), "alignment.alpha": float(alpha), "alignment.beta": float(beta)}
        merit = -0.01 * (math.log10(alpha) + 1) ** 2 - 0.02 * (lam - 0.5) ** 2
        for seed in range(5):
            noise = rng.normal(0, 0.006, size=4)
            good = {d: 0.95 + merit - 0.02 * i + float(noise[i]) for i, d in enumerate(SOURCES)}
            distance = 0.05 / (1 + alpha)
            if point == 12:
                sweep.trial(point, seed, None, None, values=values, status="FAILED", curve_to=20,
                            tags={"error": "NumericError: <b>loss</b> was not finite for 20 steps"})  # fmt: skip
            elif point > 6:
                sweep.trial(point, seed, None, None, values=values, status="KILLED", curve_to=30 + 10 * (point % 3),
                            tags={"sweep.stopped": "asha"})  # fmt: skip
            else:
                hessian = [distance * (3 if step < 90 else 1) for step in range(100)]
                sweep.trial(point, seed, good, 0.60 + merit + float(noise[3]), values=values, hessian=hessian)
