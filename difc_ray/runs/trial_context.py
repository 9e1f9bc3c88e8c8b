"""What a run knows of the sweep that it belongs to, and who may stop a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from difc_ray.config import Config
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine

Notice = Callable[[str], None]


@runtime_checkable
class Interruption(Protocol):
    """Who says that a run is to stop."""

    number: int

    @property
    def name(self) -> str:
        """What stopped it, in a word."""

    def interrupted(self) -> bool:
        """Whether it is to stop."""

    def before_the_run(self) -> AbstractContextManager[None]:
        """Around what comes before anything is written."""


MakeEngine = Callable[[Config, str, Callable[[], bool], Notice], RayEngine | InlineEngine]


def engine_of(config: Config, run: str, interrupted: Callable[[], bool], notice: Notice) -> RayEngine | InlineEngine:
    """The engine that a configuration names."""
    return (RayEngine if config.engine == "ray" else InlineEngine)(config, run, interrupted, notice)


@dataclass(kw_only=True)
class Membership:
    """What a run knows of the sweep that it belongs to.

    Args:
        parent: key of the sweep's own MLflow run, which becomes the parent; empty where nothing is tracked.
        run_name: its name in MLflow, where trials of all sweeps stand beside each other.
        tags: further tags of the run.
        interruption: who stops all runs of the sweep.
        resume: the command that goes on with the sweep, and so with this run.
        make_engine: makes the engine, or hands over one that an earlier run has left.
        stopped: why this run is to end early; empty while it may go on.
        stops_at: the step at which it then ends.
        save: writes a checkpoint of the state in hand; there once the run has paused for the first time.
    """

    parent: str
    run_name: str
    tags: Mapping[str, str]
    interruption: Interruption
    resume: str
    make_engine: MakeEngine = engine_of
    stopped: str = ""
    stops_at: int = 0
    save: Callable[[], None] = lambda: None

    def over(self, step: int) -> bool:
        """Whether the run is to end at this step."""
        return bool(self.stopped) and step >= self.stops_at

    def ending(self, status: str) -> dict[str, str]:
        """Tags that say how the run ended: to MLflow both a run that was stopped and one to resume are KILLED."""
        notes = {
            "finished": "",
            "stopped": f"Stopped by the scheduler ({self.stopped}) and evaluated there: it has come to its end.",
            "interrupted": f"Interrupted with its sweep, before its end. Continue the sweep with `{self.resume}`.",
            "failed": "Failed; the tag `error` says why.",
        }
        stopped = {"sweep.stopped": self.stopped} if status == "stopped" else {}
        return {"sweep.status": status, "mlflow.note.content": notes[status], **stopped}
