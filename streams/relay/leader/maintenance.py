"""What a leader does beside publishing, on its own connection: floor, heartbeat, partitions."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import psycopg

from streams.backoff import delay
from streams.broker.beat import Beat, BeatWriter
from streams.database import connect, partitions, query
from streams.database.refusals import words
from streams.errors import ServiceUnreachable
from streams.relay.leader.figures import LeaderFigures
from streams.relay.postgres.floor import Floor
from streams.relay.postgres.gone_back import refuse_gone_back
from streams.relay.postgres.lsn import lsn_number
from streams.settings import Settings
from streams.tasks import apart

logger = logging.getLogger("streams.relay")

HEARTBEAT_SECONDS = 2.0
BEAT_SECONDS = 1.0
GOODBYE_SECONDS = 1.0
BEATS_HELD = 10_000
PARTITIONS_SECONDS = 60.0
# A burst is not the rate of the coming days: what the next hour needs is made at once, the rest at
# so many partitions a minute.
PARTITIONS_A_LOOK = 10
HOUR = 3600.0
LOCK_TIMEOUT = "5s"
RATE_SECONDS = 10.0


class NoFloor:
    """While nothing is published nothing is proved."""

    value = 0
    lsn: str | None = None

    def reset(self) -> None:
        """Nothing was seen."""

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Nothing to see."""


@dataclass(frozen=True, slots=True)
class Activity:
    """What a leader does, in one word, by which mode, and why it is not what was asked for."""

    mode: str
    doing: str
    reason: str | None = None


