"""Which bundle of resources each actor gets, and whether the nodes of a cluster have room for all: pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from difc_ray.config import Config, Wish, wishes
from difc_ray.determinism import automatic_cpus
from difc_ray.errors import ClusterError

NEARLY = 1e-9
"""Amounts closer than this are the same; Ray itself counts in units of 1e-4."""

TRIES = 2000
"""Places that are tried before a search for room is given up."""

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
        nodes: where each bundle has room, as far as the totals tell; Ray decides.
        idle_gpus: GPUs that there are and that `auto` leaves alone, as not every domain could have one.
    """

    cpus: float
    gpus: float
    owners: tuple[str, ...]
    bundles: tuple[dict[str, float], ...]
    labels: tuple[dict[str, str], ...]
    strategy: str = "PACK"
    nodes: tuple[Node, ...] = ()
    idle_gpus: float = 0.0

    @property
    def named(self) -> bool:
        """Whether a bundle asks for something besides CPUs and GPUs."""
        return any(set(bundle) - {"CPU", "GPU"} for bundle in self.bundles) or any(self.labels)

    @property
    def selectors(self) -> list[dict[str, str]] | None:
        """The labels as Ray takes them; None: none."""
        return [dict(wanted) for wanted in self.labels] if any(self.labels) else None

    def describe(self, nodes: Sequence[Node], names: Mapping[str, str]) -> str:
        """The plan on one line: strategy, resources of each actor, who lives where.

        Args:
            nodes: where each bundle is.
            names: what each node is called, by id.
        """
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU per domain" if self.gpus else "")
        idle = f"; {self.idle_gpus:g} GPU(s) idle: not every domain can have one" if self.idle_gpus else ""
        at: dict[str, list[str]] = {}
        for owner, bundle, wanted, node in zip(self.owners, self.bundles, self.labels, nodes, strict=True):
            told = str(wish_in(bundle, wanted))
            at.setdefault(names[node.id], []).append(f"{owner} ({told})" if told else owner)
        where = "; ".join(f"{name}: {', '.join(owners)}" for name, owners in at.items())
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

    With `cluster.autoscale` nothing has to be there yet, and the plan says where bundles have room only if they do.

    Raises:
        ClusterError: what is wanted against what is available, whose bundle it is, and the keys to change.
    """
    told = config.cluster
    if told.autoscale and told.cpus_per_worker != "auto" and told.gpus_per_worker != "auto":
        plan = _plan(config, told.cpus_per_worker, told.gpus_per_worker)
        where = find_room(plan.bundles, plan.labels, nodes, plan.strategy)
        return replace(plan, nodes=tuple(nodes[index] for index in where or ()))
    alone = _plan(config, 0.0, 0.0)
    _check_wishes(alone, nodes)
    total = {name: math.fsum(node.resources.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    k = len(members_of(config))
    cpus = [told.cpus_per_worker] if told.cpus_per_worker != "auto" else list(_cpu_shares(total["CPU"], k))
    gpus = [told.gpus_per_worker] if told.gpus_per_worker != "auto" else list(_gpu_shares(total["GPU"], k))
    _check_totals(min(cpus), min(gpus), k, total)
    for gpu in gpus:
        for cpu in cpus:
            plan = _plan(config, cpu, gpu)
            where = find_room(plan.bundles, plan.labels, nodes, plan.strategy)
            if where is not None:
                idle = total["GPU"] if not gpu and told.gpus_per_worker == "auto" else 0.0
                return replace(plan, nodes=tuple(nodes[index] for index in where), idle_gpus=idle)
    raise _no_room(_plan(config, cpus[-1], gpus[-1]), nodes)


def _plan(config: Config, cpus: float, gpus: float) -> PlacementPlan:
    """The bundles for given shares."""
    asked = wishes(config)
    members = members_of(config)
    each = [asked.get(member.domain, Wish()) for member in members]
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


def find_room(
    bundles: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, str]], nodes: Sequence[Node], strategy: str
) -> tuple[int, ...] | None:
    """The node of every bundle, such that all have room at once; None: none was found.

    Those with the fewest nodes to choose from are placed first; `PACK` prefers nodes that are in use, `SPREAD` those
    that are not. This says whether there is room, not where Ray will find it.
    """
    choices = [[i for i, node in enumerate(nodes) if fits(b, w, node)] for b, w in zip(bundles, labels, strict=True)]
    if not all(choices):
        return None
    order = sorted(range(len(bundles)), key=lambda b: (len(choices[b]), -bundles[b].get("GPU", 0.0)))
    rooms = [_Room.of(node) for node in nodes]
    placed: dict[int, int] = {}
    tries = 0

    def place(position: int) -> bool:
        """Whether the bundles from this place of the order on found room; backtracks where they did not."""
        nonlocal tries
        if position == len(order):
            return True
        bundle = order[position]
        used = list(placed.values())
        sign = -1 if strategy == "PACK" else 1
        for index in sorted(choices[bundle], key=lambda i: (sign * used.count(i), i)):
            tries += 1
            left = rooms[index].without(bundles[bundle])
            if left is None or tries > TRIES:
                continue
            before, rooms[index], placed[bundle] = rooms[index], left, index
            if place(position + 1):
                return True
            rooms[index] = before
            del placed[bundle]
        return False

    return tuple(placed[bundle] for bundle in range(len(bundles))) if place(0) else None


def fits(bundle: Mapping[str, float], labels: Mapping[str, str], node: Node) -> bool:
    """Whether a node that is all free has room for a bundle, and the labels that it wants."""
    return _Room.of(node).without(bundle) is not None and all(node.labels.get(k) == v for k, v in labels.items())


@dataclass(frozen=True)
class _Room:
    """What is left of a node: amounts, and the share of each single GPU, as a fraction lies on one of them."""

    amounts: Mapping[str, float]
    gpus: tuple[float, ...]

    @classmethod
    def of(cls, node: Node) -> _Room:
        return cls(node.resources, (1.0,) * int(node.resources.get("GPU", 0.0)))

    def without(self, bundle: Mapping[str, float]) -> _Room | None:
        """What a bundle leaves; None: it has no room."""
        amounts = dict(self.amounts)
        for name, wanted in bundle.items():
            amounts[name] = amounts.get(name, 0.0) - wanted
            if amounts[name] < -NEARLY:
                return None
        gpus, wanted = sorted(self.gpus), bundle.get("GPU", 0.0)
        for _ in range(math.ceil(wanted)):
            share = min(wanted, 1.0)
            at = next((i for i, left in enumerate(gpus) if left >= share - NEARLY), None)
            if at is None:
                return None
            gpus[at] -= share
        return _Room(amounts, tuple(gpus))


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
    told = [f"{name} {amount:g}" for name, amount in bundle.items()]
    return ", ".join(told + [f"label {key}={value}" for key, value in labels.items()])


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
