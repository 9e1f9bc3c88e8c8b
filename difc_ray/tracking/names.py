"""Keys and values in the form that MLflow accepts, and without secrets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from difc_ray.nested import flat
from difc_ray.secrets import masked, masked_values

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000

_FOREIGN = re.compile(r"[^0-9A-Za-z_.\-: /]")


def clean_key(name: str) -> str:
    """The key under which MLflow stores ``name``: itself if allowed, else with a short hash of the name.

    Allowed are ASCII letters, digits and ``_.-: /`` in paths that resolve to themselves, up to 250 characters. The hash
    keeps apart names that would otherwise become the same, without a table that a restart could lose.

    >>> clean_key("train/loss/mnist"), clean_key("loss@photo")
    ('train/loss/mnist', 'loss_photo-74682a')
    """
    parts = name.split("/")
    if len(name) <= MAX_KEY and not _FOREIGN.search(name) and all(part not in ("", ".", "..") for part in parts):
        return name
    cleaned = "/".join(_FOREIGN.sub("_", part) for part in parts if part not in ("", ".", "..")) or "unnamed"
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:6]
    return f"{cleaned[: MAX_KEY - 7]}-{digest}"


def clean_text(text: str, limit: int) -> str:
    """``text`` without secrets and lone surrogates, cut to ``limit`` characters."""
    printable = masked(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def clean_params(params: Mapping[str, object]) -> dict[str, str]:
    """Flat parameters as MLflow stores them, without secrets."""
    return {clean_key(key): _shown(key, value, MAX_PARAM) for key, value in flat(params).items()}


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow stores them, without secrets."""
    return {clean_key(key): _shown(key, value, MAX_TAG) for key, value in tags.items()}


def _shown(key: str, value: object, limit: int) -> str:
    return clean_text(str(masked_values(value, key)), limit)


def figure_path(run_dir: Path, name: str) -> Path:
    """Where the figure of that name is saved: ``<run>/figures/<name>.png``, without characters foreign to files."""
    parts = [re.sub(r"[^\w.\-]", "_", part) for part in name.split("/")]
    return run_dir / "figures" / ("/".join(part for part in parts if part.strip(".")) + ".png")
