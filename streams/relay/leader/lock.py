"""Who leads a relay name: a session-level advisory lock, given up with its connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from types import TracebackType
from typing import Any, Self

import psycopg

from streams.database import connect, locks, query
from streams.database.migrate import sequence_fault
from streams.errors import UsageError
from streams.figures.life import ProcessLife
from streams.relay.postgres.gone_back import refuse_gone_back
from streams.relay.postgres.snapshot import RelaySnapshot, read_snapshot, reader
from streams.settings import Settings

PATIENCE = 5.0
# A leader whose connection something in the middle keeps alive gives the lock back when it has
# asked nothing for so long: it asks every second.
LIMITS = {"idle_session_timeout": "15s"}


class Leadership:
    """One session that leads or stands by.

    Others see it there as long as it is entered (`relay_attendance`).

    `why_not` says more about why it does not lead, where there is more to say; `turn` why what it
    leads has to change.
    """

    why_not = ""
    turn: str | None = None

    def __init__(self, settings: Settings, mode: str) -> None:
        self._settings = settings
        # PostgreSQL cuts it at 63 bytes: what may be long comes last.
        self._who = f"outbox-streams relay {mode} {os.getpid()}@{socket.gethostname()}"

    async def __aenter__(self) -> Self:
        self._connection = await connect(
            self._settings.database_url,
            connect_timeout=self._settings.database.connect_timeout,
            application_name=self._who,
            session=LIMITS,
        )
        self._life = ProcessLife("relay", self._settings.relay.name)
        try:
            await self._connection.execute(
                query("relay_attend"), {"name": self._settings.relay.name}
            )
        except (
            BaseException
        ):  # cancelled too: a connection that nobody closes would keep what it locked
            await self._connection.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._life.end(self._connection)
        await self._connection.close()

    async def take(self) -> bool:
        """Whether this one leads from now on; False while another one does."""
        await self._life.beat(self._connection)
        name = self._settings.relay.name
        lead = locks.relay(name)
        if await self._value("lock_alone", lock=lead) is not True:
            return False
        # An earlier release shares the work under a lock that ours shares with it.
        if await self._value("relay_keep_out", name=name):
            if not await self._value("relays_earlier", name=name):
                return True
            await self._value("relay_let_in", name=name)
        await self._value("lock_give", lock=lead)
        return False

    async def look(self) -> RelaySnapshot:
        """The database as it is.

        psycopg.Error when the lock's connection is lost: another one may lead now.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._look()
        except TimeoutError:
            raise psycopg.OperationalError("the leader's connection does not answer") from None

    async def refuse_gone_back(self) -> None:
        """UsageError when the database went back, by the beat that Kafka knows.

        ServiceUnreachable without Kafka.
        """
        await refuse_gone_back(self._settings, self._connection)

    async def reader(self) -> str | None:
        """One line about who reads the slot; None when nobody does."""
        return await reader(self._connection, self._settings.relay.name)

    async def _look(self) -> RelaySnapshot:
        sequence = await (await self._connection.execute(query("sequence_at_fault"))).fetchone()
        if sequence is not None:
            raise UsageError(sequence_fault(*sequence))
        await self._life.beat(self._connection)
        return await read_snapshot(
            self._connection, self._settings.relay.name, self._settings.relay.publication
        )

    async def _value(self, name: str, /, **parameters: Any) -> Any:
        row = await (await self._connection.execute(query(name), parameters)).fetchone()
        return row[0] if row else None
