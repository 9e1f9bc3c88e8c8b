"""What is wrong with the cluster section: resources, transports, divided batches."""

from __future__ import annotations

from collections.abc import Iterator

from difc_ray.config.asking import Asked
from difc_ray.config.bundles import bundle_faults
from difc_ray.config.problems import Problem
from difc_ray.config.resolve import metric_kind, objective_name
from difc_ray.harmonizers import HARMONIZERS
from difc_ray.objectives import OBJECTIVES


def cluster_problems(asked: Asked) -> Iterator[Problem]:
    """Problems of resources, address, bundles and transport."""
    cluster = asked.config.cluster
    for name, value in (("cpus_per_worker", cluster.cpus_per_worker), ("gpus_per_worker", cluster.gpus_per_worker)):
        if isinstance(value, float) and value > 1 and not value.is_integer():
            key = f"cluster.{name}"
            yield asked.problem(f"`{key}` above 1 must be a whole number", f"Write `{key}={int(value)}`.", key)
        if cluster.autoscale and value == "auto":  # of what the cluster has, which may be nothing yet
            key, why = f"cluster.{name}", "with `cluster.autoscale`, since nodes are started for what a run asks for"
            yield asked.problem(f"`{key}` must be a number {why}", f"Write for example `{key}=1`.", key)
    yield from _exchange(asked)
    port = (cluster.address or "").rpartition(":")[2]
    if port.isdigit() and not 1 <= int(port) <= 65535:
        what = "the port of `cluster.address` must be in [1, 65535]"
        yield asked.problem(what, "Ray's own default is 6379.", "cluster.address")
    for what, got, remedy, key in bundle_faults(asked.config):
        yield Problem(what=what, got=got, where=asked.where(key), remedy=remedy, keys=("cluster.bundles", "sources"))


def _exchange(asked: Asked) -> Iterator[Problem]:
    """Transports, divided batches and bundles that a run cannot have."""
    config, cluster = asked.config, asked.config.cluster
    rule = f"rule `{config.harmonize.rule}`, which looks at the curvature of the rows"
    if cluster.transport == "collective" and asks_for_curvature(asked):
        what = f"`cluster.transport=collective` cannot serve {rule}: that needs them in one place"
        remedy = "Write `cluster.transport=object_store`, or take another rule."
        yield asked.problem(what, remedy, "cluster.transport", "harmonize.rule")
    if cluster.transport == "object_store" and cluster.backend != "auto":
        what = "`cluster.backend` is read by `cluster.transport=collective` only"
        yield asked.problem(what, "Leave it out, or take that transport.", "cluster.backend", "cluster.transport")
    if cluster.backend == "nccl" and isinstance(cluster.gpus_per_worker, float) and cluster.gpus_per_worker < 1:
        what = "`cluster.backend=nccl` needs a GPU of its own for every domain worker"
        remedy = "Write `cluster.gpus_per_worker=1`, or `cluster.backend=gloo`."
        yield asked.problem(what, remedy, "cluster.gpus_per_worker", "cluster.backend")
    if cluster.replicas > config.batch_size:
        what = f"`cluster.replicas` workers divide the {config.batch_size} examples of a batch, and each needs one"
        remedy = f"Write `cluster.replicas={config.batch_size}` or less, or raise `batch_size`."
        yield asked.problem(what, remedy, "cluster.replicas", "batch_size")
    if cluster.replicas > 1 and asks_for_curvature(asked):
        what = f"`cluster.replicas` above 1 cannot serve {rule}: that of a batch is not the mean of its parts"
        yield asked.problem(what, "Write `cluster.replicas=1`, or take another rule.", "cluster.replicas")
    objective = objective_name(config)
    if cluster.replicas > 1 and objective in OBJECTIVES and not OBJECTIVES.get(objective).divisible:
        what = f"`cluster.replicas` above 1 cannot serve the objective `{objective}`, which compares single examples"
        yield asked.problem(what, "Write `cluster.replicas=1`, or take another objective.", "cluster.replicas")
    if cluster.bundles and objective in OBJECTIVES and OBJECTIVES.get(objective).mixes:
        what = f"objective `{objective}` gives every worker examples of other domains, and `cluster.bundles` holds data"
        what += " on nodes of their own"
        remedy = "Leave `cluster.bundles` out where every node has all data, or take another objective."
        yield asked.problem(what, remedy, "cluster.bundles", "objective")


def asks_for_curvature(asked: Asked) -> bool:
    """Whether the configured rule looks at the curvature of rows; an unknown rule is reported elsewhere."""
    return asked.config.harmonize.rule in HARMONIZERS and bool(metric_kind(asked.config))
