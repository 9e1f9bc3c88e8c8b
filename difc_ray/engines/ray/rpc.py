"""What coordinator and workers say to each other besides the messages of a step: questions, and what ends them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any

import numpy as np
import torch

from difc_ray.step.coordinator import TrainState
from difc_ray.step.worker import Token
from difc_ray.tracing import Span


class StepRedo(Exception):
    """A replacement answered the step with other bits than the worker it replaces: everybody repeats the step."""


class WaitInterrupted(Exception):
    """The run is to stop, and a worker does not answer."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One call to one worker, to be repeated by its replacement."""

    method: str
    arguments: tuple[Any, ...] = ()


class Phase(Enum):
    """What the workers do while they are waited for."""

    WORK = "each answers by itself"
    EXCHANGE = "they exchange rows and wait for each other"
    RENDEZVOUS = "they form a group and wait for each other"


@dataclass(kw_only=True)
class Round:
    """Questions to several workers at once, and how far their answers have come.

    Args:
        questions: by the number of the worker.
        tokens: of all workers, which come first among the arguments; None: the questions belong to no step.
        phase: what the workers do meanwhile.
        heeds_stop: whether the wait ends when the run is to stop.
        pending: the worker of every call that is not answered yet.
        replies: by the number of the worker.
        began: when the last question was asked, on the monotonic clock.
        broken_s: seconds after that of the first report of a broken exchange.
    """

    questions: dict[int, Question]
    tokens: Sequence[Token] | None = None
    phase: Phase = Phase.WORK
    heeds_stop: bool = True
    pending: dict[Any, int] = field(default_factory=dict)
    replies: dict[int, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    broken_s: float = math.inf

    def restart_clock(self) -> None:
        """Whoever is waited for has the whole time again."""
        self.began, self.broken_s = time.monotonic(), math.inf


def spans_of(replies: Iterable[Any]) -> list[Span]:
    """What workers spent the time of their answers on, where a step is traced; most answers have none."""
    parts = [part for reply in replies for part in (getattr(reply, "rows", None), reply)]
    return [span for part in parts for span in getattr(part, "spans", ())]


TENSORS = ("theta_P", "buffers", "optimizer", "curvature")
"""The parts of a training state that are torch tensors; what harmonizer and loss carry are NumPy arrays."""


@dataclass(frozen=True, kw_only=True)
class StateArrays:
    """A :class:`~difc_ray.step.coordinator.TrainState` as NumPy arrays: the form that travels between processes."""

    step: int
    theta_P: np.ndarray
    buffers: dict[str, np.ndarray]
    optimizer: dict[str, np.ndarray]
    harmonizer: dict[str, np.ndarray]
    curvature: dict[str, np.ndarray]
    loss: dict[str, np.ndarray]
    skipped: list[int]

    @classmethod
    def of(cls, state: TrainState) -> StateArrays:
        """Views of a state's memory (sending them makes the copy)."""
        parts = {part.name: getattr(state, part.name) for part in fields(state)}
        return cls(**parts | {name: _converted(parts[name], torch.Tensor.numpy) for name in TENSORS})

    def to_state(self) -> TrainState:
        """A state with memory of its own."""
        parts = {part.name: copy.deepcopy(getattr(self, part.name)) for part in fields(self)}
        return TrainState(**parts | {name: _converted(parts[name], torch.from_numpy) for name in TENSORS})


def _converted(part: Any, convert: Callable[[Any], Any]) -> Any:
    """An array, or several by name, in the other library's form."""
    return {name: convert(array) for name, array in part.items()} if isinstance(part, dict) else convert(part)
