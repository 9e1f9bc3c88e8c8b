"""Pieces of rows: shards, Gram blocks, and which transport is taken."""

from __future__ import annotations

import socket

import numpy as np
import psutil
import pytest
import torch

from difc_ray.engines.ray.planning import Node, plan_for
from difc_ray.engines.ray.process_group import interface_of, make_store, shards_of
from difc_ray.engines.ray.transport import LARGE, TransportChoice, check_backend, choose_transport
from difc_ray.errors import ClusterError
from difc_ray.vectors import BLOCK, combine, gram, gram_blocks, sum_blocks
from tests.runs import small_config

SIZES = (1, 100, BLOCK, BLOCK + 1, 5 * BLOCK + 17, 16 * BLOCK, 53 * BLOCK - 3, 100 * BLOCK)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_shards_are_whole_blocks_and_even(size: int, workers: int) -> None:
    shards = shards_of(size, workers)
    assert [i for shard in shards for i in (shard.start, shard.stop)][1:-1:2] == [s.start for s in shards[1:]]
    assert (shards[0].start, shards[-1].stop) == (0, size)
    assert all(shard.start % BLOCK == 0 or shard.start == size for shard in shards)
    lengths = [shard.stop - shard.start for shard in shards]
    assert max(lengths) - min(lengths) < 2 * BLOCK


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("n", [2, 7])
def test_pieces_have_the_gram_matrix_and_the_sum_of_the_whole(size: int, n: int) -> None:
    """Bit for bit, for any number of pieces; the value itself against plain float64 products."""
    rows = [torch.randn(size, generator=torch.Generator().manual_seed(i)) * 10.0**i for i in range(n)]
    weights, expected = np.linspace(-1, 1, n), gram(rows)
    stacked = torch.stack(rows).double()
    scale = torch.outer(stacked.norm(dim=1), stacked.norm(dim=1)).numpy()
    np.testing.assert_allclose(expected / scale, (stacked @ stacked.T).numpy() / scale, atol=1e-13)
    for workers in (1, 2, 3, 8):
        shards = shards_of(size, workers)
        pieces = [gram_blocks([row[shard] for row in rows]) for shard in shards]
        assert sum_blocks(torch.cat(pieces)).tobytes() == expected.tobytes()
        whole = torch.cat([combine(weights, [row[s] for row in rows]) for s in shards if s.stop > s.start])
        assert torch.equal(whole, combine(weights, rows))


def test_the_store_is_reached_at_one_address_only() -> None:
    store = make_store("127.0.0.1")
    own = [c.laddr for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == store.port]
    assert [address.ip for address in own] == ["127.0.0.1"]
    assert interface_of("127.0.0.1") == next(
        name for name, found in psutil.net_if_addrs().items() if any(a.address == "127.0.0.1" for a in found)
    )
    assert interface_of("192.0.2.1") is None
    socket.create_connection(("127.0.0.1", store.port), timeout=5).close()


# ---- which transport ----------------------------------------------------------------------------------------------


def nodes(count: int, gpus: float) -> list[Node]:
    return [Node(id=f"n{i}", host=f"h{i}", resources={"CPU": 8.0, "GPU": gpus}) for i in range(count)]


def chosen_for(count: int, gpus: float, size: int, **cluster: object) -> TransportChoice:
    """The transport of a run whose bundles lie on so many nodes."""
    config = small_config(cluster=cluster)
    return choose_transport(config, plan_for(config, nodes(count, gpus)), size, count)


@pytest.mark.parametrize(
    ("count", "gpus", "size", "kind", "backend", "why"),
    [
        (1, 0, LARGE, "object_store", "", "all workers share the memory of one machine"),
        (1, 3, LARGE, "collective", "nccl", "a GPU for every worker"),
        (1, 2, LARGE, "object_store", "", "all workers share the memory"),
        (1, 3, LARGE - 1, "object_store", "", "parameters are few"),
        (3, 1, LARGE, "collective", "nccl", "a GPU for every worker"),
    ],
)
def test_auto_goes_by_gpus_and_parameters(count: int, gpus: int, size: int, kind: str, backend: str, why: str) -> None:
    chosen = chosen_for(count, gpus, size)
    assert (chosen.kind, chosen.backend) == (kind, backend)
    assert why in chosen.why


def test_auto_takes_gloo_between_nodes_without_gpus() -> None:
    chosen = chosen_for(3, 0, LARGE)
    assert str(chosen) == "collective (gloo)"
    assert "several nodes" in chosen.why


def test_rules_that_look_at_curvature_keep_the_rows_in_one_place() -> None:
    config = small_config(harmonize={"rule": "flat_dualproj"})
    chosen = choose_transport(config, plan_for(config, nodes(1, 3)), LARGE, 1)
    assert chosen.kind == "object_store"
    assert "`flat_dualproj` needs all rows in one place" in chosen.why


def test_what_is_asked_for_is_taken() -> None:
    assert str(chosen_for(1, 0, 10, transport="collective")) == "collective (gloo)"
    assert str(chosen_for(1, 3, 10, transport="collective", backend="gloo")) == "collective (gloo)"
    assert str(chosen_for(1, 3, LARGE, transport="object_store")) == "object_store"


def test_nccl_with_two_domains_on_one_gpu_is_refused() -> None:
    config = small_config(cluster={"transport": "collective", "backend": "nccl"})
    with pytest.raises(ClusterError, match=r"needs a GPU of its own for every domain worker, got 0.333 GPU for each"):
        check_backend(config, plan_for(config, nodes(1, 1)))
