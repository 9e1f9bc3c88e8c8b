"""Where jobs are submitted: the address of a cluster's dashboard."""

from __future__ import annotations

import shlex
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from difc_ray.config import masked
from difc_ray.errors import ConfigError

DEFAULT = "http://127.0.0.1:8265"
"""The dashboard on this machine, or one whose port is forwarded."""

_HERE = ("auto", "local")


@dataclass(frozen=True, kw_only=True)
class Address:
    """A dashboard.

    Args:
        url: ``http(s)://host[:port]``, perhaps with credentials.
        origin: what named it, for messages.
    """

    url: str
    origin: str

    @property
    def shown(self) -> str:
        """The address without credentials."""
        return masked(self.url)

    @property
    def option(self) -> str:
        """What has to be added to a command so that it finds the same cluster; empty if nothing."""
        return f" --address {shlex.quote(self.shown)}" if self.origin == "--address" else ""


def api_address(given: str | None, environ: Mapping[str, str]) -> Address:
    """The dashboard that is meant: `--address`, then RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then this machine.

    Differs from Ray's client, where the environment wins over the argument.

    >>> api_address("head:8265/", {}).url, api_address(None, {"RAY_ADDRESS": "auto"}).url
    ('http://head:8265', 'http://127.0.0.1:8265')

    Args:
        given: what the command line says.
        environ: environment variables.

    Raises:
        ConfigError: it is no address of a dashboard.
    """
    named = [("--address", given), *((name, environ.get(name)) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))]
    origin, text = next(((origin, text) for origin, text in named if text), ("default", DEFAULT))
    assert text is not None
    if text in _HERE:
        return Address(url=DEFAULT, origin=origin)
    remedy = f"Write `http://HOST:8265`, such as `--address {DEFAULT}`."
    if text.startswith("ray://") or (origin == "RAY_ADDRESS" and "://" not in text):
        raise ConfigError(
            f"jobs are submitted to a cluster's dashboard, got the address of its head, `{masked(text)}` ({origin}). "
            f"{remedy}"
        )
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urllib.parse.urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or any(character.isspace() for character in url):
        raise ConfigError(f"a dashboard must be http(s)://host:port, got `{masked(text)}` ({origin}). {remedy}")
    return Address(url=url.rstrip("/"), origin=origin)
