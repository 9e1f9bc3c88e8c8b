"""What the failure of a worker means: a replacement, charged to its domain or not, or the end of the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from ray.exceptions import RayTaskError

from difc_ray.config import Config
from difc_ray.engines.ray.nodes import draining
from difc_ray.engines.ray.planning import Member
from difc_ray.engines.ray.processes import describe
from difc_ray.engines.ray.worker import WorkerInfo
from difc_ray.errors import DifcError, WorkerError


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a worker did not answer.

    Args:
        index: the number of the worker.
        reason: what happened to it, after its name.
        fatal: what ends the run; None: the worker is replaced.
        preempted: its node was taken away with notice, which is nobody's failure.
    """

    index: int
    reason: str
    fatal: DifcError | None = None
    preempted: bool = False


def raise_fatal(failures: Sequence[Failure]) -> None:
    """Raises the first fatal failure: a user's own error explains the deaths around it, not the other way."""
    for failure in failures:
        if failure.fatal is not None:
            raise failure.fatal


class FailurePolicy:
    """Decides what a failure means, and keeps the account of restarts of one run.

    =================================  =====================================================================
    what happened to a worker          what is done
    =================================  =====================================================================
    it died, hung or was out of reach  replaced, and charged to its domain (`cluster.max_worker_restarts`)
    its node was taken with notice     replaced, and charged to nobody
    it raised one of our own errors    the run ends with that error
    it raised something else           replaced; the same once more at the same step ends the run
    =================================  =====================================================================

    Args:
        config: the run's configuration.
        members: the workers.
    """

    def __init__(self, config: Config, members: Sequence[Member]) -> None:
        self.allowed = config.cluster.max_worker_restarts
        self.members = members
        self.restarts = dict.fromkeys(config.sources, 0)
        self._errors: dict[tuple[int, int], str] = {}
        self._looked, self._announced = 0.0, set[str]()

    def lost(self, index: int, info: WorkerInfo, error: BaseException) -> Failure:
        """A worker is gone: by its node, whose end may have been announced, or by itself."""
        self.look_for_notices(at_least_s=0.0)
        announced = bool(getattr(error, "preempted", False)) or info.node in self._announced
        return Failure(index=index, reason=death_of(info, error), preempted=announced)

    def look_for_notices(self, *, at_least_s: float) -> None:
        """Remembers which nodes are to be taken away: one that is gone is no longer listed, however it was announced.

        Args:
            at_least_s: seconds since the last look, without which there is none.
        """
        now = time.monotonic()
        if now - self._looked >= at_least_s:
            self._looked = now
            self._announced |= set(draining())

    def raised(self, index: int, step: int, error: RayTaskError) -> Failure:
        """A worker answered with an exception: ours goes up as it is; another is tried once more in a fresh process."""
        cause = error.cause
        if isinstance(cause, DifcError):
            cause.add_note(str(error))  # the worker's traceback, for the run's log
            return Failure(index=index, reason=str(cause), fatal=cause)
        text = f"{type(cause).__name__}: {cause}"
        if self._errors.get((index, step)) == text:
            fatal = WorkerError(
                f"Domain `{self.members[index].domain}`, step {step}: {text} (twice in a row, so it is not tried "
                "again). The traceback is in the run's `run.log`."
            )
            fatal.add_note(str(error))
            return Failure(index=index, reason=text, fatal=fatal)
        self._errors[index, step] = text
        return Failure(index=index, reason=text)

    def charge(self, index: int, step: int, reason: str, log_file: str) -> None:
        """Counts a restart of the worker's domain.

        Raises:
            WorkerError: it has had as many as it may have.
        """
        name = self.members[index].domain
        if self.restarts[name] >= self.allowed:
            raise WorkerError(
                f"Domain `{name}` failed at step {step} and has used its {self.allowed} restart(s): {reason}. "
                f"Log: {log_file}. Raise `cluster.max_worker_restarts`, or lower `batch_size` if the "
                "node ran out of memory; the last checkpoint can be resumed."
            )
        self.restarts[name] += 1

    def account(self, index: int, *, free: bool) -> str:
        """How a replacement was charged, as the middle of a sentence."""
        if free:
            return "its node was taken away with notice, which counts as no restart; placing it again"
        return f"restart {self.restarts[self.members[index].domain]}/{self.allowed}"


def death_of(info: WorkerInfo, error: BaseException) -> str:
    """How a worker ended, with its process."""
    return f"worker process {info.pid} {describe(error)}"
