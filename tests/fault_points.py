"""Places in the workers of the transport `collective` where the plug-in may go wrong, besides those of its own code.

`share` and `combine`: before anything is sent; `shared` and `combined`: all is sent, and the coordinator has not heard
of it; `commit` and `committed`: before and after the optimizer's step; `join` and `joined`: a group forms; `replica`:
the state is asked for. Ray has taken the methods of actors itself when a plug-in comes, so these are others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from difc_ray.engines.ray.process_group import Group
from difc_ray.step.optimizer import FlatOptimizer

PLACES: dict[tuple[type, str], tuple[str, str]] = {
    (Group, "scatter"): ("share", "shared"),
    (Group, "gather"): ("combine", "combined"),
    (Group, "__init__"): ("join", "joined"),
    (FlatOptimizer, "step"): ("commit", "committed"),
    (FlatOptimizer, "tensors"): ("replica", ""),
}
"""The method, and what comes before and after it."""


def install(here: Callable[[str], None]) -> None:
    """Lets these methods ask before and after whether something is due; in this process, once."""
    for (owner, name), places in PLACES.items():
        method = getattr(owner, name)
        if not hasattr(method, "__wrapped__"):
            setattr(owner, name, _asking(method, here, *places))


def _asking(method: Callable[..., Any], here: Callable[[str], None], before: str, after: str) -> Callable[..., Any]:
    @wraps(method)
    def asking(self: Any, *arguments: Any) -> Any:
        here(before)
        answer = method(self, *arguments)
        if after:
            here(after)
        return answer

    return asking
