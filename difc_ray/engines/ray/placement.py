"""Where the actors go: connect to Ray, look at its nodes, reserve one placement group."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import grpc
import psutil
import ray
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from difc_ray.config import Config
from difc_ray.engines.ray.nodes import wanted_and_free
from difc_ray.engines.ray.planning import Node, PlacementPlan, wanted_by
from difc_ray.engines.ray.private import on_loopback
from difc_ray.engines.ray.processes import in_sessions_of_their_own
from difc_ray.errors import ClusterError
from difc_ray.secrets import masked

PROBE_S = 5.0
"""Seconds that an address has to answer; Ray itself would try for minutes."""

TELL_S = 10.0
"""How often a run that waits for resources says for which."""

SOCKET_PATH_BYTES, SESSION_PATH_BYTES = 107, 70
"""Longest path of a Unix socket, and what Ray appends to its temporary folder."""


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
    here = on_loopback() if _on_loopback_only(address) else nullcontext()
    try:
        with here, _without_words():
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
    target = address.removeprefix("ray://")
    host, _, port = target.rpartition(":")
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
    if not _speaks_grpc(target):
        raise ClusterError(
            f"a Ray head must answer at {address}, got the answer of something else ({origin}). Correct the address: "
            "the port of a head is 6379 unless the cluster says otherwise, and 8265 is its dashboard's."
        )


def _speaks_grpc(target: str) -> bool:
    """Whether a gRPC server answers at ``HOST:PORT``, as a Ray head does; Ray itself would try for minutes."""
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return True  # which only Ray can tell
    channel = grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=PROBE_S)
    except grpc.FutureTimeoutError:
        return False
    finally:
        channel.close()
    return True


@contextmanager
def _without_words() -> Iterator[None]:
    """Lets nothing through to standard error, where Ray's core tells every second that it is not let in."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _on_loopback_only(address: str) -> bool:
    """Whether a head of this machine listens at its loopback address, and not at the one that it has in the network.

    Ray itself would look for it there.

    Args:
        address: ``HOST:PORT``.
    """
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((ray.util.get_node_ip_address(), int(port)), timeout=PROBE_S).close()
        return False
    except OSError:
        return True


def explain_refusal(address: str, error: Exception, origin: str) -> str:
    """Ray's refusal in our words."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if "authenticat" in f"{type(error).__name__} {error} {error.__cause__}".lower():
        found = "another one, or none" if "failed to connect" in text.lower() else f"this: {text.rstrip('.')}"
        return (
            f"the cluster at {address} wants its token, got {found} ({origin}). Set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token."
        )
    if "failed to connect" in str(error).lower():  # the port answered, and Ray says no more
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
        with in_sessions_of_their_own(), on_loopback():
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                object_store_memory=None if size is None else size * 2**20,
            )
    except ray.exceptions.AuthenticationError as error:
        raise ClusterError(
            f"a Ray that starts here wants a token, got this: {' '.join(str(error).split())} (environment). Correct "
            "the variable, or take it away: then the run makes a token of its own."
        ) from error
    except (ConnectionError, RuntimeError, OSError, ValueError, ray.exceptions.RayError) as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
        written = bool(temporary) and isinstance(error, OSError)
        remedy = "Set RAY_TMPDIR to a folder that can be written" if written else (
            "Run `difc-ray doctor` to see what is missing")  # fmt: skip
        raise ClusterError(
            f"Ray must start here, got {words} (this machine). {remedy}, or use `engine=inline`."
        ) from error


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
    began = told_at = time.monotonic()
    limit = config.cluster.start_timeout_s
    while not group.wait(timeout_seconds=0.5):
        now = time.monotonic()
        state = placement_group_table(group)["stats"]["scheduling_state"]
        if interrupted():
            remove_placement_group(group)
            raise ClusterError("The placement group was not granted yet.")
        hopeless = state == "INFEASIBLE" and not config.cluster.autoscale  # a group that waits is what nodes start for
        if now - began > limit or hopeless:
            table = wanted_and_free(wanted_by(plan))
            remove_placement_group(group)
            raise ClusterError(
                f"the cluster must grant the bundles of the plan within {limit:g} s, got the state {state} after "
                f"{now - began:.0f} s ({table}). Wait for other runs to end, lower `cluster.cpus_per_worker` or "
                "`cluster.gpus_per_worker`, or raise `cluster.start_timeout_s`."
            )
        if now - told_at > TELL_S:
            told_at = now
            table = wanted_and_free(wanted_by(plan))
            notice(f"waiting {now - began:.0f} s of {limit:g} s for resources that others use: {table}")
    return group, True


def release(group: PlacementGroup) -> None:
    """Removes a placement group and waits until its resources are free again (5 s at most)."""
    remove_placement_group(group)
    deadline = time.monotonic() + 5.0
    while placement_group_table(group).get("state") != "REMOVED" and time.monotonic() < deadline:
        time.sleep(0.02)
