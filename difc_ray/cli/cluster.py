"""`difc-ray doctor --cluster`: the nodes of a cluster, what each lacks, and where a run would live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray
from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import console, print_facts, print_table
from difc_ray.config import Config, resolve
from difc_ray.engines.ray.placement import cluster_nodes, connect
from difc_ray.engines.ray.planning import Node, PlacementPlan, amounts, lacks_of, node_names, plan_for
from difc_ray.engines.ray.preflight import NodeReport, examine, memory_notices, node_problems
from difc_ray.errors import ClusterError
from difc_ray.step.factory import model_of
from difc_ray.vectors import ParameterLayout


def examine_cluster(config: Config) -> int:
    """Prints the nodes, the plan and every problem; returns the exit code 0, or 4 where something is wrong.

    Raises:
        ClusterError: there is no cluster to look at.
    """
    config = resolve(config)
    owned = connect(config)
    try:
        nodes = cluster_nodes()
        here, reports = examine(config, nodes)
        plan, problems = _planned(config, nodes)
        free = ray.available_resources()
    finally:
        if owned:
            ray.shutdown()
    names = node_names(nodes)
    if plan is not None:
        problems += node_problems(config, plan, here, reports)
    problems += _memory_problems(config, reports, names)
    print_table(_node_table(reports, names, here))
    print_facts({"here": ", ".join(f"{name} {version}" for name, version in here.items())})
    if plan is not None:
        where = plan.describe(plan.nodes, names) if plan.nodes else "the cluster is to start nodes for it"
        print_facts({"plan": where, "bundles": _bundle_lines(plan),
                     "busy": lacks_of(plan, free)})  # fmt: skip
    for problem in problems:
        console.print(f"[red]problem[/]       {escape(problem)}", soft_wrap=True)
    if not problems:
        print_facts({"result": f"{len(nodes)} node(s), nothing wrong"})
    return 4 if problems else 0


def _planned(config: Config, nodes: Sequence[Node]) -> tuple[PlacementPlan | None, list[str]]:
    try:
        return plan_for(config, nodes), []
    except ClusterError as error:
        return None, [str(error)]


def _memory_problems(config: Config, reports: Sequence[NodeReport], names: Mapping[str, str]) -> list[str]:
    """What /dev/shm is too small for, node by node."""
    size = ParameterLayout.of(model_of(config)[0]).size
    return [
        f"{names[report.node.id]}: {notice}"
        for report in reports
        if report.shm_bytes is not None
        for notice in memory_notices(size, len(config.sources), report.shm_bytes)
    ]


def _bundle_lines(plan: PlacementPlan) -> list[str]:
    """What each process asks for."""
    return [f"{o}: {amounts(b, w)}" for o, b, w in zip(plan.owners, plan.bundles, plan.labels, strict=True)]


def _node_table(reports: Sequence[NodeReport], names: Mapping[str, str], here: Mapping[str, str]) -> Table:
    table = Table(title="nodes", title_justify="left")
    for title in ("node", "CPU", "GPU", "resources", "labels", "versions", "sees output", "has root", "/dev/shm free"):
        table.add_column(title, justify="right" if title in ("CPU", "GPU", "/dev/shm free") else "left")
    for report in reports:
        node, word = report.node, {True: "yes", False: "no", None: "not needed"}
        told = [", ".join(_different(report, here)), word[report.sees_output], word[report.has_root],
                "none" if report.shm_bytes is None else f"{report.shm_bytes / 2**20:,.0f} MB"]  # fmt: skip
        table.add_row(
            names[node.id], f"{node.resources.get('CPU', 0):g}", f"{node.resources.get('GPU', 0):g}",
            ", ".join(f"{name} {amount:g}" for name, amount in node.named_resources().items()),
            ", ".join(f"{key}={value}" for key, value in node.named_labels().items()),
            *([report.silence, "?", "?", "?"] if report.silence else told),
        )  # fmt: skip
    return table


def _different(report: NodeReport, here: Mapping[str, str]) -> list[str]:
    """The versions of a node that are not the driver's."""
    found = [f"{name} {report.versions.get(name)}" for name in here if here[name] != report.versions.get(name)]
    return found or ["as here"]
