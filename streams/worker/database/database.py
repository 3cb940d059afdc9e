"""The worker's database beside the transactions of its runs: is it there, and small statements."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, LiteralString

import psycopg
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from streams.broker.beat import KnownBeats
from streams.database import query
from streams.settings import Settings
from streams.tasks import apart
from streams.worker.database.connections import GRACE, driver_of, worker_engine
from streams.worker.database.response_deadline import response_deadline
from streams.worker.fail import fail_stop

logger = logging.getLogger(__name__)

Asked = tuple[LiteralString, Mapping[str, Any]]  # a statement and its parameters

REACH = 2.0  # seconds in which a database that is there answers
ENDED_AFTER = 5.0  # seconds beyond what a session may be silent: the server's own limit comes first


class Database:
    """A pool of as many connections as there may be transactions, and a few more.

    The others are for what is asked beside them.
    """

    def __init__(self, settings: Settings) -> None:
        self.engine = worker_engine(settings)
        self.patience = settings.worker.handler_timeout + GRACE  # seconds that a statement may take
        self._ahead = 0.0
        self._may_see_acts = True
        self.newest_act = 0

    def now(self) -> float:
        """The database's clock, in epoch seconds, as `reachable` read it last.

        What is due there is due.
        """
        return time.time() + self._ahead

    async def reachable(self) -> bool:
        """Whether the database answers soon.

        `newest_act` tells whether operators did something since the last time.
        """
        try:
            async with asyncio.timeout(2 * REACH), self._asking(REACH) as driver:
                cursor = await driver.execute(
                    "SELECT extract(epoch FROM clock_timestamp())::double precision"
                )
                [(clock,)] = await cursor.fetchall()
                self._ahead = clock - time.time()
                if self._may_see_acts:
                    await self._look_for_acts(driver)
        except Exception:  # the answer is no, whatever the reason
            return False
        return True

    async def read(
        self, statement: LiteralString, parameters: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        """Commit one small statement by itself; its rows, if it has any."""
        async with self._asking(self.patience) as driver, driver.cursor() as cursor:
            await cursor.execute(statement, parameters)
            return await cursor.fetchall() if cursor.description else []

    async def end_vanished(self) -> None:
        """End sessions of workers that vanished in a run: what they locked is waited for."""
        for pid, seconds, ended in await self.read(query("end_vanished"), {"grace": ENDED_AFTER}):
            logger.warning(
                "a session that fell silent in a run is ended",
                extra={"pid": pid, "seconds": round(seconds, 1), "ended": ended},
            )

    async def tell(self, asked: Sequence[Asked]) -> list[list[tuple[Any, ...]]]:
        """Commit some small statements together, soon or not at all.

        It returns the rows of each, if it has any.
        """
        answers: list[list[tuple[Any, ...]]] = []
        async with (
            asyncio.timeout(2 * REACH),
            self._asking(REACH) as driver,
            driver.cursor() as cursor,
        ):
            for statement, parameters in asked:
                await cursor.execute(statement, parameters)
                answers.append(await cursor.fetchall() if cursor.description else [])
        return answers

    async def forget(self, name: str, **parameters: Any) -> None:
        """Take a note back, if the database lets us soon: who calls this is about to end."""
        with suppress(psycopg.Error, SQLAlchemyError, OSError, TimeoutError):
            async with asyncio.timeout(REACH), self._asking(REACH) as driver:
                await driver.execute(query(name), parameters)

    def end_if_gone_back(self, settings: Settings) -> None:
        """End the process before it uses a new connection to a database that went back.

        So does one to another database. That holds from now on.
        """
        known = KnownBeats(settings)

        async def compare(driver: psycopg.AsyncConnection[Any]) -> None:
            before = await apart(known.from_kafka, patience=REACH)
            rows = await (await driver.execute(query("beats"))).fetchall()
            await driver.rollback()
            # Others know by its name in the consumer group for which database a worker works.
            if reason := known.another(rows):
                fail_stop("another database answers and the worker stops", reason=reason)
            if reason := known.gone_back(before, rows):
                fail_stop("the database went back and the worker stops", reason=reason)

        def connected(connection: Any, _: Any) -> None:
            connection.run_async(compare)

        event.listen(self.engine.sync_engine, "connect", connected)

    async def close(self) -> None:
        """Close the pool."""
        await self.engine.dispose()

    async def _look_for_acts(self, driver: psycopg.AsyncConnection[Any]) -> None:
        try:
            [(self.newest_act,)] = await (await driver.execute(query("newest_act"))).fetchall()
        except psycopg.errors.InsufficientPrivilege:  # then it takes until the next comparison
            self._may_see_acts = False
            await driver.rollback()

    @asynccontextmanager
    async def _asking(self, seconds: float) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        """A connection for something small, which may take so long.

        It is committed at the end of the block.
        """
        async with self.engine.connect() as connection:
            driver = await driver_of(connection)
            with response_deadline(driver, seconds):
                yield driver
                await driver.commit()
