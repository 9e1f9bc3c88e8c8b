"""What a cluster has, what its nodes lack, and where a run would live: for `difc-ray doctor --cluster`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray

from difc_ray.config import Config
from difc_ray.engines.ray.placement import cluster_nodes, connect
from difc_ray.engines.ray.planning import Node, PlacementPlan, lacks_of, node_names, plan_for
from difc_ray.engines.ray.preflight import NodeReport, examine, memory_notices, node_problems
from difc_ray.errors import ClusterError
from difc_ray.step.factory import model_of
from difc_ray.vectors import ParameterLayout


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A cluster as a run would find it.

    Args:
        names: what people call each node, by its id.
        reports: what each node said of itself.
        versions: of this machine's packages, by name.
        plan: where the run would live; None: nowhere.
        busy: what the plan needs and others use now; empty: nothing.
        problems: one finished sentence each.
    """

    names: Mapping[str, str]
    reports: Sequence[NodeReport]
    versions: Mapping[str, str]
    plan: PlacementPlan | None
    busy: str
    problems: Sequence[str]


def survey(config: Config) -> Survey:
    """Joins the cluster of a resolved configuration, asks all nodes at once, and leaves it.

    Raises:
        ClusterError: there is no cluster to look at.
    """
    owned = connect(config)
    try:
        nodes = cluster_nodes()
        versions, reports = examine(config, nodes)
        plan, problems = _planned(config, nodes)
        free = ray.available_resources()
    finally:
        if owned:
            ray.shutdown()
    names = node_names(nodes)
    if plan is not None:
        problems += node_problems(config, plan, versions, reports)
    size = ParameterLayout.of(model_of(config)[0]).size
    problems += [
        f"{names[report.node.id]}: {notice}"
        for report in reports
        if report.shm_bytes is not None
        for notice in memory_notices(size, len(config.sources), report.shm_bytes)
    ]
    busy = "" if plan is None else lacks_of(plan, free)
    return Survey(names=names, reports=reports, versions=versions, plan=plan, busy=busy, problems=problems)


def _planned(config: Config, nodes: Sequence[Node]) -> tuple[PlacementPlan | None, list[str]]:
    try:
        return plan_for(config, nodes), []
    except ClusterError as error:
        return None, [str(error)]
