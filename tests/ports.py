"""Ports of this machine for servers that are told where to listen, and for addresses at which nobody does."""

from __future__ import annotations

import random
import socket
from pathlib import Path

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Where Linux says from which port on it gives out ports of its own choice."""

SPAN = 12_000
"""Number of ports below those of the system from which tests take theirs."""

USUAL = 32768
"""Where the system's own begin on Linux as it comes."""

_taken: set[int] = set()


def free_port() -> int:
    """A port of loopback at which nobody listens, another one at every call.

    It is none of those that the system gives to whoever asks for any port: between this answer and the moment when a
    server listens there, seconds later, a connection of another process would take such a one.
    """
    end = end_of_ours()
    for port in random.SystemRandom().sample(range(end - SPAN, end), SPAN):  # hypothesis seeds the common generator
        if port not in _taken and _can_listen(port):
            _taken.add(port)
            return port
    raise OSError(f"none of the ports {end - SPAN} to {end - 1} is free")


def end_of_ours() -> int:
    """The first port that the system gives out by itself; where it does not say, or leaves too few, the usual one."""
    begin = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else USUAL
    return begin if begin - SPAN >= 1024 else USUAL


def _can_listen(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
