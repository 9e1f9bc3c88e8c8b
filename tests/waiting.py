"""Waiting for what other processes do.

Tests say what must come to hold and in which order, with patience for a machine that has other things to do. How long
it takes on a free one is measured by `benchmarks/faults.py`; where a test has a limit of its own, it is there to tell
what was heard from what was waited out.
"""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 120.0
"""How long what is sure to come may take: its seconds are those of a machine that others use as well."""

FOREVER_S = 600.0
"""How long something waits that is to be interrupted: longer than anybody is patient."""


def eventually(condition: Callable[[], object], what: str = "it") -> float:
    """Waits until it holds; how many seconds that took. Fails when it does not come to hold."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < PATIENCE_S, f"not within {PATIENCE_S:g} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - began
