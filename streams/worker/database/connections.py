"""A worker's connections: the pool with its limits of time, and what an attempt did to one."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from streams.database import async_engine
from streams.database.engine import KEEPALIVES
from streams.errors import UsageError
from streams.settings import Settings

GRACE = (
    5.0  # what the server's own statement timeout gets before ours: it leaves the connection usable
)


class TransactionFailed(Exception):
    """One attempt did not commit, or nobody knows.

    `lost` if it cost the connection, `at_commit` if all else went well.
    """

    def __init__(self, error: Exception, lost: bool, *, at_commit: bool = False) -> None:
        super().__init__(type(error).__name__)
        self.error, self.lost, self.at_commit = error, lost, at_commit


class NotCommitted(Exception):
    """COMMIT was answered with something else.

    The transaction was aborted before, and nobody had noticed.
    """


def worker_engine(settings: Settings) -> AsyncEngine:
    """A pool of as many connections as a worker uses, with its limits of time."""
    worker = settings.worker
    # The last frees a partition's lock from an owner that stopped in the middle.
    timeouts = {
        "lock_timeout": worker.lock_timeout,
        "statement_timeout": worker.handler_timeout,
        "idle_in_transaction_session_timeout": worker.handler_timeout + 2 * GRACE,
    }
    return async_engine(
        settings.database_url,
        # One more for each way of asking beside the transactions: heartbeat, heads.
        pool_size=worker.transactions + 2,
        max_overflow=0,
        session={name: str(round(seconds * 1000)) for name, seconds in timeouts.items()},
        connect_args={
            **KEEPALIVES,
            "connect_timeout": settings.database.connect_timeout,
            "application_name": "outbox-streams worker",
        },
    )


async def driver_of(connection: AsyncConnection) -> psycopg.AsyncConnection[Any]:
    """The psycopg connection that SQLAlchemy's stands on.

    UsageError when it stands on another driver's.
    """
    driver = (await connection.get_raw_connection()).driver_connection
    if not isinstance(driver, psycopg.AsyncConnection):
        raise UsageError(
            f"the connection's driver is {type(driver).__module__}: expected an engine of postgresql+psycopg://"
        )
    return driver


async def commit(driver: psycopg.AsyncConnection[Any]) -> None:
    """Commit the open transaction; NotCommitted when the server answers that it rolled it back."""
    async with driver.cursor() as cursor:
        await cursor.execute("COMMIT", prepare=False)
        if cursor.statusmessage != "COMMIT":
            raise NotCommitted(f"COMMIT was answered with {cursor.statusmessage}")


def is_lost(connection: AsyncConnection, driver: psycopg.AsyncConnection[Any]) -> bool:
    """Whether the connection is of no use any more; to be asked before it is given back."""
    return driver.closed or driver.broken or connection.invalidated
