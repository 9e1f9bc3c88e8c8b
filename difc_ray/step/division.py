"""How the batch of a domain is divided: among several workers, and by each into micro-batches."""

from __future__ import annotations

from difc_ray.config import Config, objective_name
from difc_ray.objectives import OBJECTIVES


def parts_of(config: Config) -> int:
    """How many workers divide the batch of a domain; the calling process of `engine: inline` does it all itself."""
    return config.cluster.replicas if config.engine == "ray" else 1


def pieces_of(config: Config) -> int:
    """In how many micro-batches a worker's batch is passed forward; one where nothing goes beyond the head."""
    whole_network = config.alignment.scope == "all" and OBJECTIVES.get(objective_name(config)).has_penalty
    return config.alignment.micro_batches if whole_network else 1


def is_divided(config: Config) -> bool:
    """Whether the model sees less than a domain's batch at a time: its workers or its micro-batches divide it."""
    return parts_of(config) > 1 or pieces_of(config) > 1


def part_of(size: int, part: int, parts: int) -> slice:
    """The places of a batch that one of several workers takes: neighbours, and shares that differ by one at most.

    >>> [part_of(7, part, 3) for part in range(3)]
    [slice(0, 3, None), slice(3, 5, None), slice(5, 7, None)]
    """
    each, more = divmod(size, parts)
    start = part * each + min(part, more)
    return slice(start, start + each + (part < more))
