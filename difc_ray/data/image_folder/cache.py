"""The index of a root, kept between processes in the user's cache folder, never beside the pictures.

One ``.npz`` file per root and set of options, without pickle, written under a temporary name and renamed. A file that
is damaged, of another version or of other pictures is not used. Where the folder cannot be written there is no cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from difc_ray.files import replacing

VERSION: Final = 1
_ARRAYS: Final = {"labels": np.int64, "sizes": np.int64, "splits": np.int8}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/difc_ray``, or ``~/.cache/difc_ray``; a relative XDG_CACHE_HOME does not count."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~/.cache"))) / "difc_ray"


def cache_file(key: tuple[object, ...]) -> Path:
    """Where the index of a root under some options lies."""
    digest = hashlib.sha256(repr(key).encode("utf-8", "backslashreplace")).hexdigest()
    return cache_folder() / f"images-{digest[:32]}.npz"


def store_index(key: tuple[object, ...], packed: Mapping[str, Any]) -> None:
    """Keeps an index; does nothing where that is not possible.

    Args:
        key: root and options.
        packed: ``fingerprint, class_names, domains, listed, counts`` (plain values), ``files`` (list of paths) and
            the arrays ``labels, sizes, splits``, all domains one after another.
    """
    path = cache_file(key)
    plain = {name: value for name, value in packed.items() if name not in (*_ARRAYS, "files")}
    head = json.dumps({"version": VERSION, "key": repr(key), **plain}).encode()
    files = b"\0".join(os.fsencode(each) for each in packed["files"])
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(path) as file:
            np.savez(
                file,
                allow_pickle=False,
                head=np.frombuffer(head, dtype=np.uint8),
                files=np.frombuffer(files, dtype=np.uint8),
                **{name: packed[name] for name in _ARRAYS},
            )
    except (OSError, ValueError):
        return


def load_index(key: tuple[object, ...], fingerprint: str) -> dict[str, Any] | None:
    """What was kept for these files, in the form of :func:`store_index`; None where there is nothing to use.

    Args:
        key: root and options.
        fingerprint: that of the files as they are now.
    """
    try:
        with cache_file(key).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            head = json.loads(stored["head"].tobytes())
            if (head["version"], head["key"], head["fingerprint"]) != (VERSION, repr(key), fingerprint):
                return None
            index: dict[str, Any] = {**head, "files": _paths(stored["files"].tobytes())}
            index |= {name: stored[name].astype(dtype, casting="safe") for name, dtype in _ARRAYS.items()}
        n = len(index["files"])
        whole = sum(index["counts"]) == n and all(index[name].shape == (n,) for name in _ARRAYS)
        return index if whole else None
    except Exception:  # a damaged file may fail anywhere, and everything in it can be found out again
        return None


def _paths(joined: bytes) -> list[str]:
    return [os.fsdecode(each) for each in joined.split(b"\0")]
