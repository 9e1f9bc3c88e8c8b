"""Which transport a run takes, and why."""

from __future__ import annotations

from dataclasses import dataclass

from difc_ray.config import Config, metric_kind
from difc_ray.engines.ray.planning import PlacementPlan
from difc_ray.errors import ClusterError

LARGE = 1_000_000
"""Parameters from which it counts how rows travel; below, a step is short messages in either case."""


@dataclass(frozen=True, kw_only=True)
class TransportChoice:
    """How rows travel.

    Args:
        kind: `object_store` or `collective`.
        backend: of torch.distributed, `gloo` or `nccl`; empty for `object_store`.
        why: the reason, as the end of a sentence.
    """

    kind: str
    backend: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.backend})" if self.backend else self.kind


def choose_transport(config: Config, plan: PlacementPlan, size: int, nodes: int) -> TransportChoice:
    """Resolves `cluster.transport` and `cluster.backend`.

    `auto` takes `collective` for models of a million parameters or more, if every domain worker has a GPU of its own
    (NCCL), or if workers live on several nodes (gloo): on one machine the object store is shared memory, which no
    socket outruns.

    Args:
        config: the run's configuration.
        plan: resources of each worker.
        size: P, number of parameters.
        nodes: number of nodes on which the bundles lie.

    Raises:
        ClusterError: NCCL is asked for, and several workers share a GPU or have none.
    """
    asked, own_gpu = config.cluster.transport, plan.gpus >= 1
    backend = config.cluster.backend
    if backend == "nccl" and not own_gpu:
        raise ClusterError(
            "`cluster.backend=nccl` needs a GPU of its own for every domain worker, got "
            f"{plan.gpus:g} GPU for each (NCCL refuses two members on one GPU). Write `cluster.backend=gloo`, or give "
            f"the cluster {len(plan.owners) - 1} GPUs and write `cluster.gpus_per_worker=1`."
        )
    if backend == "auto":
        backend = "nccl" if own_gpu else "gloo"
    if asked == "collective":
        return TransportChoice(kind="collective", backend=backend, why="asked for")
    if asked == "object_store":
        return TransportChoice(kind="object_store", why="asked for")
    if metric_kind(config):
        return TransportChoice(kind="object_store", why=f"rule `{config.harmonize.rule}` needs all rows in one place")
    if size < LARGE:
        return TransportChoice(kind="object_store", why=f"{size:,} parameters are few")
    if own_gpu:
        return TransportChoice(kind="collective", backend=backend, why=f"{size:,} parameters, a GPU for every worker")
    if nodes > 1:
        return TransportChoice(kind="collective", backend=backend, why=f"{size:,} parameters, workers on several nodes")
    return TransportChoice(kind="object_store", why="all workers share the memory of one machine")
