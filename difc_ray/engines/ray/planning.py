"""Which bundle of resources each actor gets, and whether the nodes of a cluster have room for all: pure functions."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from difc_ray.config import Config, Wish, wishes
from difc_ray.determinism import automatic_cpus
from difc_ray.errors import ClusterError

NEARLY = 1e-9
"""Amounts closer than this are the same; Ray itself counts in units of 1e-4."""

_BUILT_IN = ("CPU", "GPU", "memory", "object_store_memory")


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster.

    Args:
        id: Ray's name for it.
        host: its host name.
        resources: what it has in all, also of what is in use.
        labels: its labels.
    """

    id: str
    host: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def named_resources(self) -> dict[str, float]:
        """What it was given besides CPUs, GPUs and memory."""
        return {
            name: amount
            for name, amount in self.resources.items()
            if name not in _BUILT_IN and not name.startswith("node:")
        }

    def named_labels(self) -> dict[str, str]:
        """Its labels, without Ray's own."""
        return {key: value for key, value in self.labels.items() if not key.startswith("ray.io/")}

    def has(self) -> str:
        """As in ``CPU 4, GPU 0, site_a 1, label zone=east``."""
        amounts = {name: self.resources.get(name, 0.0) for name in ("CPU", "GPU")} | self.named_resources()
        return ", ".join(
            [f"{name} {amount:g}" for name, amount in amounts.items()]
            + [f"label {key}={value}" for key, value in self.named_labels().items()]
        )


@dataclass(frozen=True, kw_only=True)
class Member:
    """One domain worker of a run.

    Args:
        domain: the source domain.
        part: which part of the domain's batch is its own, from 0.
        parts: how many workers divide the batch (`cluster.replicas`).
    """

    domain: str
    part: int
    parts: int

    def __str__(self) -> str:
        """The domain, and where there are several, which of them: counted from 1."""
        return self.domain if self.parts == 1 else f"{self.domain} #{self.part + 1}"

    def tags(self) -> dict[str, str | int | None]:
        """The same for a log: domain, and number or None."""
        return {"domain": self.domain, "part": self.part + 1 if self.parts > 1 else None}


def members_of(config: Config) -> list[Member]:
    """All domain workers of a run: those of a domain are neighbours.

    >>> str(Member(domain="photo", part=1, parts=2))
    'photo #2'
    """
    parts = config.cluster.replicas
    return [Member(domain=name, part=part, parts=parts) for name in config.sources for part in range(parts)]


@dataclass(frozen=True, kw_only=True)
class PlacementPlan:
    """Resources of one run.

    Args:
        cpus: CPUs of each actor, the coordinator's included.
        gpus: GPUs of each domain worker (a fraction shares one).
        owners: whose bundle each is: the coordinator's, then one per domain worker.
        bundles: the placement group's bundles, in that order.
        labels: the labels that the node of each must have.
        strategy: `PACK` or `SPREAD`.
        idle_gpus: GPUs that there are and that `auto` leaves alone, as not every domain could have one.
    """

    cpus: float
    gpus: float
    owners: tuple[str, ...]
    bundles: tuple[dict[str, float], ...]
    labels: tuple[dict[str, str], ...]
    strategy: str = "PACK"
    idle_gpus: float = 0.0

    @property
    def named(self) -> bool:
        """Whether a bundle asks for something besides CPUs and GPUs."""
        return any(set(bundle) - {"CPU", "GPU"} for bundle in self.bundles) or any(self.labels)

    @property
    def selectors(self) -> list[dict[str, str]] | None:
        """The labels as Ray takes them; None: none."""
        return [dict(wanted) for wanted in self.labels] if any(self.labels) else None

    def describe(self, owners_at: Mapping[str, Sequence[str]]) -> str:
        """The plan on one line: strategy, resources of each actor, and the actors of each node.

        Args:
            owners_at: whose bundles are on each node, or may be there, by the node's name.
        """
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU per domain" if self.gpus else "")
        idle = f"; {self.idle_gpus:g} GPU(s) idle: not every domain can have one" if self.idle_gpus else ""
        shown = {}
        for owner, bundle, labels in zip(self.owners, self.bundles, self.labels, strict=True):
            wish = str(wish_in(bundle, labels))
            shown[owner] = f"{owner} ({wish})" if wish else owner
        where = "; ".join(f"{name}: {', '.join(shown[o] for o in owners)}" for name, owners in owners_at.items())
        return f"{self.strategy.lower()}, {each}{idle} | {where}"


def wish_in(bundle: Mapping[str, float], labels: Mapping[str, str]) -> Wish:
    """What a bundle asks for besides CPUs and GPUs."""
    return Wish(resources={n: a for n, a in bundle.items() if n not in ("CPU", "GPU")}, labels=labels)


