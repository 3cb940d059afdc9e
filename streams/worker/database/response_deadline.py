"""A server that is silent for longer than it allows itself is gone, however alive it looks.

Firewalls, proxies and load balancers swallow bytes without a word, and some acknowledge them:
keepalives prove nothing then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import psycopg

logger = logging.getLogger(__name__)

LATE = 1.0  # seconds


@contextlib.contextmanager
def response_deadline(driver: psycopg.AsyncConnection[Any], seconds: float) -> Iterator[None]:
    """Hang up when the block takes longer.

    What it waits for then fails as on any lost connection.
    """
    loop = asyncio.get_running_loop()

    def over() -> None:
        if loop.time() - timers[-1].when() > LATE:
            # The loop stood still, not the server: what it said lies there unread.
            timers.append(loop.call_later(seconds, over))
        else:
            _hang_up(driver, seconds)

    timers = [loop.call_later(seconds, over)]
    try:
        yield
    finally:
        timers[-1].cancel()


def hang_up(driver: psycopg.AsyncConnection[Any]) -> None:
    """Shut the connection's line: whoever waits for the server learns that there is none."""
    # The loop watches this socket for psycopg: shut down it tells so, closed it would say nothing
    # more.
    with (
        contextlib.suppress(OSError, psycopg.Error),
        socket.socket(fileno=os.dup(driver.fileno())) as line,
    ):
        line.shutdown(socket.SHUT_RDWR)


def _hang_up(driver: psycopg.AsyncConnection[Any], seconds: float) -> None:
    hang_up(driver)
    logger.warning(
        "a connection to the database is silent and is given up", extra={"seconds": seconds}
    )
