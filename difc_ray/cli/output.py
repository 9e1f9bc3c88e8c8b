"""Standard output whose reader may go away."""

from __future__ import annotations

import os
import sys


def let_go_of_stdout() -> None:
    """Lets everything that is still printed go nowhere: the reader has gone, as with ``| head``."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, sys.stdout.fileno())
    except (OSError, ValueError):  # standard output is no file
        pass
    finally:
        os.close(nowhere)
