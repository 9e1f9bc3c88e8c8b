"""What may not be shown: which names are those of secrets, and texts and values without them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"

SHORTEST = 6
"""Values of fewer characters are too common to be masked wherever they occur."""

_WORDS = re.compile(
    r"token(?!i)|secret|passw|passphrase|credential"
    r"|(^|[._])(api|access|account|auth|encryption|license|master|private|shared|signing|ssh)_?keys?($|[._])"
    r"|(^|[._])key(_?id)?(_?\d+)?($|\.)"
)
"""In a name of small letters with `_` between its words: `api_key` and `aws_access_key_id`, but no `key_dim`."""
_COUNT = re.compile(r"(^|[._])(n|num|max|min)_[a-z]+s$")
_INSIDE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_FOREIGN = re.compile(r"[^a-z0-9.]")

_LOGIN = re.compile(r"\b([A-Za-z][A-Za-z0-9+.\-]*://)(?:[^\s/:@]*:\S*|[^\s/]*)@")
"""Up to the last `@` before a path; where there is a password up to the last one of all, as it may hold a `/`."""
_QUERY = re.compile(r"(?P<start>[?&;#](?P<name>[^=?&;#\s]*)=)(?:[^&;\s]|;(?![^=&;\s]*=))+")
_PATHS = ("_PATH", "_FILE", "_DIR")


def is_secret(name: str) -> bool:
    """Whether the value of this key or environment variable must not be shown.

    >>> [is_secret(name) for name in ("AWS_ACCESS_KEY_ID", "hub.apiKey", "db_password", "tracking.token")]
    [True, True, True, True]
    >>> [is_secret(name) for name in ("monkey", "key_dim", "tokenizer", "max_tokens")]
    [False, False, False, False]
    """
    plain = _FOREIGN.sub("_", _INSIDE.sub("_", name).lower())
    return _WORDS.search(plain) is not None and not _COUNT.search(plain)


def masked(text: str) -> str:
    """The text without user names and passwords in addresses, and without secrets in their queries.

    >>> masked("no answer from http://ann:pw@host:5000/?id=3;token=abc")
    'no answer from http://***@host:5000/?id=3;token=***'
    """
    return _QUERY.sub(_hide_if_secret, _LOGIN.sub(rf"\1{HIDDEN}@", text))


def _hide_if_secret(found: re.Match[str]) -> str:
    return found["start"] + HIDDEN if is_secret(found["name"]) else found[0]


def masked_values(value: Any, key: str = "") -> Any:
    """A copy of a value, also a nested one, with every secret in it replaced by ``***``.

    A switch, an empty text and nothing are shown under any name.

    >>> masked_values({"api_key": 7, "urls": ["ftp://a:b@c"]})
    {'api_key': '***', 'urls': ['ftp://***@c']}
    """
    if value is None or isinstance(value, bool) or value == "":
        return value
    if is_secret(key):
        return HIDDEN
    if isinstance(value, Mapping):
        return {name: masked_values(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(masked_values(item) for item in value)
    return masked(value) if isinstance(value, str) else value


def secret_texts(settings: Mapping[str, Any], environ: Mapping[str, str]) -> set[str]:
    """The texts that are secret by the name of their setting, or of their environment variable.

    Args:
        settings: nested values.
        environ: environment variables; paths to files with secrets are none themselves.
    """
    found = {value for name, value in environ.items() if is_secret(name) and not name.upper().endswith(_PATHS)}
    return {text for text in found | set(_texts_below(settings)) if len(text) >= SHORTEST}


def _texts_below(value: Any, *, secret: bool = False) -> Iterator[str]:
    """The scalars of a tree that stand below the name of a secret."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _texts_below(item, secret=secret or is_secret(str(name)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts_below(item, secret=secret)
    elif secret and value is not None and not isinstance(value, bool):
        yield str(value)
