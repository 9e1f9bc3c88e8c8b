"""What a failed request means: try again later, or never again."""

from __future__ import annotations

from difc_ray.secrets import masked
from difc_ray.tracking.names import clean_text
from difc_ray.tracking.uris import explain_status

_TRY_AGAIN = frozenset({401, 403, 407, 408, 423, 425, 429})
_NETWORK_MODULES = ("sqlalchemy", "sqlite3", "urllib3")
_MAX_REASON = 400
_COMMON = {
    "Connection refused": "Nothing listens at `{uri}`: is the server running?",
    "timed out": "`{uri}` does not answer in time.",
    "Failed to resolve": "The host of `{uri}` is unknown.",
    "database is locked": "Another process is writing to `{uri}`.",
}


class UnavailableError(Exception):
    """The store cannot take anything now; the same records are sent again later."""


class ParentAbsentError(UnavailableError):
    """The run that this one is nested in is not in the store yet; waiting does not bring it, sending it does."""


class RefusedError(Exception):
    """The store will never take this record."""


def judge(error: Exception, uri: str) -> UnavailableError | RefusedError | None:
    """Sort an exception from MLflow's client.

    A 4xx answer refuses the record, except those that speak of us or of the moment (401, 403, 407, 408, 423, 425, 429)
    and a 404 that is not MLflow's own (a proxy in front of a server that restarts). Everything else from MLflow, the
    network or the database is a matter of time.

    Args:
        error: what was raised.
        uri: the tracking URI, for the advice in the message.

    Returns:
        The verdict with its reason; None for an exception that none of them raises (a bug, or another library).
    """
    if isinstance(error, UnavailableError | RefusedError):
        return error
    text = str(error)
    status = _status(error)
    if status is None:
        network = isinstance(error, OSError) or type(error).__module__.split(".")[0] in _NETWORK_MODULES
        return UnavailableError(_without_jargon(text, uri) or reason(error)) if network else None
    if advice := explain_status(uri, status, text):
        return UnavailableError(advice)
    if status >= 500 or status in _TRY_AGAIN or "database is locked" in text:
        return UnavailableError(_without_jargon(text, uri) or reason(error))
    if status == 404 and type(error).__name__ != "RestException" and uri.startswith("http"):
        return UnavailableError(f"`{masked(uri)}` answers 404, but not as an MLflow server: {reason(error)}")
    return RefusedError(reason(error))


def reason(error: BaseException) -> str:
    """The first line of an exception's message, without credentials."""
    lines = str(error).strip().splitlines()
    return clean_text(lines[0] if lines else type(error).__name__, _MAX_REASON)


def _without_jargon(text: str, uri: str) -> str | None:
    """A sentence for the failures that everybody meets."""
    for sign, sentence in _COMMON.items():
        if sign in text:
            return sentence.format(uri=masked(uri))
    return None


def _status(error: Exception) -> int | None:
    """The HTTP status of an exception of MLflow's client or of requests."""
    response = getattr(error, "response", None)
    if response is not None:
        return int(response.status_code)
    ask = getattr(error, "get_http_status_code", None)
    return int(ask()) if ask is not None else None
