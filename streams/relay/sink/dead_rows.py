"""Rows that no record can carry are dead: written down, before the relay goes on."""

from __future__ import annotations

import asyncio
import logging

import psycopg

from streams.backoff import delay
from streams.database import connect, query
from streams.database.refusals import PASSING
from streams.registry import Registry
from streams.relay.source.rows import Row
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

TRIES = 3


class DeadRows:
    """Buries rows on a connection of its own, opened when needed: this is rare."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._holding = {name for name, agent in registry.agents.items() if agent.on_dead == "hold"}

    async def mark_dead(self, row: Row, reason: str) -> None:
        """Mark the row's message dead.

        Returns when that is committed, however long the database is away.

        What the database refuses for another reason than an outage is given up after TRIES: the
        rows behind it go on. Its message has neither a record nor a fate then, so that the audit
        finds it and the sweep sends it again.
        """
        attempt = refused = 0
        while True:
            try:
                written = await self._write(row, reason)
            except psycopg.Error as error:
                attempt += 1
                refused += not _is_outage(error)
                extra = {"outbox_id": row.id, "sqlstate": error.sqlstate, "attempt": attempt}
                if refused >= TRIES:
                    logger.error(
                        "dead message not written down, the sweep sends it again",
                        extra=extra | {"reason": reason},
                    )
                    return
                logger.warning("dead message not written yet", extra=extra)
                await asyncio.sleep(delay(attempt, self._settings.relay.backoff_limit))
            else:
                break
        if written:
            extra = {
                "outbox_id": row.root_id,
                "biz_type": row.biz_type,
                "error_code": "unpublishable",
                "reason": reason,
            }
            logger.error("message dead", extra=extra)

    async def _write(self, row: Row, reason: str) -> bool:
        """Whether that is what became of the message."""
        timeout = self._settings.database.connect_timeout
        async with await connect(
            self._settings.database_url, connect_timeout=timeout
        ) as connection:
            which = {
                "outbox_id": row.root_id,
                "row_id": row.id,
                "hold": row.biz_type in self._holding,
            }
            rows = await connection.execute(
                query("bury_unpublishable"), which | {"reason": reason[:2000]}
            )
            return rows.rowcount == 1


def _is_outage(error: psycopg.Error) -> bool:
    """Whether the database is away, busy or read-only.

    An error without an SQLSTATE means that the connection failed.
    """
    return error.sqlstate is None or error.sqlstate.startswith(PASSING)
