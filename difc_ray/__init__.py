"""Train on several source domains at once: Hessian alignment and gradient harmonization on Ray.

``from difc_ray import harmonize`` is the mathematics alone (a function of a Gram matrix); ``from difc_ray import
train`` runs a configuration as the command line does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask a server for a newer version
if "OMP_WAIT_POLICY" not in os.environ:
    # Threads that spin while they wait for each other take the cores from whatever else runs, and from themselves.
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")

if TYPE_CHECKING:
    from difc_ray.harmonizers import Harmonization, harmonize
    from difc_ray.runs.train import Result, train

__version__ = "0.1.0"
__all__ = ["Harmonization", "Result", "__version__", "harmonize", "train"]

_HOMES = {
    "Harmonization": "difc_ray.harmonizers",
    "harmonize": "difc_ray.harmonizers",
    "Result": "difc_ray.runs.train",
    "train": "difc_ray.runs.train",
}


def __getattr__(name: str) -> Any:
    """Public names, imported when they are first asked for: ``harmonize`` does not wait for Ray."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module `difc_ray` has no attribute `{name}`")
