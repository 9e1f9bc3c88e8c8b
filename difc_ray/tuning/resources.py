"""What a trial asks Ray for, checked against what there is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray import tune

from difc_ray.config import Config
from difc_ray.distributed.placement import plan_for
from difc_ray.errors import ClusterError


@dataclass
class Resources:
    """What a trial asks Ray for, checked against what there is.

    Args:
        base: what all trials share.
        cluster: the cluster's totals.
        folds: whether some trials train on one source less.
    """

    base: Config
    cluster: Mapping[str, float]
    folds: bool = False

    def __post_init__(self) -> None:
        engine = self.base.engine if self.base.trial.engine == "auto" else self.base.trial.engine
        self.inline = engine == "inline"
        if self.inline and self.base.trial.cpus > self.cluster.get("CPU", 0.0):
            raise ClusterError(
                f"the cluster must have room for one trial, got too little of CPUs (CPU: wanted "
                f"{self.base.trial.cpus:g}, available {self.cluster.get('CPU', 0.0):g}). Lower `trial.cpus`, or add "
                "nodes."
            )
        if not self.inline:
            self.bundles = [{}, *plan_for(self.base, self.cluster).bundles]

    def request(self, config: Mapping[str, Any]) -> Any:
        """A trial's placement group: for the Ray engine nothing for Tune's process, then the engine's bundles."""
        if self.inline:
            return tune.PlacementGroupFactory([{"CPU": self.base.trial.cpus}])
        less = 1 if config.get("point", {}).get("fold") else 0
        return tune.PlacementGroupFactory(self.bundles[: len(self.bundles) - less], strategy="PACK")
