"""Parts of Ray and torch that neither promises to keep: every use of one in the engine is here, with its reason.

`tests/unit/test_private.py` says in a sentence which of them a new version has moved.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private import ray_constants
from ray._private.state import state
from torch.distributed.distributed_c10d import _world

SEVERAL_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's switch for clusters of several machines, off on Windows and macOS. Where it is off, this machine's address is
127.0.0.1, and Ray's servers bind to it; where it is on, they listen on all interfaces (Ray 2.60, measured)."""


def draining_nodes() -> dict[str, int]:
    """Nodes that are to be taken away, by id, with the time in milliseconds (0: none was given).

    Ray has no public call for it; Ray Train makes the same one.
    """
    return {str(node): int(deadline_ms) for node, deadline_ms in state.get_draining_nodes().items()}


@contextmanager
def on_loopback() -> Iterator[None]:
    """A Ray that is started inside takes 127.0.0.1 for its node's address, and no server of it listens on another.

    A process that joins such a Ray looks for it there. The public ``ray.init(_node_ip_address="127.0.0.1")`` does not
    do that: Ray replaces the address by that of the network.
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


def forget_process_groups() -> None:
    """Lets this process count its process groups from 0 again.

    torch names a group by how many its process has begun, and starts again where one has ended, but not where one
    could not begin: members with other counts would never find each other. A name that is given is ignored.
    """
    _world.group_count = 0
