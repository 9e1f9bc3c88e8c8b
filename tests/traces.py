"""A trace as the tests read it: who did what, whether that can be, and how long it took."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Trace:
    """The complete events of a `profile.json` by actor, in the order of their beginnings, and the file itself."""

    events: dict[str, list[dict[str, Any]]]
    file: dict[str, Any]

    def names(self, actor: str) -> set[str]:
        return {event["name"] for event in self.events[actor]}

    def steps(self, actor: str) -> list[int]:
        return sorted({event["args"]["step"] for event in self.events[actor]})

    def spans(self, actor: str, name: str) -> list[dict[str, Any]]:
        return [event for event in self.events[actor] if event["name"] == name]


def read_trace(path: Path) -> Trace:
    """Parses a trace, and fails where a viewer would show nonsense."""
    file = json.loads(path.read_text("utf-8"))
    lanes = {e["pid"]: e["args"]["name"] for e in file["traceEvents"] if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]) for e in file["traceEvents"] if e["name"] == "thread_name"}
    events = defaultdict(list)
    for event in file["traceEvents"]:
        assert event["ph"] in ("X", "M")
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            assert (event["pid"], event["tid"]) in threads
            events[lanes[event["pid"]]].append(event)
    assert len(lanes) == len(set(lanes.values()))
    return Trace(events=dict(events), file=file)


def overlaps(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Pairs of one thread's events of which neither lies within the other, and which are not apart."""
    found = []
    for thread in {(event["pid"], event["tid"]) for event in events}:
        open_: list[dict[str, Any]] = []
        own = [event for event in events if (event["pid"], event["tid"]) == thread]
        for event in sorted(own, key=lambda event: (event["ts"], -event["dur"])):
            while open_ and open_[-1]["ts"] + open_[-1]["dur"] <= event["ts"] + ROUNDING_US:
                open_.pop()
            if open_ and event["ts"] + event["dur"] > open_[-1]["ts"] + open_[-1]["dur"] + ROUNDING_US:
                found.append((open_[-1]["name"], event["name"]))
            open_.append(event)
    return found


ROUNDING_US = 0.01
