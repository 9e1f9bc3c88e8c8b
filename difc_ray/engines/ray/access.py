"""Whether a Ray head answers at an address and lets us in, asked with deadlines.

Ray's own client tries for half a minute, and says then that it could not connect, whatever the reason.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError
from ray.util import get_node_ip_address

from difc_ray.errors import ClusterError

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
"""How a client of gRPC begins, and an empty frame of settings."""

FRAME_BYTES, SETTINGS = 9, 4
"""Length of a frame's head, and the kind of the one with which a server of gRPC begins."""

ANSWER_S = 10.0
"""Seconds that a head has to say who it is."""

ABSENT = ("Token authentication is enabled but no", "Token authentication is enabled but Ray couldn't")
"""How Ray begins when there is no token here."""

TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"


def token_found(error: AuthenticationError) -> str:
    """What there was instead of the cluster's token, as the end of a sentence that says what is wanted."""
    text = str(error)
    if text.startswith(TOKEN_PATH):
        return f"none: `{os.environ.get(TOKEN_PATH, '')}` ({TOKEN_PATH}) is empty, or cannot be read"
    known = is_token_auth_enabled() and not text.startswith(ABSENT)
    return "another one" if known else "none"


def token_wanted(shown: str, found: str, origin: str) -> str:
    """The sentence on a cluster that does not let us in.

    Args:
        shown: its address.
        found: what there was instead of its token.
        origin: what names the address.
    """
    return (
        f"the cluster at {shown} wants its token, got {found} ({origin}). Set RAY_AUTH_MODE=token, and {TOKEN_PATH} to "
        "the file that holds the cluster's token."
    )


def check_head(address: str, origin: str) -> None:
    """Asks who answers at an address where a connection was accepted.

    Args:
        address: ``HOST:PORT``, or ``ray://HOST:PORT``.
        origin: what names the address.

    Raises:
        ClusterError: it is no Ray, it does not say who it is in time, or it wants another token.
    """
    if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
        return  # the greeting would have to be encrypted; Ray tries for longer
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not _speaks_grpc(host.strip("[]"), int(port)):
        raise ClusterError(
            f"a Ray head must answer at {address}, got the answer of something else ({origin}). Correct the address: "
            "the port of a head is 6379 unless the cluster says otherwise, and 8265 is its dashboard's."
        )
    if address.startswith("ray://"):
        return
    answer = _ask(address)
    if isinstance(answer, AuthenticationError):
        raise ClusterError(token_wanted(address, token_found(answer), origin)) from None
    if answer is not None:
        raise ClusterError(
            f"a Ray head must answer at {address}, got {' '.join(str(answer).split()).rstrip('.')} ({origin}). Check "
            "that the port is that of a head, and the network between."
        )


def on_loopback_only(address: str) -> bool:
    """Whether a head of this machine listens at its loopback address, and not at the one that it has in the network.

    Ray itself would look for it there.

    Args:
        address: ``HOST:PORT``.
    """
    host, _, port = address.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        return False
    try:
        socket.create_connection((get_node_ip_address(), int(port)), timeout=ANSWER_S).close()
        return False
    except OSError:
        return True


def _speaks_grpc(host: str, port: int) -> bool:
    """Whether a server answers as all of gRPC do."""
    try:
        with socket.create_connection((host, port), timeout=ANSWER_S) as connection:
            connection.sendall(GREETING)
            heard = connection.recv(FRAME_BYTES)
    except OSError:
        return False
    return len(heard) == FRAME_BYTES and heard[3] == SETTINGS


def _ask(address: str) -> Exception | None:
    """Why a head does not let us in; None if it does."""
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            ensure_token_if_auth_enabled(create_token_if_missing=False)  # without one, the next line ends the process
            GcsClient(address=address)
            answers.append(None)
        except Exception as error:
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    with _without_words():
        asking.start()
        asking.join(ANSWER_S)
    return answers[0] if answers else TimeoutError(f"no answer within {ANSWER_S:.0f} s")


@contextmanager
def _without_words() -> Iterator[None]:
    """Lets nothing through to standard error, where Ray's core writes past Python."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
