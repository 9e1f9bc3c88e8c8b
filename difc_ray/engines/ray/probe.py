"""What a node says of itself. Sent to the node as code: it needs Python alone, so that a node without us can answer."""

from __future__ import annotations

from typing import Any

PACKAGES = ("difc-ray", "torch", "ray")
"""What must be the same everywhere, besides Python and our code."""


def look(questions: dict[str, Any]) -> dict[str, Any]:
    """Versions, paths and shared memory of the node that runs this.

    Args:
        questions: `packages`: names; `marker`: a file of the driver's, and `content`: what is in it; `root`: a folder
            or None.

    Returns:
        `versions` by package, with `python` and a digest of our `code`; `sees_output`; `has_root` (None: not asked);
        `shm_bytes`, free in /dev/shm (None: there is none).
    """
    import hashlib
    import os
    import platform
    import shutil
    from importlib import metadata, util

    versions = {"python": platform.python_version()}
    for name in questions["packages"]:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    package = util.find_spec("difc_ray")
    code = hashlib.sha256()
    for folder in (package.submodule_search_locations or ()) if package else ():
        for place, inside, files in os.walk(folder):
            inside.sort()
            for file in sorted(files):
                if file.endswith(".py"):
                    path = os.path.join(place, file)
                    with open(path, "rb") as source:
                        code.update(os.path.relpath(path, folder).encode() + b"\0" + source.read())
    versions["code"] = code.hexdigest()[:8] if package else "not installed"
    try:
        with open(questions["marker"], encoding="utf-8") as marker:
            sees_output = marker.read() == questions["content"]
    except OSError:
        sees_output = False
    return {
        "versions": versions,
        "sees_output": sees_output,
        "has_root": None if questions["root"] is None else os.path.isdir(questions["root"]),
        "shm_bytes": shutil.disk_usage("/dev/shm").free if os.path.isdir("/dev/shm") else None,
    }
