"""Nodes that are lost or will be: which are to go, which answer, and whether a bundle of the run lies on one."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from datetime import datetime

import ray
from ray.util.placement_group import PlacementGroup, placement_group_table

from difc_ray.engines.ray.private import draining_nodes

ANSWER_S = 2.0
"""How long the Ray of a node may take to accept a connection."""

LOOK_S = 1.0
"""How often it is looked whether nodes are to be taken away, in seconds."""


def draining() -> dict[str, str]:
    """Nodes that are to be taken away, by id, each with the time of day at which it is; empty: none was given.

    A cloud's notice of preemption, `ray drain-node` and an autoscaler that shrinks all arrive here.
    """
    deadlines = draining_nodes().items()
    return {node: f"{datetime.fromtimestamp(ms / 1e3):%H:%M:%S}" if ms else "" for node, ms in deadlines}


def lives(node: str) -> bool:
    """Whether a node is there, and not only for a cluster that has not noticed its loss yet.

    Ray declares a node dead after some missed health checks. Until then it sends new actors there, to fail with it.
    """
    for each in ray.nodes():
        if str(each["NodeID"]) == node:
            return bool(each["Alive"]) and _answers(str(each["NodeManagerAddress"]), int(each["NodeManagerPort"]))
    return False


def has_place(group: PlacementGroup, bundle: int) -> bool:
    """Whether a bundle lies on a node that lives; Ray moves those of a lost node to where there is room."""
    node = placement_group_table(group)["bundles_to_node_id"].get(bundle, "")
    return bool(node) and lives(str(node))


def wanted_and_free(wanted: Mapping[str, float], labels: Mapping[str, str] | None = None) -> str:
    """What is asked for, what is free of it in the whole cluster, and the labels that a node must have."""
    free, total = ray.available_resources(), ray.cluster_resources()
    parts = [
        f"{name}: wanted {amount:g}, free {free.get(name, 0.0):g} of {total.get(name, 0.0):g}"
        for name, amount in wanted.items()
    ]
    return "; ".join([*parts, *(f"label {key}={value}" for key, value in (labels or {}).items())])


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True
