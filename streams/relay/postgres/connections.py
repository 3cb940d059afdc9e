"""A relay's connections to a walsender."""

from __future__ import annotations

from typing import Any

import psycopg

from streams.database import connect

# A leader that vanished gives its slot back after this long.
WALSENDER_TIMEOUT = "5s"


async def replication_connection(url: str, connect_timeout: int) -> psycopg.AsyncConnection[Any]:
    """A connection to a walsender."""
    return await connect(
        url,
        replication="database",
        application_name="outbox-streams relay",
        connect_timeout=connect_timeout,
        session={"wal_sender_timeout": WALSENDER_TIMEOUT},
    )
