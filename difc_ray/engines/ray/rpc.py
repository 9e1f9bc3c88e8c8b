"""What coordinator and workers say to each other besides the messages of a step: questions, and what ends them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from difc_ray.engines.ray.processes import LOST, Failure
from difc_ray.engines.ray.worker import WorkerInfo
from difc_ray.errors import ClusterError
from difc_ray.tracing import Span

GOODBYE_S = 0.5
"""Seconds for all workers together."""

UNTIMELY = ("evaluate", "confusion", "hold", "join", "replica", "digest")
"""Questions that belong to no step's answers: they carry no token."""


class StepRedo(Exception):
    """A replacement answered the step with other bits than the worker it replaces: everybody repeats the step."""


class WaitInterrupted(Exception):
    """The run is to stop, and a worker does not answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call to one worker, to be repeated by its replacement."""

    method: str
    arguments: tuple[Any, ...]


def spans_of(replies: Iterable[Any]) -> list[Span]:
    """What workers spent the time of their answers on, where a step is traced; most answers have none."""
    parts = [part for reply in replies for part in (getattr(reply, "rows", None), reply)]
    return [span for part in parts for span in getattr(part, "spans", ())]


def say_goodbye(workers: Sequence[Any]) -> None:
    """Lets workers that answer end their logs; those that do not are not waited for long."""
    with suppress(*LOST):
        told = [worker.end.remote() for worker in workers]
        if told:
            ray.wait(told, num_returns=len(told), timeout=GOODBYE_S)


class LostDuringRendezvous(Exception):
    """Workers were lost while a group formed.

    Args:
        failures: theirs.
    """

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__()
        self.failures = failures


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A worker was told to take a step.

    Args:
        index: of the worker.
        worker: the actor; another one may have taken its place since.
        done: Ray's reference; None: it could not be told.
    """

    index: int
    worker: Any
    done: Any


def check_same_model(infos: Sequence[WorkerInfo]) -> None:
    """Whether all workers of a run have built the same model.

    Raises:
        ClusterError: one has built another than the first.
    """
    for info in infos[1:]:
        if different := infos[0].layout.mismatches(info.layout):
            raise ClusterError(
                f"All workers must build the same model. Domain `{info.domain}` on {info.host} built another than "
                f"`{infos[0].domain}` on {infos[0].host}: {'; '.join(different[:3])}. Install the same versions and "
                "plug-ins on every node."
            )