def node_names(nodes: Sequence[Node]) -> dict[str, str]:
    """What nodes are called, by id: their hosts, with a part of the id where a host has several.

    >>> node_names([Node(id="abcdef99", host="a", resources={})])
    {'abcdef99': 'a'}
    """
    hosts = [node.host for node in nodes]
    return {n.id: n.host if hosts.count(n.host) == 1 else f"{n.host}/{n.id[:6]}" for n in nodes}


def plan_for(config: Config, nodes: Sequence[Node]) -> PlacementPlan:
    """Resolves `auto` resources against what the nodes have, and checks that there is room for all actors at once.

    `auto` takes the largest GPU share, then the largest CPU share, for which there is: fewer GPUs than domains are
    shared by as few domains each as possible, and a share never stretches over two GPUs.

    Which node takes which bundle is for Ray to decide. With `cluster.autoscale` nothing has to be there yet.

    Raises:
        ClusterError: what is wanted against what is available, whose bundle it is, and the keys to change.
    """
    cluster = config.cluster
    if cluster.autoscale and cluster.cpus_per_worker != "auto" and cluster.gpus_per_worker != "auto":
        return _plan(config, cluster.cpus_per_worker, cluster.gpus_per_worker)
    alone = _plan(config, 0.0, 0.0)
    _check_wishes(alone, nodes)
    total = {name: math.fsum(node.resources.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    k = len(members_of(config))
    cpus = [cluster.cpus_per_worker] if cluster.cpus_per_worker != "auto" else list(_cpu_shares(total["CPU"], k))
    gpus = [cluster.gpus_per_worker] if cluster.gpus_per_worker != "auto" else list(_gpu_shares(total["GPU"], k))
    _check_totals(min(cpus), min(gpus), k, total)
    for gpu in gpus:
        for cpu in cpus:
            plan = _plan(config, cpu, gpu)
            if has_room(plan, nodes):
                idle = total["GPU"] if not gpu and cluster.gpus_per_worker == "auto" else 0.0
                return replace(plan, idle_gpus=idle)
    raise _no_room(_plan(config, cpus[-1], gpus[-1]), nodes)


def _plan(config: Config, cpus: float, gpus: float) -> PlacementPlan:
    """The bundles for given shares."""
    wanted = wishes(config)
    members = members_of(config)
    each = [wanted.get(member.domain, Wish()) for member in members]
    share = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    return PlacementPlan(
        cpus=cpus,
        gpus=gpus,
        owners=("coordinator", *map(str, members)),
        bundles=({"CPU": cpus}, *({**share, **wish.resources} for wish in each)),
        labels=({}, *(dict(wish.labels) for wish in each)),
        strategy=config.cluster.strategy.upper(),
    )


def _cpu_shares(total: float, k: int) -> Iterator[float]:
    """CPUs of an actor, the most first: what there is by the number of actors, then parts of one CPU."""
    first = automatic_cpus(total, k)
    yield first
    yield from (share for share in (int(1000 / m) / 1000 for m in range(1, k + 2)) if share < first)


def _gpu_shares(total: float, k: int) -> Iterator[float]:
    """GPUs of a domain, the most first: one, or one among as few as possible, or none."""
    if total:
        yield from (int(1000 / m) / 1000 for m in range(max(1, math.ceil(k / total)), k + 1))
    yield 0.0


def has_room(plan: PlacementPlan, nodes: Sequence[Node]) -> bool:
    """Whether the nodes can hold as many bundles of each kind as there are, as far as counting tells.

    Every bundle must fit on a node, the nodes must have room for all bundles of one kind, and for all of the
    coordinator's size. Where different kinds stand in each other's way is for Ray to find out, which then says which
    resources it lacks.
    """
    kinds = {amounts(b, w): (b, w) for b, w in zip(plan.bundles, plan.labels, strict=True)}
    wanted = Counter(amounts(b, w) for b, w in zip(plan.bundles, plan.labels, strict=True))
    wanted[amounts(plan.bundles[0], plan.labels[0])] = len(plan.bundles)  # the least that any bundle asks for
    return all(sum(copies(*kinds[kind], node) for node in nodes) >= number for kind, number in wanted.items())


def copies(bundle: Mapping[str, float], labels: Mapping[str, str], node: Node) -> int:
    """How often a bundle fits on a node that is all free; a share of a GPU lies on one GPU.

    >>> copies({"CPU": 1.0, "GPU": 0.6}, {}, Node(id="a", host="a", resources={"CPU": 8.0, "GPU": 2.0}))
    2
    """
    if any(node.labels.get(key) != value for key, value in labels.items()):
        return 0
    counts = []
    for name, amount in bundle.items():
        there = node.resources.get(name, 0.0)
        if name == "GPU" and amount < 1:
            counts.append(int(there) * int(1 / amount + NEARLY))
        else:
            counts.append(int(there / amount + NEARLY) if amount else sys.maxsize)
    return min(counts)


def fits(bundle: Mapping[str, float], labels: Mapping[str, str], node: Node) -> bool:
    """Whether a node that is all free has room for a bundle, and the labels that it wants."""
    return copies(bundle, labels, node) > 0


def _check_wishes(plan: PlacementPlan, nodes: Sequence[Node]) -> None:
    """Whether each domain has a node with the resources and labels that it names.

    Raises:
        ClusterError: what the domain asks for, and what the nodes have.
    """
    for owner, bundle, labels in zip(plan.owners, plan.bundles, plan.labels, strict=True):
        wish = wish_in(bundle, labels)
        if str(wish) and not any(fits(bundle, labels, node) for node in nodes):
            raise ClusterError(
                f"domain `{owner}` must have a node with {wish}, got {_table(nodes)} (cluster.bundles). Correct "
                f"`cluster.bundles.{owner}`, or start such a node: `ray start --address=HEAD {_start_options(wish)}`."
            )


def _start_options(wish: Wish) -> str:
    """The options that give a node what a domain asks for."""
    amounts = ", ".join(f'"{name}": {amount:g}' for name, amount in wish.resources.items())
    labels = ",".join(f"{key}={value}" for key, value in wish.labels.items())
    options = [f"--resources='{{{amounts}}}'"] * bool(amounts) + [f"--labels={labels}"] * bool(labels)
    return " ".join(options)


def _check_totals(cpus: float, gpus: float, k: int, have: Mapping[str, float]) -> None:
    """Whether the whole cluster has enough CPUs and GPUs, wherever they are.

    Raises:
        ClusterError: a table of wanted against available.
    """
    wanted = {"CPU": cpus * (k + 1), "GPU": gpus * k}
    short = [name for name in wanted if wanted[name] > have[name] + NEARLY]
    if short or cpus <= 0:
        table = "; ".join(f"{name}: wanted {wanted[name]:g}, available {have[name]:g}" for name in wanted)
        what = " and ".join(f"{name}s" for name in short or ["CPU"])
        keys = " or ".join(f"`cluster.{name.lower()}s_per_worker`" for name in short or ["CPU"])
        raise ClusterError(
            f"the cluster must have room for {k} domain workers and a coordinator, got too little of {what} ({table}). "
            f"Lower {keys}, name fewer `sources`, add nodes (or let it: `cluster.autoscale=true`), or use "
            "`engine=inline`."
        )


def _no_room(plan: PlacementPlan, nodes: Sequence[Node]) -> ClusterError:
    """The bundles that no node has room for, or all of them where each would fit alone."""
    lonely = [
        f"{owner}: {amounts(bundle, labels)}"
        for owner, bundle, labels in zip(plan.owners, plan.bundles, plan.labels, strict=True)
        if not any(fits(bundle, labels, node) for node in nodes)
    ]
    each = [f"{o}: {amounts(b, w)}" for o, b, w in zip(plan.owners, plan.bundles, plan.labels, strict=True)]
    wanted = wanted_by(plan).items()
    there = {name: math.fsum(node.resources.get(name, 0.0) for node in nodes) for name, _ in wanted}
    short = [f"{name}: wanted {total:g} in all, available {there[name]:g}" for name, total in wanted
             if total > there[name] + NEARLY]  # fmt: skip
    rule = "a node must have room for each bundle" if lonely else "the nodes must have room for all bundles at once"
    return ClusterError(
        f"{rule}, got none for {'; '.join(short or lonely or each)} (nodes: {_table(nodes)}). Lower "
        "`cluster.cpus_per_worker` or `cluster.gpus_per_worker`, ask for less in `cluster.bundles`, or add nodes "
        "(or let the cluster: `cluster.autoscale=true`)."
    )


def amounts(bundle: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """All that a bundle asks for, as in ``CPU 0.5, site_a 1, label zone=east``."""
    parts = [f"{name} {amount:g}" for name, amount in bundle.items()]
    return ", ".join(parts + [f"label {key}={value}" for key, value in labels.items()])


def lacks_of(plan: PlacementPlan, free: Mapping[str, float]) -> str:
    """Which resources others use at the moment, of those that all bundles want together; empty: none."""
    wanted = wanted_by(plan)
    return "; ".join(
        f"{name}: wanted {amount:g}, free {free.get(name, 0.0):g}"
        for name, amount in wanted.items()
        if amount > free.get(name, 0.0) + NEARLY
    )


def wanted_by(plan: PlacementPlan) -> dict[str, float]:
    """What all bundles want together."""
    names = dict.fromkeys(name for bundle in plan.bundles for name in bundle)
    return {name: math.fsum(bundle.get(name, 0.0) for bundle in plan.bundles) for name in names}


def _table(nodes: Sequence[Node]) -> str:
    names = node_names(nodes)
    return "; ".join(f"{names[node.id]} with {node.has()}" for node in nodes) or "no node"
