"""Whether the nodes of a cluster suit a run: one short task on each, all at once, with a deadline."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from difc_ray.config import Config, Problem
from difc_ray.engines.ray import probe
from difc_ray.engines.ray.planning import Node, PlacementPlan, fits, members_of, node_names
from difc_ray.errors import ClusterError

ANSWER_S = 20.0
"""Seconds that a node has to answer; a free one takes one to three, most of them the start of a process."""

SHM = Path("/dev/shm")
"""Where Ray's object stores lie."""


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What a node said of itself; see :func:`difc_ray.engines.ray.probe.look`.

    Args:
        node: the node.
        versions: by package, with `python` and `code`.
        sees_output: whether it sees a file that the driver has just written beside the runs.
        has_root: whether it has the dataset's folder; None: the dataset needs none.
        shm_bytes: free in /dev/shm; None: it has none.
        silence: why there is no report; empty: there is one.
    """

    node: Node
    versions: Mapping[str, str]
    sees_output: bool = False
    has_root: bool | None = None
    shm_bytes: int | None = None
    silence: str = ""


class NodesUnfit(ClusterError):
    """Everything that is wrong with the nodes.

    Args:
        problems: one finished sentence each, at least one.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)

    def __reduce__(self) -> tuple[type[NodesUnfit], tuple[list[str]]]:
        return type(self), (self.problems,)


def check_nodes(config: Config, plan: PlacementPlan, nodes: Sequence[Node]) -> None:
    """Looks at every node, if there is more than the driver's own.

    Raises:
        NodesUnfit: a node has other versions, does not see the runs, lacks the data, or does not answer.
    """
    if len(nodes) > 1:
        here, reports = examine(config, nodes)
        if problems := node_problems(config, plan, here, reports):
            raise NodesUnfit(problems)


def examine(config: Config, nodes: Sequence[Node]) -> tuple[Mapping[str, str], list[NodeReport]]:
    """Our own versions, and what each node says within the deadline."""
    with marker_beside(config.output) as (path, content):
        root = None if config.root is None else str(config.root)
        questions = {"packages": probe.PACKAGES, "marker": str(path), "content": content, "root": root}
        here = probe.look(questions)["versions"]
        ray.cloudpickle.register_pickle_by_value(probe)
        try:
            task = ray.remote(probe.look)
            references = [
                task.options(
                    num_cpus=0,
                    max_retries=0,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=node.id, soft=False),
                ).remote(questions)
                for node in nodes
            ]
        finally:
            ray.cloudpickle.unregister_pickle_by_value(probe)
        deadline = time.monotonic() + ANSWER_S
        reports = []
        for node, reference in zip(nodes, references, strict=True):
            reports.append(_report(node, reference, max(0.0, deadline - time.monotonic())))
        return here, reports


def _report(node: Node, reference: Any, timeout_s: float) -> NodeReport:
    try:
        return NodeReport(node=node, **ray.get(reference, timeout=timeout_s))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(reference, force=True)
        return NodeReport(node=node, versions={}, silence=f"no answer within {ANSWER_S:g} s")
    except ray.exceptions.RayError as error:
        words = " ".join(str(getattr(error, "cause", None) or error).split())
        return NodeReport(node=node, versions={}, silence=words[:200] or type(error).__name__)


@contextmanager
def marker_beside(output: Path) -> Iterator[tuple[Path, str]]:
    """A file where the runs are to lie, or in the folder above that exists, as long as the nodes look for it."""
    standing = next(folder for folder in (output, *output.parents) if folder.is_dir())
    content = secrets.token_hex(16)
    try:
        handle, name = tempfile.mkstemp(prefix=".difc-ray-", dir=standing)
    except OSError as error:
        raise ClusterError(
            f"`output` must be writable, got `{standing}`: {error.strerror or error} (output). Name another folder, or "
            "free space and permissions."
        ) from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a file system of the network shows it to others
        os.chmod(name, 0o644)
        yield Path(name), content
    finally:
        with suppress(OSError):
            os.unlink(name)


def node_problems(
    config: Config, plan: PlacementPlan, here: Mapping[str, str], reports: Sequence[NodeReport]
) -> list[str]:
    """What is wrong with the nodes that a process of the run may live on, one sentence each.

    Args:
        config: the configuration.
        plan: what each process asks of its node.
        here: versions of the driver.
        reports: what the nodes say.
    """
    names = node_names([report.node for report in reports])
    problems: list[str] = []
    for report in reports:
        owners = bundles_fitting(plan, report.node)
        if owners:
            problems += _problems_of(config, names[report.node.id], owners, here, report)
    return problems


def bundles_fitting(plan: PlacementPlan, node: Node) -> list[str]:
    """The processes of a run that a node has room for, one at a time."""
    return [
        owner for owner, bundle, labels in zip(plan.owners, plan.bundles, plan.labels, strict=True)
        if fits(bundle, labels, node)
    ]  # fmt: skip


def _problems_of(
    config: Config, name: str, owners: Sequence[str], here: Mapping[str, str], report: NodeReport
) -> Iterator[str]:
    if report.silence:
        yield str(
            Problem(
                what=f"node {name} must answer", got=report.silence, where="preflight",
                remedy="Look at its load and its Ray, take it out of the cluster, or keep domains from it by labels "
                "in `cluster.bundles`.",
            )
        )  # fmt: skip
        return
    other = {package: (v, report.versions.get(package, "none")) for package, v in here.items()}
    wrong = [f"{package} {there} ({mine} here)" for package, (mine, there) in other.items() if mine != there]
    if wrong:
        remedy = "Install the same there: `pip install -c constraints.txt .`, of the same commit."
        what = f"node {name} must have the driver's versions"
        yield str(Problem(what=what, got=", ".join(wrong), where="preflight", remedy=remedy))
    if not report.sees_output:
        what = f"node {name} must see the folder of the runs"
        got = f"`{config.output}` on this machine only"
        remedy = "Put `output` on storage that all nodes share, under the same path."
        yield str(Problem(what=what, got=got, where="output", remedy=remedy, keys=("output",)))
    named = {str(member): member.domain for member in members_of(config)}
    domains = list(dict.fromkeys(named[owner] for owner in owners if owner in named))
    if report.has_root is False and domains:
        what = f"node {name} must have the dataset's folder, as {', '.join(f'`{d}`' for d in domains)} may live there"
        remedy = (
            "Copy or mount it there, or say in `cluster.bundles` on which nodes these domains live, by `resources` or "
            "`labels`."
        )
        yield str(Problem(what=what, got=f"no `{config.root}`", where="root", remedy=remedy, keys=("root",)))


def memory_notices(size: int, k: int, free_bytes: int | None = None) -> list[str]:
    """Whether /dev/shm has room for the rows and states of a step, which otherwise go to disk.

    Args:
        size: parameters of the model.
        k: source domains.
        free_bytes: free in /dev/shm; None: what this machine has.
    """
    if free_bytes is None:
        if not SHM.is_dir():
            return []
        free_bytes = shutil.disk_usage(SHM).free
    needed = step_bytes(size, k)
    if free_bytes >= needed:
        return []
    return [
        f"/dev/shm has {free_bytes / 2**20:,.0f} MB free and a step of {size:,} parameters and {k} domains needs "
        f"{needed / 2**20:,.0f} MB: Ray falls back to disk, which is slow. Enlarge it (Docker: "
        f"`--shm-size={2 * needed // 2**20 + 1}m`)."
    ]


def step_bytes(size: int, k: int) -> int:
    """Bytes that a step holds in the object store: up to two rows of each domain, two states, and one more to spare."""
    return (2 * k + 3) * 4 * size
