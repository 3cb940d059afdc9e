"""What a leader keeps small beside publishing, on a connection of its own.

`outbox_open` first: a row comes and goes with every message that fails, and what is gone has to be
swept before probes wade through it. The server's own round comes once a minute at best.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg

from streams.database import connect, query
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

ROUND_SECONDS = 10.0


class Housekeeping:
    """Runs until cancelled; an outage costs a round, nothing else."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def run(self) -> None:
        """One round after another."""
        while True:
            try:
                async with await connect(
                    self._settings.database_url,
                    connect_timeout=self._settings.database.connect_timeout,
                    application_name="outbox-streams relay housekeeping",
                ) as connection:
                    while True:
                        await self.round(connection)
                        await asyncio.sleep(ROUND_SECONDS)
            except (psycopg.Error, OSError) as error:
                logger.warning("housekeeping interrupted", extra={"error": type(error).__name__})
            await asyncio.sleep(ROUND_SECONDS)

    async def round(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Look once, and clean up what needs it."""
        row = await (await connection.execute(query("open_churns"))).fetchone()
        if row and row[0]:
            await connection.execute(query("vacuum_open"))
