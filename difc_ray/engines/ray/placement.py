"""Where the actors go: connect to Ray, look at its nodes, reserve one placement group."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import ray
from ray._private import ray_constants
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from difc_ray.config import Config
from difc_ray.engines.ray.access import check_head, on_loopback_only, token_found
from difc_ray.engines.ray.planning import Node, PlacementPlan, wanted_by
from difc_ray.engines.ray.processes import in_sessions_of_their_own
from difc_ray.errors import ClusterError
from difc_ray.secrets import masked

PROBE_S = 5.0
"""Seconds that an address has to answer; Ray itself would try for minutes."""

TELL_S = 10.0
"""How often a run that waits for resources says for which."""

SOCKET_PATH_BYTES, SESSION_PATH_BYTES = 107, 70
"""Longest path of a Unix socket, and what Ray appends to its temporary folder."""

SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for clusters of several machines, off on Windows and macOS. Where it is off, this machine's address is
127.0.0.1, and Ray's servers bind to it; where it is on, they listen on all interfaces (Ray 2.60, measured)."""


def connect(config: Config) -> bool:
    """Connects to the configured cluster, to the one of the surrounding job, or starts a local one.

    Returns:
        Whether this call started or joined Ray (the caller then disconnects).

    Raises:
        ClusterError: nothing answers at the address, the token is refused, or the version differs.
    """
    if ray.is_initialized():
        return False
    address = config.cluster.address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        _start_local(config)
        return True
    assert address is not None
    if address.startswith(("http://", "https://")):
        raise ClusterError(
            f"a run connects to a Ray head, not to its dashboard, got `{masked(address)}` ({where(config)}). "
            "Give `cluster.address=HOST:6379`, or run it there as a job, with `ray job submit`."
        )
    if address != "auto":
        probe_address(address, where(config))
    here = _on_loopback() if on_loopback_only(address) else nullcontext()
    try:
        with here:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise ClusterError(explain_refusal(address, error, where(config))) from error
    return True


def where(config: Config) -> str:
    """What names the cluster: the configuration, the environment, or nothing."""
    named = "RAY_ADDRESS" if os.environ.get("RAY_ADDRESS") else "this machine"
    return "cluster.address" if config.cluster.address else named


def probe_address(address: str, origin: str) -> None:
    """A TCP connection to ``HOST:PORT``, and a question who is there, with deadlines.

    Args:
        address: where to.
        origin: what names the address.

    Raises:
        ClusterError: the address has another form, nobody answers there, it is no Ray, or it wants another token.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ClusterError(
            f"the address of Ray must be HOST:PORT, `auto` or `local`, got `{masked(address)}` ({origin}). The head "
            "prints its address when it starts; the usual port is 6379."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ClusterError(
            f"a Ray head must answer at {address}, got {reason} ({origin}). Start one with `ray start --head`, correct "
            "the address, or leave it out to start Ray on this machine."
        ) from error
    check_head(address, origin)


def explain_refusal(address: str, error: Exception, origin: str) -> str:
    """Ray's refusal in our words."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if any(word in str(error).lower() for word in ("token", "unauthenticated", "authentication")):
        return (
            f"the cluster at {address} wants its token, got this: {text} ({origin}). Set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token."
        )
    if "failed to connect" in str(error).lower():  # the port answered, and Ray says no more to a wrong token
        return (
            f"Ray at {address} must know us, got this after its port had answered: {text} ({origin}). If the cluster "
            "wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds it; else check that "
            "the port is that of a Ray head."
        )
    if "version mismatch" in str(error).lower():
        return (
            f"the cluster at {address} must run our versions, got this: {text} ({origin}). Install its Ray and Python "
            "here."
        )
    if address == "auto":
        return (
            f"`auto` joins a Ray that runs here, got {text} ({origin}). Start one with `ray start --head`, or leave "
            "the address out."
        )
    return (
        f"Ray at {address} must accept the connection, got {text} ({origin}). Check the address, the network and the "
        "versions."
    )


