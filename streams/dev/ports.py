"""Ports on loopback that are free now and remembered for the next start."""

from __future__ import annotations

import random
import socket
from collections.abc import Container
from pathlib import Path

from streams.errors import UsageError

HOST = "127.0.0.1"
# Below the range from which Linux takes the ports of outgoing connections: a restarted server finds
# its port free.
RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on this port of the loopback address now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port(*, avoid: Container[int] = ()) -> int:
    """A port that nobody listens on now and that is not to be avoided."""
    for _ in range(1000):
        port = random.choice(RANGE)
        if port not in avoid and is_free(port):
            return port
    raise UsageError(f"no free port between {RANGE.start} and {RANGE.stop}")


def remembered_port(memory: Path, *, avoid: Container[int] = ()) -> int:
    """The port noted in this file, or a new one, noted there.

    The noted one is taken if it is free and not to be avoided.
    """
    try:
        port = int(memory.read_text())
    except (OSError, ValueError):
        port = 0
    if port in RANGE and port not in avoid and is_free(port):
        return port
    port = free_port(avoid=avoid)
    memory.parent.mkdir(parents=True, exist_ok=True)
    memory.write_text(f"{port}\n")
    return port


def own_address(address: str, memory: Path, *, avoid: Container[int] = ()) -> str:
    """This `host:port`, or a port of its own at the same host where this one cannot be had.

    It cannot when somebody listens there, or it is to be avoided.
    """
    host, _, port = address.rpartition(":")
    if int(port) not in avoid and is_free(int(port)):
        return address
    return f"{host}:{remembered_port(memory, avoid=avoid)}"


def claim(service: str, wanted: int | None, memory: Path) -> int:
    """The wanted port, or UsageError when it is taken; without a wish the remembered one."""
    if wanted is None:
        return remembered_port(memory)
    if not is_free(wanted):
        raise UsageError(f"{service} cannot listen on {HOST}:{wanted}: the port is taken")
    return wanted