class LeaderMaintenance:
    """Runs until cancelled.

    A lost connection costs the sample that was being watched, nothing else.

    Of several leaders, each of some shards, the `first` saves the relay's position and makes
    partitions. `unsent` says what the sweep may not send again.
    """

    def __init__(
        self,
        settings: Settings,
        asked: str,
        doing: Activity,
        topics: Iterable[str] = (),
        *,
        first: bool = True,
        unsent: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self.first = first
        self._figures = LeaderFigures(settings, topics, unsent)
        self._settings = settings
        self._asked = asked
        self._doing = doing
        self._floor: Floor = NoFloor()
        self._delivered: Callable[[], int] = lambda: 0
        self._rate = Rate()
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._busy = asyncio.Lock()
        self._publication_identity: str | None = None
        self._saved: tuple[object, ...] = ()
        self._saved_at = 0.0
        self._attempt = 0
        self._ids: tuple[float, int] | None = None
        self.saved: int | None = None
        self._beats = BeatWriter(settings)
        self._beat_at = 0.0
        self._counted: deque[tuple[int, Beat]] = deque()
        # Only of a connection to a database that was compared with Kafka.
        self._compared = False

    def set_activity(
        self,
        doing: Activity,
        floor: Floor | None = None,
        delivered: Callable[[], int] = lambda: 0,
        publication_identity: str | None = None,
    ) -> None:
        """Tell what the leader does now, how its floor is known, how many rows it delivered.

        `publication_identity` is that of the publication it reads with: what is read with another
        one proves nothing, and is not saved. `saved` is then the confirmed log position as far as
        it is written down: what may be confirmed to the slot.
        """
        self._doing, self._floor, self._delivered = doing, floor or NoFloor(), delivered
        self._rate, self.saved, self._publication_identity = Rate(), None, publication_identity

    def say(self, reason: str) -> None:
        """Why the leader still does what it does."""
        self._doing = replace(self._doing, reason=reason)

    def wait(self, reason: str) -> None:
        """Why the leader publishes nothing now."""
        self._doing = replace(self._doing, doing="waiting", reason=reason)

    def go_on(self, doing: Activity) -> None:
        """What the leader does again, after it had to wait."""
        self._doing = doing

    @property
    def waits_for(self) -> str | None:
        """Why the leader publishes nothing now, if it does not."""
        return self._doing.reason if self._doing.doing == "waiting" else None

    async def run(self) -> None:
        """Tend, and tend again after an outage."""
        while True:
            try:
                self._connection = await connect(
                    self._settings.database_url,
                    connect_timeout=self._settings.database.connect_timeout,
                    application_name="outbox-streams relay upkeep",
                    session={"lock_timeout": LOCK_TIMEOUT},
                )
                async with self._connection:
                    await self._connection.execute(query("durable_session"))
                    await self._tend(self._connection)
            except psycopg.Error as error:
                self._attempt += 1
                logger.warning(
                    "leader maintenance interrupted",
                    extra={"sqlstate": error.sqlstate, "error": words(error)},
                )
            await asyncio.sleep(delay(self._attempt, self._settings.relay.backoff_limit))

    async def make_room(self) -> None:
        """Make partitions once; psycopg.Error when the database does not answer.

        Before anything is known of the rate: for as many rows as came of late in a few minutes, and
        more.
        """
        async with await connect(
            self._settings.database_url,
            connect_timeout=self._settings.database.connect_timeout,
            application_name="outbox-streams relay upkeep",
            options=f"-c lock_timeout={LOCK_TIMEOUT}",
        ) as connection:
            width = self._settings.outbox.partition_rows or partitions.FIRST_WIDTH
            made = await partitions.ensure(connection, ahead=PARTITIONS_A_LOOK * width, width=width)
        if made:
            logger.info("partitions made", extra={"count": made})

    async def settle(self) -> None:
        """Look and save once more, now; psycopg.Error when that cannot be."""
        if self._connection is None:
            raise psycopg.OperationalError("leader maintenance is not connected")
        async with self._busy:
            await self._floor.look(self._connection)
            self._saved, self._beat_at = (), 0.0
            await self._save(self._connection)
            self._write_beat(self._floor.lsn)
        # Whoever restores an older copy now is told from what was published last.
        await apart(self._beats.flush, GOODBYE_SECONDS)

    async def _tend(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._floor.reset()
        self._compared = False
        self._counted.clear()
        looked = -PARTITIONS_SECONDS
        while True:
            # One at a time: what is saved must not be part of a transaction that may be rolled
            # back.
            async with self._busy:
                if self.first and time.monotonic() - looked >= PARTITIONS_SECONDS:
                    looked = time.monotonic()
                    await self._make_partitions(connection)
                await self._floor.look(connection)
                await self._compare(connection)
                await self._save(connection)
                if self.first:
                    await self._figures.write(connection)
            # A server that takes connections and no writes is still an outage.
            self._attempt = 0
            await asyncio.sleep(self._settings.relay.floor_interval)

    async def _compare(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Count on only in a database that did not go back, or Kafka would forget what was lost.

        UsageError when it did.
        """
        if self._compared and not self._beats.topic_missing:
            return
        # Without Kafka nothing is published, and there is nothing to compare with.
        with contextlib.suppress(ServiceUnreachable):
            if self._beats.topic_missing:
                await apart(self._beats.make_topic)
            if not self._compared:
                await refuse_gone_back(self._settings, connection)
                self._compared = True

    async def _save(self, connection: psycopg.AsyncConnection[Any]) -> None:
        now, doing, floor, lsn = time.monotonic(), self._doing, self._floor.value, self._floor.lsn
        self._write_beat(lsn)
        delivered = self._delivered()
        self._rate.count(now, delivered)
        # An idle relay's position moves with each save: it alone is no reason for the next one.
        known = (doing, floor, delivered)
        if not self.first or (known == self._saved and now - self._saved_at < HEARTBEAT_SECONDS):
            return
        beats = self._compared and now - self._beat_at >= BEAT_SECONDS
        position = {
            "beats": beats,
            "name": self._settings.relay.name,
            "mode": doing.mode,
            "floor": floor,
            "lsn": lsn,
            "leader": f"{socket.gethostname()}:{os.getpid()}",
            "pid": os.getpid(),
            "asked": self._asked,
            "doing": doing.doing,
            "reason": doing.reason,
            "rate": self._rate.value,
            "mark": self._publication_identity,
            "publication": self._settings.relay.publication,
        }
        cursor = await connection.execute(query("save_relay_position"), position)
        if not (row := await cursor.fetchone()):
            raise psycopg.OperationalError(
                "this is not the database, or not the publication, that the position belongs to"
            )
        self._saved, self._saved_at = known, now
        if beats:
            self._beat_at = now
            end = await _value(connection, "insert_lsn")
            if len(self._counted) < BEATS_HELD:
                self._counted.append((lsn_number(end), Beat(identity=row[1], count=row[0])))
        if lsn is not None:
            self.saved = lsn_number(lsn)

    def _write_beat(self, lsn: str | None) -> None:
        """Tell Kafka the newest beat that was read in the log.

        Where no log is read, it is the newest committed one. A log that is held back for a standby
        (`synchronized_standby_slots`) holds the beat back too: what Kafka knows, that standby has.
        """
        if lsn is None and self._doing.mode != "poll":
            return  # nothing was read yet
        newest = None
        while self._counted and (lsn is None or self._counted[0][0] <= lsn_number(lsn)):
            newest = self._counted.popleft()[1]
        if newest is not None:
            self._beats.write(self._settings.relay.name, newest)

    async def _make_partitions(self, connection: psycopg.AsyncConnection[Any]) -> None:
        newest, now = await _value(connection, "last_id"), time.monotonic()
        kept = self._settings.outbox
        try:
            width = kept.partition_rows or await self._fitting_width(connection, newest)
            reached = await partitions.reach(connection) - newest
            ahead = needed_ahead(
                self._ids, (now, newest), kept.partitions_ahead_days, width, reached
            )
            self._ids = (now, newest)
            made = await partitions.ensure(connection, ahead=ahead, width=width)
        except psycopg.Error as error:
            if connection.broken or connection.closed:
                raise
            logger.warning(
                "partitions not made", extra={"sqlstate": error.sqlstate, "error": words(error)}
            )
            return
        if made:
            logger.info("partitions made", extra={"count": made, "newest_id": newest})

    async def _fitting_width(self, connection: psycopg.AsyncConnection[Any], newest: int) -> int:
        """As the last million ids came; partitions that are there already stay as they are."""
        days = self._settings.outbox.retention_days
        if days is None:
            return partitions.FIRST_WIDTH
        row = await (await connection.execute(query("recent_rows"), {"last": newest})).fetchone()
        if row is None or not row[0]:
            return partitions.FIRST_WIDTH
        return partitions.fitting_width(row[0] / row[1], days)


class Rate:
    """Rows a second over the last moments."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def count(self, now: float, rows: int) -> None:
        """So many rows in all, now."""
        self._counts.append((now, rows))
        while now - self._counts[0][0] > RATE_SECONDS:
            self._counts.popleft()

    @property
    def value(self) -> float:
        """Rows a second."""
        (since, before), (now, rows) = self._counts[0], self._counts[-1]
        return (rows - before) / (now - since) if now > since else 0.0


def needed_ahead(
    before: tuple[float, int] | None, now: tuple[float, int], days: float, width: int, reached: int
) -> int:
    """How many ids beyond the newest get a home now.

    That is `days` at the rate between two looks (seconds, newest id). `reached` of them have one:
    what an hour does not need comes little by little.
    """
    if before is None or now[0] <= before[0]:
        return width
    rate = (now[1] - before[1]) / (now[0] - before[0])
    soon, late = int(rate * HOUR), int(rate * days * 86_400)
    return max(width, soon, min(late, reached + PARTITIONS_A_LOOK * width))


async def _value(connection: psycopg.AsyncConnection[Any], name: str) -> Any:
    row = await (await connection.execute(query(name))).fetchone()
    return row[0] if row else None
