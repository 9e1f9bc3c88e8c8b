"""When Ray itself is gone, calls of Tune never come back: a thread ends the sweep in their place."""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from types import TracebackType

from difc_ray.engines.ray.processes import LOOK_S, Head

log = logging.getLogger("difc_ray")

GRACE_S = 3.0
"""How long the sweep may take to end by itself once the head is gone; Ray would wait for a minute and then abort."""


class RayGuard:
    """Ends this process when the Ray that it has started is gone and the main thread cannot notice.

    Args:
        head: Ray's head process; None: another one's Ray, which is not watched.
        notice: called as soon as the head is gone.
        give_up: called if the sweep is then not over within :data:`GRACE_S`: records what is left to record and returns
            the sentence to end with and the exit code.
    """

    def __init__(self, head: Head | None, notice: Callable[[], None], give_up: Callable[[], tuple[str, int]]) -> None:
        self.head, self.notice, self.give_up = head, notice, give_up
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ray-guard", daemon=True)

    def __enter__(self) -> RayGuard:
        if self.head is not None:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """The sweep is over, and its records are written: nothing is left to guard."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        assert self.head is not None
        while not self._over.wait(LOOK_S):
            if not self.head.gone():
                continue
            self.notice()
            if not self._over.wait(GRACE_S):
                self._end()
            return

    def _end(self) -> None:
        """Nothing can be unwound: the main thread is inside Ray's own code."""
        sentence, code = "The sweep has ended without Ray.", 1
        try:
            sentence, code = self.give_up()
        except Exception:
            traceback.print_exc()
        show_cursor = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a live table has hidden it
        sys.stdout.flush()
        sys.stderr.write(f"{show_cursor}difc-ray: {sentence}\n")
        sys.stderr.flush()
        logging.shutdown()
        os._exit(code)
