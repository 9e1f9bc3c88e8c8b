"""What a run knows of the sweep that it is a trial of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from difc_ray.config import Config
from difc_ray.engines.inline import InlineEngine
from difc_ray.engines.ray.engine import RayEngine

MakeEngine = Callable[[Config, str, Callable[[], bool], Callable[[str], None]], RayEngine | InlineEngine]
"""Configuration, name of the run, whether it is to stop, where notices go -> its engine."""


def engine_of(
    config: Config, run: str, interrupted: Callable[[], bool], notice: Callable[[str], None]
) -> RayEngine | InlineEngine:
    """The engine that a configuration names."""
    return (RayEngine if config.engine == "ray" else InlineEngine)(config, run, interrupted, notice)


@dataclass(kw_only=True)
class TrialContext:
    """What a run knows of the sweep that it is a trial of; the defaults are those of a run that stands alone.

    Args:
        parent: key of the sweep's own MLflow run, which becomes the parent; empty where nothing is tracked; None: the
            run stands alone.
        run_name: its name in MLflow, where trials of all sweeps stand beside each other.
        tags: further tags of the run.
        resume: the command that goes on with the sweep, and so with this run.
        make_engine: makes the engine, or hands over one that an earlier run has left.
        stopped: why this run is to end early; empty while it may go on.
        stops_at: the step at which it then ends.
        save: writes a checkpoint of the state in hand; there once the run has started.
    """

    parent: str | None = None
    run_name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    resume: str = ""
    make_engine: MakeEngine = engine_of
    stopped: str = ""
    stops_at: int = 0
    save: Callable[[], None] = lambda: None

    @property
    def alone(self) -> bool:
        """Whether the run belongs to no sweep."""
        return self.parent is None

    def over(self, step: int) -> bool:
        """Whether the run is to end at this step."""
        return bool(self.stopped) and step >= self.stops_at

    def ending(self, status: str) -> dict[str, str]:
        """Tags that say how a trial ended: to MLflow both a run that was stopped and one to resume are KILLED."""
        if self.alone:
            return {}
        notes = {
            "finished": "",
            "stopped": f"Stopped by the scheduler ({self.stopped}) and evaluated there: it has come to its end.",
            "interrupted": f"Interrupted with its sweep, before its end. Continue the sweep with `{self.resume}`.",
            "failed": "Failed; the tag `error` says why.",
        }
        stopped = {"sweep.stopped": self.stopped} if status == "stopped" else {}
        return {"sweep.status": status, "mlflow.note.content": notes[status], **stopped}
