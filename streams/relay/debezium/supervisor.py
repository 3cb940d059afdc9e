"""What a leader does while Debezium publishes: it looks after the connector and keeps the floor."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg

from streams.database import connect, query
from streams.errors import ServiceUnreachable, UsageError
from streams.relay.debezium.config import DATABASE, connector, differences
from streams.relay.debezium.rest import Connect, State
from streams.relay.postgres.lsn import lsn_number
from streams.relay.postgres.wal_floor import WalFloor
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

LOOK_SECONDS = 1.0
# How long a task may be failed before it is started again; doubled each time, up to the limit.
RESTART_SECONDS, RESTART_LIMIT = 1.0, 60.0
STOP_SECONDS = 10.0
# How late Connect may still carry out what the leader before this one asked of it: it gives up a
# request after 90 seconds.
HANDOVER_SECONDS = 120.0


class SlotFloor(WalFloor):
    """The floor of a slot that somebody else confirms."""

    def __init__(self, slot: str) -> None:
        super().__init__(lambda: self._position)
        self._slot = slot
        self._position: int | None = None

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Ask how far the slot is confirmed, then look at the writers."""
        row = await (await connection.execute(query("slot"), {"slot": self._slot})).fetchone()
        self._position = lsn_number(row[4]) if row and row[4] else None
        await super().look(connection)


class ConnectorSupervisor:
    """Keeps the connector as the settings want it, running, restarted when its task failed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        url = settings.connect.url
        self._connect = Connect(url, settings.relay.name) if url else None
        self._ours = settings.connect.register
        self._outbox: tuple[str, str] | None = None
        self._began = time.monotonic()

    async def reach(self) -> None:
        """ServiceUnreachable when Connect does not answer."""
        if self._connect is not None:
            await self._connect.configuration()

    async def begin(self) -> None:
        """Make and start our connector, or check the one that somebody else made.

        UsageError says what to set when it is not there, or not as it must be.
        """
        if self._connect is None:
            return
        if not self._ours:
            await self._check(self._connect)
            return
        _, database = await self._schema_and_database()
        wanted = {**connector(self._settings), DATABASE: database}
        configuration = await self._connect.configuration() or {}
        if other := await self._other_database(configuration):
            # One that has failed is restarted by its relay, as soon as its database is back.
            if (await self._connect.state()).name not in ("STOPPED", None):
                raise self._taken(other)
            # Its positions are in the log of another server.
            await self._stop(self._connect)
            await self._connect.forget()
        if {**wanted, "name": self._settings.relay.name} != configuration:
            faults = await self._connect.faults(wanted)
            if faults:
                raise UsageError(
                    f"Kafka Connect refuses connector {self._settings.relay.name}:"
                    f" {'; '.join(faults)}"
                )
            await self._connect.register(wanted)
        await self._connect.resume()
        self._began = time.monotonic()

    async def end(self) -> None:
        """Ours publishes no longer: its slot is free for whoever comes next."""
        try:
            await self.release()
        except (ServiceUnreachable, UsageError) as error:
            self._say(State("UNREACHABLE", str(error)))

    async def release(self, *, forget: bool = False) -> None:
        """The same; ServiceUnreachable when Connect cannot be told, or does not do it.

        `forget` its position too: Debezium refuses a slot that begins after it.
        """
        if self._connect is None or not self._ours:
            return
        if await self._other_database(await self._connect.configuration() or {}):
            return
        await self._stop(self._connect)
        if forget:
            await self._connect.forget()

    async def watch(self, tell: Callable[[str | None], None] = lambda reason: None) -> None:
        """Until cancelled, or at once when there is no Connect to ask.

        `tell` takes why nothing is published, and None when that goes on. UsageError when the
        connector was changed.

        Ours is resumed when it is stopped soon after it began: Connect was late with what the
        leader before asked for. Later, or paused, which no relay does, an operator meant it.
        """
        if self._connect is None:
            return
        pause, logged = RESTART_SECONDS, State("RUNNING")
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._check(self._connect)
                state = await self._connect.state()
                if state != logged:
                    self._say(state)
                    tell(self._why_not(state))
                logged = state
                if state.name == "FAILED":
                    await asyncio.sleep(pause)
                    pause = min(RESTART_LIMIT, 2 * pause)
                    await self._connect.restart()
                elif state.name == "STOPPED" and self._of_leader_before():
                    await self._connect.resume()
                elif state.name == "RUNNING":
                    pause = RESTART_SECONDS
            except ServiceUnreachable as error:
                unreachable = State("UNREACHABLE", str(error))
                if logged != unreachable:
                    self._say(unreachable)
                    tell(unreachable.reason)
                logged = unreachable

    def _of_leader_before(self) -> bool:
        """Whether a stop that is seen now may be one that an earlier leader of ours asked for."""
        return self._ours and time.monotonic() - self._began < HANDOVER_SECONDS

    def _why_not(self, state: State) -> str | None:
        """Why the connector does not publish, without the words of its task: they may hold text."""
        connector = f"connector {self._settings.relay.name}"
        if state.name in ("STOPPED", "PAUSED"):
            return (
                f"{connector} was {state.name.lower()} in Kafka Connect: resume it there"
                f" (PUT /connectors/{self._settings.relay.name}/resume)"
            )
        if state.name == "FAILED":
            return f"{connector} has failed in Kafka Connect, its log says why; it is restarted"
        return None

    async def _stop(self, connect: Connect) -> None:
        await connect.stop()
        for _ in range(int(STOP_SECONDS / 0.1)):
            if (await connect.state()).name in ("STOPPED", None):
                return
            await asyncio.sleep(0.1)
        raise ServiceUnreachable(
            f"Kafka Connect does not stop connector {self._settings.relay.name}"
        )

    async def _other_database(self, configuration: Mapping[str, str]) -> str | None:
        """The database for which a relay registered this connector, if that is not ours."""
        _, database = await self._schema_and_database()
        registered = configuration.get(DATABASE, database)
        return registered if registered != database else None

    def _taken(self, database: str) -> UsageError:
        return UsageError(
            f"connector {self._settings.relay.name} of Kafka Connect publishes the outbox of"
            f" another database ({database}): set relay.name to one that nobody has, or delete the"
            " connector if that database is gone"
        )

    async def _check(self, connect: Connect) -> None:
        name = self._settings.relay.name
        configuration = await connect.configuration()
        if configuration is None:
            raise UsageError(
                f"connector {name} does not exist in Kafka Connect: set connect.register to true,"
                " or create it with the configuration that `streams relay --mode debezium` prints"
            )
        if other := await self._other_database(configuration):
            raise self._taken(other)
        schema, _ = await self._schema_and_database()
        wrong = differences(configuration, self._settings, schema)
        if wrong:
            raise UsageError(f"connector {name} would send other records: {'; '.join(wrong)}")

    async def _schema_and_database(self) -> tuple[str, str]:
        """Where the outbox is, and the identity of its database."""
        if self._outbox is None:
            timeout = self._settings.database.connect_timeout
            async with await connect(
                self._settings.database_url, connect_timeout=timeout
            ) as connection:
                [schema] = await (await connection.execute(query("outbox_schema"))).fetchone() or [
                    None
                ]
                [database] = await (
                    await connection.execute(query("database_identity"))
                ).fetchone() or [None]
            self._outbox = schema or "public", str(database)
        return self._outbox

    def _say(self, state: State) -> None:
        extra = {"relay": self._settings.relay.name, "state": state.name, "reason": state.reason}
        level = logging.INFO if state.name == "RUNNING" else logging.WARNING
        logger.log(level, "connector changed", extra=extra)
