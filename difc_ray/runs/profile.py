"""`profile.json`: some steps of a run as a trace that chrome://tracing and Perfetto show, every actor in a lane.

The format is Chrome's trace events (complete events, times in microseconds). An actor is a process of the trace and
an operating system's process a thread in it: a replacement has a line of its own.

Source: "Trace Event Format", Google, https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from difc_ray.config import Config
from difc_ray.files import replace
from difc_ray.tracing import Recorder, Span, traced_steps

FILE = "profile.json"

VIEWER = "https://ui.perfetto.dev or chrome://tracing"

CLOCK = (
    "every process's monotonic clock, set once against its time of day: between processes of one machine exact to "
    "microseconds, between machines to what their times of day differ by"
)


class Profile:
    """Gathers the spans of the steps that `profile` asks for; the driver's own among them.

    Args:
        config: the run's configuration.
        first: the step that the run begins or goes on with.
        run_dir: the run's folder.

    Attributes:
        recorder: takes the driver's own spans.
        written: whether the file is there.
    """

    def __init__(self, config: Config, first: int, run_dir: Path) -> None:
        self.steps = traced_steps(config.profile, first, config.steps)
        self.run, self.path = str(config.name), run_dir / FILE
        self.recorder = Recorder("driver")
        self.recorder.follow(first, on=bool(self.steps))
        self.written = False
        self._spans: list[Span] = []

    def add(self, spans: Sequence[Span], step: int) -> None:
        """Keeps what the other actors have handed over.

        Args:
            spans: theirs.
            step: steps taken so far.
        """
        if self.recorder.on:
            self._spans += spans
            self.recorder.follow(step, on=True)

    def due(self, step: int) -> bool:
        """Whether all steps to trace are taken, or the run ends before, and the file is not written yet."""
        return self.recorder.on and step >= self.steps.stop

    def write(self) -> str:
        """Writes the file, once; returns a sentence on it, or on what kept it from being written.

        A run does not end by it.
        """
        self.recorder.follow(0, on=False)
        traced = [span for span in self._spans if span.step in self.steps]
        self._spans = []
        if not traced:
            return "no step was traced: the run ended in its warm-up"
        begin, end = min(span.start_ns for span in traced), max(span.end_ns for span in traced)
        around = [span for span in self.recorder.take() if span.end_ns > begin and span.start_ns < end]
        try:
            replace(self.path, json.dumps(chrome_trace(self.run, [*around, *traced])))
            self.written = True
        except OSError as error:
            return f"`{self.path}` could not be written ({error.strerror or error}): the run goes on without a profile"
        steps = sorted({span.step for span in traced})
        return f"profile of the steps {steps[0]} to {steps[-1]}: `{self.path}`, to be opened in {VIEWER}"


def chrome_trace(run: str, spans: Sequence[Span]) -> dict[str, Any]:
    """Spans as Chrome's trace events: driver first, then the coordinator, then the workers in the order they came."""
    order = {"driver": 0, "coordinator": 1}
    for span in spans:
        order.setdefault(span.origin.actor, len(order))
    begin = min(span.start_ns for span in spans)
    events: list[Mapping[str, Any]] = []
    for origin in dict.fromkeys(span.origin for span in spans):
        lane = order[origin.actor]
        here = {"ph": "M", "pid": lane, "tid": origin.process}
        events += [
            {**here, "name": "process_name", "args": {"name": origin.actor}},
            {**here, "name": "process_sort_index", "args": {"sort_index": lane}},
            {**here, "name": "thread_name", "args": {"name": f"process on {origin.host}"}},
        ]
    for span in sorted(spans, key=lambda span: (span.start_ns, -span.end_ns)):
        events.append(
            {
                "name": span.name,
                "cat": span.origin.actor.split(" ")[0],
                "ph": "X",
                "ts": (span.start_ns - begin) / 1e3,
                "dur": (span.end_ns - span.start_ns) / 1e3,
                "pid": order[span.origin.actor],
                "tid": span.origin.process,
                "args": {"step": span.step, "attempt": span.attempt},
            }
        )
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {"run": run, "begin_unix_ns": begin, "clock": CLOCK},
    }
