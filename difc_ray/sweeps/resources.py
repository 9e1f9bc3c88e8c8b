"""What a trial asks Ray for, checked against what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ray import tune

from difc_ray.config import Config
from difc_ray.engines.ray.planning import Node, PlacementPlan, plan_for
from difc_ray.engines.ray.preflight import check_nodes
from difc_ray.errors import ClusterError


@dataclass
class Resources:
    """What a trial asks Ray for, checked against what there is.

    Args:
        base: what all trials share.
        nodes: the nodes of the cluster.
        folds: whether some trials train on one source less.
    """

    base: Config
    nodes: Sequence[Node]
    folds: bool = False

    def __post_init__(self) -> None:
        engine = self.base.engine if self.base.trial.engine == "auto" else self.base.trial.engine
        self.inline = engine == "inline"
        most = max((node.resources.get("CPU", 0.0) for node in self.nodes), default=0.0)
        if self.inline and self.base.trial.cpus > most:
            raise ClusterError(
                f"the cluster must have room for one trial, got too little of CPUs (CPU: wanted "
                f"{self.base.trial.cpus:g}, available {most:g} on the largest node). Lower `trial.cpus`, or add nodes."
            )
        k = len(self.base.sources)
        self.plans = {"": PlacementPlan(cpus=self.base.trial.cpus, gpus=0.0, owners=self.base.sources, labels=({},) * k,
                               bundles=({"CPU": self.base.trial.cpus},) * k)}  # fmt: skip
        if not self.inline:
            self.plans = {fold: plan_for(self._config_of(fold), self.nodes)
                          for fold in ("", *(self.base.sources if self.folds else ()))}  # fmt: skip

    def check_nodes(self) -> None:
        """Looks at every node on which a process of a trial may live.

        Raises:
            ClusterError: one of them does not suit the trials.
        """
        check_nodes(self.base, self.plans[""], self.nodes)

    def _config_of(self, fold: str) -> Config:
        """What a trial trains that holds out a source."""
        return self.base.model_copy(update={"sources": tuple(name for name in self.base.sources if name != fold)})

    def request(self, config: Mapping[str, Any]) -> Any:
        """A trial's placement group: for the Ray engine nothing for Tune's process, then the engine's bundles."""
        if self.inline:
            return tune.PlacementGroupFactory([{"CPU": self.base.trial.cpus}])
        plan = self.plans[config.get("point", {}).get("fold") or ""]
        labels = {} if plan.selectors is None else {"bundle_label_selector": plan.selectors}
        return tune.PlacementGroupFactory([{}, *plan.bundles], strategy=plan.strategy, **labels)
