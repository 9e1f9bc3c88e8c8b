"""How domain workers send each other pieces of flat vectors: a torch.distributed group, and the bytes it has moved.

Everything is made of sends and receives of contiguous pieces, and what has arrived is added up by the receiver in the
order of the domains. So the bits do not depend on the algorithm of a reduction, and the bytes are those of a ring
all-reduce: each worker sends what is not its own of one vector, and receives as much.

Shape suffixes: W workers, P parameters, S a shard, R rows of one domain.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # documented, and not in `__all__`

from difc_ray.engines.ray.private import forget_process_groups
from difc_ray.errors import ClusterError
from difc_ray.vectors import BLOCK

INTERFACE = {"gloo": "GLOO_SOCKET_IFNAME", "nccl": "NCCL_SOCKET_IFNAME"}
"""Which environment variable tells a backend where to listen; left to themselves they guess from the host's name."""


REACH_S = 10.0
"""Seconds that the coordinator's node has to accept a connection."""


class GroupBroken(Exception):
    """A member of the group is gone or does not answer."""


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """Where and under which name the members of a group find each other.

    Args:
        host: of the store.
        port: of the store.
        name: of this group; another for every attempt.
        size: W, number of members.
        backend: `gloo` or `nccl`.
        timeout_s: seconds that an exchange may take.
    """

    host: str
    port: int
    name: str
    size: int
    backend: str
    timeout_s: float


def make_store(host: str) -> TCPStore:
    """The store of the rendezvous, on a free port of one address of this machine; nobody else can reach it there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family)
    listening.bind((host, 0))
    listening.listen(512)
    port = listening.getsockname()[1]
    return TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach(),
        timeout=timedelta(seconds=60),
    )  # fmt: skip


def shards_of(size: int, workers: int) -> list[slice]:
    """The part of a flat vector that each worker multiplies and combines: whole blocks of the Gram matrix.

    They are as even as that allows.

    >>> [shard.stop - shard.start for shard in shards_of(5 * 8192 + 100, 3)]
    [16384, 16384, 8292]
    """
    blocks = -(-size // BLOCK)
    ends = [min(size, -(-blocks * worker // workers) * BLOCK) for worker in range(workers + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None: none has."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address.partition("%")[0] == address for found in addresses):
            return name
    return None


class Group:
    """This worker's place in a group.

    Args:
        rendezvous: of the group.
        rank: the worker's number.
        address: of this node, as the others reach it.

    Raises:
        GroupBroken: not all came in time.
        ClusterError: nothing listens to this address here.
    """

    def __init__(self, rendezvous: Rendezvous, rank: int, address: str) -> None:
        self.rank, self.size = rank, rendezvous.size
        self.sent_bytes = 0
        interface = interface_of(address)
        if interface is None:
            raise ClusterError(
                f"a node's address must belong to one of its network interfaces, got {address} on "
                f"{socket.gethostname()}. Start Ray there with `--node-ip-address`, or write "
                "`cluster.transport=object_store`."
            )
        os.environ[INTERFACE[rendezvous.backend]] = interface
        limit = timedelta(seconds=rendezvous.timeout_s)
        try:  # a store that is gone: its own client would try for `timeout_s`
            socket.create_connection((rendezvous.host, rendezvous.port), timeout=REACH_S).close()
        except OSError as error:
            raise GroupBroken(f"nobody listens at {rendezvous.host}:{rendezvous.port}: {error}") from error
        try:
            store = TCPStore(rendezvous.host, rendezvous.port, is_master=False, timeout=limit)
            dist.init_process_group(
                rendezvous.backend, store=PrefixStore(rendezvous.name, store), rank=rank, world_size=rendezvous.size,
                timeout=limit,
            )  # fmt: skip
        except RuntimeError as error:
            self.close()
            raise GroupBroken(_words(error)) from error

    def scatter(self, row_P: Tensor, shards: Sequence[slice], into_WS: Tensor) -> None:
        """Sends every worker its shard of a row, and receives the own shard of every worker's row.

        Args:
            row_P: contiguous (P,).
            shards: the part of each worker.
            into_WS: (W, S) with S the length of the own shard; the own row is copied.

        Raises:
            GroupBroken: somebody did not send or receive in time.
        """
        self._exchange([row_P[shard] for shard in shards], list(into_WS))
        into_WS[self.rank].copy_(row_P[shards[self.rank]])

    def gather(self, vector_P: Tensor, shards: Sequence[slice]) -> None:
        """Completes a vector of which every worker has its shard, in place.

        Raises:
            GroupBroken: somebody did not send or receive in time.
        """
        own = vector_P[shards[self.rank]]
        self._exchange([own] * self.size, [vector_P[shard] for shard in shards])

    def close(self) -> None:
        """Leaves the group."""
        if dist.is_initialized():
            dist.destroy_process_group()
        forget_process_groups()

    def _exchange(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]) -> None:
        """One piece to every other worker and one from each; those next in rank first, so that nobody is crowded."""
        operations = []
        for distance in range(1, self.size):
            to, origin = (self.rank + distance) % self.size, (self.rank - distance) % self.size
            if outgoing[to].numel():
                operations.append(dist.P2POp(dist.isend, outgoing[to], to))
                self.sent_bytes += outgoing[to].numel() * outgoing[to].element_size()
            if incoming[origin].numel():
                operations.append(dist.P2POp(dist.irecv, incoming[origin], origin))
        try:
            for work in dist.batch_isend_irecv(operations) if operations else ():
                work.wait()
            if any(piece.is_cuda for piece in incoming):
                torch.cuda.synchronize()
        except RuntimeError as error:
            raise GroupBroken(_words(error)) from error


def _words(error: BaseException) -> str:
    """A library's message on one line, without the places in its source."""
    return " ".join(str(error).split("] ", 1)[-1].split())[:160]
