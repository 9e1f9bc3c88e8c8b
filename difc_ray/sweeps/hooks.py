"""What Tune asks and tells while it runs: names, news, and whether to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from ray import cloudpickle, tune
from ray.exceptions import RayTaskError

from difc_ray.engines.ray.processes import describe
from difc_ray.sweeps.trial import number_of


@runtime_checkable
class TrialEvents(Protocol):
    """What a sweep does when Tune tells it of its trials."""

    def guarded(self, action: Callable[[], None]) -> None:
        """Does something; what goes wrong there is said, and the sweep goes on."""

    def show(self, number: int, result: Mapping[str, Any]) -> None:
        """A trial was evaluated."""

    def tell_stopped(self, number: int) -> None:
        """A trial was stopped by the scheduler."""

    def recovered(self, number: int) -> None:
        """A trial has lost its process and goes on in another."""

    def died(self, trial: Any) -> None:
        """A trial's process died more often than allowed."""

    def interrupted(self) -> bool:
        """Whether all trials are to stop; they are told so."""


class TrialNames:
    """TrialNames trials by their numbers; one that the searcher makes up gets the next number.

    Tune asks copies of this object, so what has been given away is kept with the class.

    Args:
        first: the first number to give away.
    """

    given: ClassVar[dict[str, int]] = {}

    def __init__(self, first: int) -> None:
        self.first = first
        self.given.clear()

    def __call__(self, trial: Any) -> str:
        """The name of a trial."""
        point = trial.config.get("point")
        number = point["number"] if point else self.given.setdefault(trial.trial_id, self.first + len(self.given))
        return f"trial-{int(number):05d}"


def cause_of(trial: Any) -> str:
    """Why a trial of Tune's has failed, from the error that Tune has just written to its folder."""
    try:
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes())
    except Exception:  # there is none, or it is of a class that only the trial's process knew
        return "the trial's process ended without a word"
    if isinstance(error, RayTaskError):
        cause = error.cause or error
        return f"unexpected error, got {type(cause).__name__}: {cause} (run.log of the trial)"
    return f"the trial's process {describe(error)}"


class DriverOnly:
    """What belongs to the sweep of this process.

    Tune also writes it to disk, where a display or a signal cannot go; nobody reads that, so it is left empty.

    Args:
        sweep: the sweep.
    """

    def __init__(self, sweep: TrialEvents) -> None:
        self.sweep = sweep

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> DriverOnly:
        return self


class TrialWatch(DriverOnly, tune.Callback):  # type: ignore[misc]  # Ray has no types for it
    """Tells the sweep what happens to its trials."""

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial was evaluated, or has ended."""
        self.sweep.guarded(lambda: self.sweep.show(number_of(str(trial)), result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has ended; one that has not said so itself was stopped by the scheduler."""
        self.sweep.guarded(lambda: self.sweep.tell_stopped(number_of(str(trial))))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died; it goes on from its checkpoint."""
        number = number_of(str(trial))
        self.sweep.guarded(lambda: self.sweep.recovered(number))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial's process died more often than allowed."""
        self.sweep.guarded(lambda: self.sweep.died(trial))
        self.sweep.guarded(lambda: self.sweep.show(number_of(str(trial)), {}))


class SweepStopper(DriverOnly, tune.Stopper):  # type: ignore[misc]  # as above
    """Ends all trials when the sweep is to stop."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Trials end by themselves."""
        return False

    def stop_all(self) -> bool:
        """Whether a signal came; the trials are told by a file, which they look for between two steps."""
        return self.sweep.interrupted()
