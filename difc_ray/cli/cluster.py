"""`difc-ray doctor --cluster`: the nodes of a cluster, what each lacks, and where the actors of a run may live."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from difc_ray.cli.console import console, make_table, print_facts, print_table
from difc_ray.config import Config, resolve
from difc_ray.engines.ray.planning import amounts
from difc_ray.engines.ray.preflight import NodeReport, bundles_fitting
from difc_ray.engines.ray.survey import Survey, survey

SEEN = {True: "yes", False: "no", None: "not needed"}


def examine_cluster(config: Config) -> int:
    """Prints the nodes, the plan and every problem; returns the exit code 0, or 4 where something is wrong.

    Raises:
        ClusterError: there is no cluster to look at.
    """
    found = survey(resolve(config))
    print_table(_node_table(found))
    print_facts({"here": ", ".join(f"{name} {version}" for name, version in found.versions.items())})
    if (plan := found.plan) is not None:
        takers = [(report.node, bundles_fitting(plan, report.node)) for report in found.reports]
        owners_at = {f"{found.names[node.id]} may take": owners for node, owners in takers if owners}
        where = plan.describe(owners_at) if owners_at else "the cluster is to start nodes for it"
        asked = zip(plan.owners, plan.bundles, plan.labels, strict=True)
        bundles = [f"{owner}: {amounts(bundle, labels)}" for owner, bundle, labels in asked]
        print_facts({"plan": where, "bundles": bundles, "busy": found.busy})
    for problem in found.problems:
        console.print(f"[red]problem[/]       {escape(problem)}", soft_wrap=True)
    if not found.problems:
        print_facts({"result": f"{len(found.reports)} node(s), nothing wrong"})
    return 4 if found.problems else 0


def _node_table(found: Survey) -> Table:
    right = ("CPU", "GPU", "/dev/shm free")
    table = make_table(
        "node", "CPU", "GPU", "resources", "labels", "versions", "sees output", "has root", "/dev/shm free",
        title="nodes", right=right,
    )  # fmt: skip
    for report in found.reports:
        node, shm = report.node, "none" if report.shm_bytes is None else f"{report.shm_bytes / 2**20:,.0f} MB"
        told = [_different(report, found), SEEN[report.sees_output], SEEN[report.has_root], shm]
        table.add_row(
            found.names[node.id], f"{node.resources.get('CPU', 0):g}", f"{node.resources.get('GPU', 0):g}",
            ", ".join(f"{name} {amount:g}" for name, amount in node.named_resources().items()),
            ", ".join(f"{key}={value}" for key, value in node.named_labels().items()),
            *([report.silence, "?", "?", "?"] if report.silence else told),
        )  # fmt: skip
    return table


def _different(report: NodeReport, found: Survey) -> str:
    """The versions of a node that are not the driver's."""
    told = {name: report.versions.get(name) for name, here in found.versions.items()}
    return (
        ", ".join(f"{name} {version}" for name, version in told.items() if version != found.versions[name]) or "as here"
    )
