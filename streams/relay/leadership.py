"""Who leads a relay name: a session-level advisory lock, whatever the mode, given up with the connection that holds it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import NoReturn

import psycopg

from db import connect, query
from streams.settings import Settings

WATCH_SECONDS = 1.0
PATIENCE = 5.0
# A leader that vanished with its machine gives the lock back after about this long.
KEEPALIVES = "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3"


class Standby(Exception):
    """Another relay of this name leads."""


class Leadership:
    """Held while entered; Standby when another one has it.  `watch` ends with an error when it is lost."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def __aenter__(self) -> Leadership:
        self._connection = await connect(
            self._settings.database_url,
            connect_timeout=self._settings.database.connect_timeout,
            application_name="outbox-streams relay leader",
            options=KEEPALIVES,
        )
        try:
            row = await (
                await self._connection.execute(query("relay_lead"), {"name": self._settings.relay.name})
            ).fetchone()
            if row is None or not row[0]:
                raise Standby
        except BaseException:
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._connection.close()

    async def watch(self) -> NoReturn:
        """Until the lock's connection is lost, then psycopg.Error: from then on another one may lead."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._connection.execute("SELECT 1")
            except TimeoutError:
                raise psycopg.OperationalError("the leader's connection does not answer") from None
