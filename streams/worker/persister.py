"""A run until it is persisted: outages are waited out, failing messages set aside, stale runs given up.

An outage is not an error of the message: nothing is counted and the same run is tried again, until it is done or a rebalance
gives its partition away.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
from sqlalchemy.ext.asyncio import AsyncEngine

from db import async_engine
from db.engine import KEEPALIVES
from streams.registry import Registry
from streams.settings import Settings
from streams.worker.decode import read
from streams.worker.fate import Verdict, jittered, judge, sqlstate
from streams.worker.ledger import Run
from streams.worker.transaction import Outcome, Transaction

logger = logging.getLogger(__name__)

MOST_WAIT = 10.0  # seconds between two tries of a run while the database is away
GRACE = 5.0  # what the server's own statement timeout gets before ours: it leaves the connection usable


class Persister:
    """Persists runs on a pool of as many connections as there may be transactions."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._registry = registry
        self._timeout = settings.worker.handler_timeout + GRACE
        self._engine = _engine(settings)

    async def persist(self, run: Run) -> Outcome | None:
        """What was decided for each record, after the commit; None when the run stopped being ours before that."""
        found, rejected = read(run.records, self._registry)
        tries, isolate = 0, False
        while run.current:
            lost = True
            try:
                async with self._engine.connect() as connection:
                    lost = False
                    driver = (await connection.get_raw_connection()).driver_connection
                    assert isinstance(driver, psycopg.AsyncConnection)
                    try:
                        async with connection.begin():
                            work = Transaction(connection, driver, run)
                            return await work.work(
                                found, rejected, self._registry, isolate=isolate, seconds=self._timeout
                            )
                    except Exception:
                        lost = driver.closed or driver.broken or connection.invalidated
                        raise
            except Exception as error:
                if judge(error, lost) is Verdict.WAIT:
                    tries += 1
                    await self._wait(run, error, tries)
                elif isolate:
                    raise
                else:
                    isolate = True
                    logger.warning("run failed, looking for the guilty message", extra=_about(run, error))
                    # Decoding fills messages in from outbox rows: start from the records again.
                    found, rejected = read(run.records, self._registry)
        return None

    async def reachable(self) -> bool:
        """Whether the database answers within two seconds."""
        try:
            async with asyncio.timeout(2), self._engine.connect() as connection:
                await connection.exec_driver_sql("SELECT 1")
        except Exception:  # the answer is no, whatever the reason
            return False
        return True

    async def close(self) -> None:
        """Close the pool."""
        await self._engine.dispose()

    async def _wait(self, run: Run, error: BaseException, tries: int) -> None:
        if tries in (1, 10) or tries % 60 == 0:
            logger.warning("database away, the run waits", extra={**_about(run, error), "tries": tries})
        await asyncio.sleep(jittered(min(MOST_WAIT, 0.1 * 2 ** min(tries, 8))))


def _engine(settings: Settings) -> AsyncEngine:
    worker = settings.worker
    # idle_in_transaction_session_timeout frees a partition's lock from an owner that stopped in the middle.
    timeouts = {
        "lock_timeout": worker.lock_timeout,
        "statement_timeout": worker.handler_timeout,
        "idle_in_transaction_session_timeout": worker.handler_timeout + 2 * GRACE,
    }
    options = " ".join(f"-c {name}={round(seconds * 1000)}" for name, seconds in timeouts.items())
    return async_engine(
        settings.database_url,
        pool_size=worker.transactions + 1,
        max_overflow=0,
        connect_args={
            **KEEPALIVES,
            "options": options,
            "connect_timeout": settings.database.connect_timeout,
            "application_name": "outbox-streams worker",
        },
    )


def _about(run: Run, error: BaseException) -> dict[str, Any]:
    return {
        "topic": run.topic,
        "partition": run.partition,
        "offset": run.first,
        "records": len(run),
        "error": type(error).__name__,
        "sqlstate": sqlstate(error),
    }
