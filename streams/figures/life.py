"""Signs of life of a process with one connection for small statements: a relay, leading or not."""

from __future__ import annotations

import logging
import time
from typing import Any

import psycopg

from streams.database.queries import query
from streams.figures.process import BEAT_SECONDS, Vitals, beat_seconds, incarnation

logger = logging.getLogger(__name__)

REFUSED_SECONDS = 60.0


class ProcessLife:
    """Beats at most every few seconds, whenever it is asked to, on an autocommit connection.

    A role that may not write the table does its work all the same: that is said once.
    """

    def __init__(self, kind: str, name: str) -> None:
        self._vitals = Vitals(kind=kind, name=name)
        self._due = 0.0
        self._refused = False
        self._beaten = False

    async def beat(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Tell that this process lives, if it is time.

        psycopg.Error when the connection is lost.
        """
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + BEAT_SECONDS
        rows = await self._execute(connection, "process_beat", self._vitals.parameters())
        if rows:
            self._beaten = True
            self._due = time.monotonic() + beat_seconds(rows[0][0])

    async def end(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Tell that it ends in order, if it ever told that it lives."""
        if self._beaten:
            await self._execute(connection, "process_end", {"id": incarnation()})

    async def _execute(
        self, connection: psycopg.AsyncConnection[Any], name: str, parameters: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        try:
            cursor = await connection.execute(query(name), parameters)
            return await cursor.fetchall() if cursor.description else []
        except psycopg.Error as error:
            if connection.broken or connection.closed:
                raise
            self._due = time.monotonic() + REFUSED_SECONDS
            if not self._refused:
                logger.warning("figures not written", extra={"sqlstate": error.sqlstate})
            self._refused = True
            return []
