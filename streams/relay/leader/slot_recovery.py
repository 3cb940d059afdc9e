"""From polling to the slot without a gap: poll up to its start, make it, poll past its start.

A slot gives what is committed after its start. The newest id drawn once it is there bounds what
was committed before: when polling has its floor there, all of that is with the broker, and the slot
goes on. What was polled beyond comes twice, in the same order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

import psycopg

from streams.backoff import delay
from streams.database import connect, query
from streams.database.refusals import words
from streams.errors import ServiceUnreachable, UsageError
from streams.relay.leader.monitor import PlanChanged
from streams.relay.postgres.checks import check_log, check_replication
from streams.relay.postgres.continuity import refuse_foreign_slot, why_unreadable
from streams.relay.postgres.lsn import lsn_text
from streams.relay.postgres.slot import SlotBusy, make
from streams.relay.postgres.snapshot import RelaySnapshot, read_snapshot
from streams.settings import Settings
from streams.tasks import apart

logger = logging.getLogger("streams.relay")

LOOK_SECONDS = 0.2
# A slot holds WAL back from its start: it is made when polling is no more than this behind.
BEHIND_SECONDS = 10.0
RETRY_LIMIT = 30.0


class SlotRecovery:
    """Runs beside a source that polls.

    `floor` is that source's. Ends with PlanChanged when the slot can go on.
    """

    def __init__(
        self, settings: Settings, floor: Callable[[], int], say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._floor = floor
        self._say = say
        self._name = settings.relay.name

    async def run(self) -> PlanChanged:
        """Run until the slot can go on; psycopg.Error when the connection is lost.

        When the slot may not be made, it tries again.
        """
        attempt = 0
        async with await connect(
            self._settings.database_url,
            connect_timeout=self._settings.database.connect_timeout,
            application_name="outbox-streams relay healing",
        ) as connection:
            while True:
                await self._nearly_done(connection)
                try:
                    return await self._recover(connection)
                except (UsageError, ServiceUnreachable, SlotBusy, psycopg.Error) as error:
                    if connection.closed:
                        raise
                    attempt += 1
                    self._say(words(error))
                    about = {"relay": self._name, "reason": words(error), "attempt": attempt}
                    logger.warning("replication slot cannot be created yet", extra=about)
                await asyncio.sleep(delay(attempt + 2, RETRY_LIMIT))

    async def _nearly_done(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Until what was drawn seconds ago is with the broker."""
        while True:
            began, newest = time.monotonic(), await _newest(connection)
            await self._until(newest)
            if time.monotonic() - began < BEHIND_SECONDS:
                return

    async def _recover(self, connection: psycopg.AsyncConnection[Any]) -> PlanChanged:
        await apart(check_log, self._settings)
        await check_replication(self._settings)
        snapshot = await self._look(connection)
        if snapshot.slot is not None:
            refuse_foreign_slot(snapshot)
        await make(connection, snapshot)
        snapshot = await self._look(connection)
        if (reason := why_unreadable(snapshot)) is not None:
            raise UsageError(reason)
        # After the look: whatever the slot misses was committed by now, with an id drawn before.
        await self._until(await _newest(connection))
        await self._save(connection, snapshot)
        logger.info("relay healed", extra={"relay": self._name, "floor": self._floor()})
        return PlanChanged("the slot goes on", orderly=True)

    async def _look(self, connection: psycopg.AsyncConnection[Any]) -> RelaySnapshot:
        return await read_snapshot(connection, self._name, self._settings.relay.publication)

    async def _save(
        self, connection: psycopg.AsyncConnection[Any], snapshot: RelaySnapshot
    ) -> None:
        assert snapshot.slot is not None
        assert snapshot.slot.confirmed is not None
        healed = {
            "relay": self._name,
            "lsn": lsn_text(snapshot.slot.confirmed),
            "mark": snapshot.publication,
        }
        await connection.execute(query("relay_healed"), healed)

    async def _until(self, newest: int) -> None:
        while True:
            if self._floor() >= newest:
                return
            await asyncio.sleep(LOOK_SECONDS)


async def _newest(connection: psycopg.AsyncConnection[Any]) -> int:
    row = await (await connection.execute(query("last_id"))).fetchone()
    return int(row[0]) if row else 0
