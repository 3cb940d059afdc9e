"""What a leader does beside publishing, on a connection of its own: the floor, heartbeat, partitions ahead."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from typing import Any, Protocol

import psycopg

from db import connect, partitions, query
from streams.relay.backoff import delay
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

HEARTBEAT_SECONDS = 2.0
PARTITIONS_SECONDS = 60.0
# A burst is not the rate of the coming days: per minute no more is made than this many partitions beyond the newest id.
PARTITIONS_AHEAD = 10
LOCK_TIMEOUT = "5s"


class Floor(Protocol):
    """How a mode knows its floor."""

    @property
    def value(self) -> int:
        """The floor as far as this leader has proved it."""

    @property
    def lsn(self) -> str | None:
        """The confirmed log position, where there is one."""

    def reset(self) -> None:
        """The connection is new: forget what the old one saw."""

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Look at the writers once."""


class Upkeep:
    """Runs until cancelled; a lost connection costs the sample that was being watched, nothing else."""

    def __init__(self, settings: Settings, mode: str, floor: Floor) -> None:
        self._settings = settings
        self._mode = mode
        self._floor = floor
        self._saved = (-1, 0.0)
        self._ids: tuple[float, int] | None = None

    async def run(self) -> None:
        """Tend, and tend again after an outage."""
        attempt = 0
        while True:
            try:
                connection = await connect(
                    self._settings.database_url,
                    connect_timeout=self._settings.database.connect_timeout,
                    application_name="outbox-streams relay upkeep",
                    options=f"-c lock_timeout={LOCK_TIMEOUT}",
                )
                async with connection:
                    attempt = 0
                    await self._tend(connection)
            except psycopg.Error as error:
                attempt += 1
                logger.warning("upkeep interrupted", extra={"sqlstate": error.sqlstate, "error": _line(error)})
            await asyncio.sleep(delay(attempt, self._settings.relay.backoff_limit))

    async def _tend(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._floor.reset()
        looked = -PARTITIONS_SECONDS
        while True:
            if time.monotonic() - looked >= PARTITIONS_SECONDS:
                looked = time.monotonic()
                await self._make_partitions(connection)
            await self._floor.look(connection)
            await self._save(connection)
            await asyncio.sleep(self._settings.relay.floor_interval)

    async def _save(self, connection: psycopg.AsyncConnection[Any]) -> None:
        floor, at = self._saved
        now = time.monotonic()
        if self._floor.value == floor and now - at < HEARTBEAT_SECONDS:
            return
        value = self._floor.value
        position = {
            "name": self._settings.relay.name,
            "mode": self._mode,
            "floor": value,
            "lsn": self._floor.lsn,
            "leader": f"{socket.gethostname()}:{os.getpid()}",
            "pid": os.getpid(),
        }
        await connection.execute(query("save_relay_position"), position)
        self._saved = (value, now)

    async def _make_partitions(self, connection: psycopg.AsyncConnection[Any]) -> None:
        width = self._settings.outbox.partition_rows
        newest, now = await _value(connection, "last_id"), time.monotonic()
        ahead = needed_ahead(self._ids, (now, newest), self._settings.outbox.partitions_ahead_days, width)
        self._ids = (now, newest)
        try:
            made = await partitions.ensure(connection, ahead=ahead, width=width)
        except psycopg.Error as error:
            if connection.broken or connection.closed:
                raise
            logger.warning("partitions not made", extra={"sqlstate": error.sqlstate, "error": _line(error)})
            return
        if made:
            logger.info("partitions made", extra={"count": made, "newest_id": newest})


def needed_ahead(before: tuple[float, int] | None, now: tuple[float, int], days: float, width: int) -> int:
    """How many ids beyond the newest need a home: `days` at the rate between two looks (seconds, newest id)."""
    if before is None or now[0] <= before[0]:
        return width
    rate = (now[1] - before[1]) / (now[0] - before[0])
    return min(max(width, int(rate * days * 86_400)), PARTITIONS_AHEAD * width)


async def _value(connection: psycopg.AsyncConnection[Any], name: str) -> Any:
    row = await (await connection.execute(query(name))).fetchone()
    return row[0] if row else None


def _line(error: psycopg.Error) -> str:
    return (str(error).strip().splitlines() or [""])[0]
