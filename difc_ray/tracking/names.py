"""Keys and values in the form that MLflow accepts, and without secrets."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000

_FOREIGN = re.compile(r"[^0-9A-Za-z_.\-: /]")
_SECRET_KEY = re.compile(
    r"(token|secret|passw|credential|(^|[._-])(api|access|private|auth)?[._-]?key$)", re.IGNORECASE
)
_USERINFO = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*://)[^\s/]\S*@")  # greedy: rather too much than half a password
_QUERY_SECRET = re.compile(r"(?i)([?&][^=&\s]*(?:token|secret|passw|credential|key)[^=&\s]*=)[^&\s]+")


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
    printable = hide_secrets(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return printable if len(printable) <= limit else printable[: limit - 1] + "…"


def hide_secrets(text: str) -> str:
    """``text`` with the credentials in its URIs replaced by ``***``.

    >>> hide_secrets("no answer from https://ann:pw@host:5000/api?token=abc")
    'no answer from https://***@host:5000/api?token=***'
    """
    return _QUERY_SECRET.sub(r"\1***", _USERINFO.sub(r"\1***@", text))


def clean_params(params: Mapping[str, object]) -> dict[str, str]:
    """Flat parameters as MLflow stores them; texts under keys that sound like secrets are replaced by ``***``."""
    return {clean_key(key): _shown(key, value, MAX_PARAM) for key, value in flat(params).items()}


def clean_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags as MLflow stores them, secrets replaced as in :func:`clean_params`."""
    return {clean_key(key): _shown(key, value, MAX_TAG) for key, value in tags.items()}


def _shown(key: str, value: object, limit: int) -> str:
    secret = isinstance(value, str) and value and _SECRET_KEY.search(key)
    return "***" if secret else clean_text(str(value), limit)


def flat(params: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested mappings as one with dotted keys.

    >>> flat({"seed": 1, "optimizer": {"name": "adam", "lr": 0.1}})
    {'seed': 1, 'optimizer.name': 'adam', 'optimizer.lr': 0.1}
    """
    result: dict[str, object] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            result.update(flat(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def figure_path(run_dir: Path, name: str) -> Path:
    """Where the figure of that name is saved: ``<run>/figures/<name>.png``, without characters foreign to files."""
    parts = [re.sub(r"[^\w.\-]", "_", part) for part in name.split("/")]
    return run_dir / "figures" / ("/".join(part for part in parts if part.strip(".")) + ".png")