def _start_local(config: Config) -> None:
    """A private Ray on this machine: on loopback only, no dashboard, token authentication on, no usage report."""
    temporary = os.environ.get("RAY_TMPDIR", "")
    if len(temporary) + SESSION_PATH_BYTES > SOCKET_PATH_BYTES:
        raise ClusterError(
            f"RAY_TMPDIR must leave room for Ray's socket names, that is have at most "
            f"{SOCKET_PATH_BYTES - SESSION_PATH_BYTES} characters, got {len(temporary)} in `{temporary}` "
            "(environment). Set it to a shorter path."
        )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not named and not _has_own_token():
        # Ray turns authentication on for a local cluster; without a token it would write one that all users can read.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    size, memory = config.cluster.object_store_mb, psutil.virtual_memory().total // 2**20
    if size is not None and size >= memory:
        raise ClusterError(
            f"`cluster.object_store_mb` must be less than this machine's memory, {memory} MiB, got {size} "
            "(cluster.object_store_mb). Lower it, or leave it out."
        )
    try:
        with in_sessions_of_their_own(), _on_loopback():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=None if size is None else size * 2**20,
            )
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"a Ray that starts here wants a token, got {token_found(error)} (environment). Correct the variable, or "
            "take it away: then the run makes a token of its own."
        ) from error
    except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        written = bool(temporary) and isinstance(error, OSError)
        remedy = "Set RAY_TMPDIR to a folder that can be written" if written else (
            "Run `difc-ray doctor` to see what is missing")  # fmt: skip
        raise ClusterError(
            f"Ray must start here, got {told} (this machine). {remedy}, or use `engine=inline`."
        ) from error


@contextmanager
def _on_loopback() -> Iterator[None]:
    """A Ray that is started here takes 127.0.0.1 for its node's address, and no server of it listens on another.

    A process that joins such a Ray looks for it there.

    ``ray.init(_node_ip_address="127.0.0.1")`` does not do that: Ray replaces the address by that of the network.
    """
    variable, constant = os.environ.get(SEVERAL_NODES), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[SEVERAL_NODES] = "0"  # for Ray's processes
    ray_constants.ENABLE_RAY_CLUSTER = False  # for this one, which has read the variable already
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        if variable is None:
            os.environ.pop(SEVERAL_NODES, None)
        else:
            os.environ[SEVERAL_NODES] = variable


def _has_own_token() -> bool:
    """Whether Ray finds a token of this user; without a home (a container's nameless user) it finds none."""
    try:
        return (Path.home() / ".ray" / "auth_token").exists()
    except RuntimeError:
        return False


def cluster_nodes() -> list[Node]:
    """The nodes that are alive."""
    return [
        Node(
            id=str(node["NodeID"]),
            host=str(node["NodeManagerHostname"]),
            resources={name: float(amount) for name, amount in node["Resources"].items()},
            labels=dict(node.get("Labels") or {}),
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def nodes_of(group: PlacementGroup) -> list[str]:
    """The node of every bundle of a granted group, by its id."""
    placed = placement_group_table(group)["bundles_to_node_id"]
    return [str(placed[index]) for index in range(len(placed))]


def reserve(
    config: Config, plan: PlacementPlan, interrupted: Callable[[], bool], notice: Callable[[str], None]
) -> tuple[PlacementGroup, bool]:
    """The trial's own placement group if there is one, else a new one; says now and then what it waits for.

    Returns:
        The group, and whether it is ours to remove.

    Raises:
        ClusterError: not granted within `cluster.start_timeout_s`.
    """
    surrounding = ray.util.get_current_placement_group()
    if surrounding is not None:
        return surrounding, False
    group = placement_group(list(plan.bundles), strategy=plan.strategy, bundle_label_selector=plan.selectors)
    began = told = time.monotonic()
    limit = config.cluster.start_timeout_s
    while not group.wait(timeout_seconds=0.5):
        now = time.monotonic()
        state = placement_group_table(group)["stats"]["scheduling_state"]
        if interrupted():
            remove_placement_group(group)
            raise ClusterError("The placement group was not granted yet.")
        hopeless = state == "INFEASIBLE" and not config.cluster.autoscale  # a group that waits is what nodes start for
        if now - began > limit or hopeless:
            table = _wanted_and_free(plan)
            remove_placement_group(group)
            raise ClusterError(
                f"the cluster must grant the bundles of the plan within {limit:g} s, got the state {state} after "
                f"{now - began:.0f} s ({table}). Wait for other runs to end, lower `cluster.cpus_per_worker` or "
                "`cluster.gpus_per_worker`, or raise `cluster.start_timeout_s`."
            )
        if now - told > TELL_S:
            told = now
            notice(
                f"waiting {now - began:.0f} s of {limit:g} s for resources that others use: {_wanted_and_free(plan)}"
            )
    return group, True


def _wanted_and_free(plan: PlacementPlan) -> str:
    """What all bundles want together, and what is free of it now."""
    free, total = ray.available_resources(), ray.cluster_resources()
    return "; ".join(
        f"{name}: wanted {amount:g}, free {free.get(name, 0.0):g} of {total.get(name, 0.0):g}"
        for name, amount in wanted_by(plan).items()
    )


def release(group: PlacementGroup) -> None:
    """Removes a placement group and waits until its resources are free again (5 s at most)."""
    remove_placement_group(group)
    deadline = time.monotonic() + 5.0
    while placement_group_table(group).get("state") != "REMOVED" and time.monotonic() < deadline:
        time.sleep(0.02)
