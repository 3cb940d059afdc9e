"""Committed outbox rows read by polling: no logical replication, no role, no status in the row.

A pass reads what is visible beyond the newest id read, then what has become visible in the gaps
left behind, and sends the gaps first. Who writes a conversation after an earlier message of it was
committed draws a higher id and is never visible without it; the gaps are read later, so they hold
whatever a newer row may have to wait for. The floor rises towards a sampled id once all who could
still write an id up to it had ended before a pass, as far as that pass has come and is with the
broker: also in the middle of a backlog, which a restart must not begin again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, Self

import psycopg
from psycopg import pq

from streams.database import connect, query
from streams.relay.postgres.floor import Floor, Sample, settle
from streams.relay.source.gaps import Gaps
from streams.relay.source.portions import portions
from streams.relay.source.rows import Header, Milliseconds, Row, Rows, new_row

logger = logging.getLogger("streams.relay")

# One pass reads about this much, then looks at the gaps again: its snapshot must not get old.
PASS_ROWS, PASS_BYTES = 5_000, 16_000_000
# What is handed over at once.
BATCH, BATCH_BYTES = 500, 1_000_000
# What the server sends at once, each row of which may be as large as a row can be.
PORTION = 100
GOODBYE_SECONDS = 2.0
UNSAVED_SECONDS = 0.05  # between two looks while maintenance has not saved anything yet


class PollSource:
    """Passes over the outbox: iterate for Rows, `confirm` what is with the broker.

    Its `floor` is what that proves.

    A position is the number of a batch. psycopg.Error when the connection is lost. What is
    confirmed is saved when this is left, after a last look, so that an orderly end sends nothing
    twice.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str,
        interval: float,
        largest: int = 900_000,
        connect_timeout: int = 10,
        notify: bool = False,
    ) -> None:
        self._url, self._name, self._interval, self._timeout = url, name, interval, connect_timeout
        self._notify = notify
        self._portion = max(1, min(PORTION, 2 * PASS_BYTES // largest))
        self._position = 0
        # The last position of what was read; None while some of that is still to be handed over.
        self._read_to: int | None = 0
        self._confirmed = 0
        self._sample: Sample | None = None
        self._targets: deque[tuple[int, int]] = deque()
        self._milliseconds = Milliseconds()
        self._most = PASS_ROWS
        self._floor = 0

    async def __aenter__(self) -> Self:
        self._connection = await connect(
            self._url,
            application_name="outbox-streams relay",
            connect_timeout=self._timeout,
            # `local`: what it commits itself is flushed, whatever others do; a standby is not
            # waited for.
            session={"synchronous_commit": "local"},
        )
        if self._notify:
            await self._listen()
        self._floor = await self._begin()
        self._gaps = Gaps(self._floor)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            with contextlib.suppress(psycopg.Error, TimeoutError):
                async with asyncio.timeout(GOODBYE_SECONDS):
                    if kind is None and self._confirmed == self._read_to:
                        await self._last_look()
                    await self._end()
        finally:
            await self._connection.close()

    async def __aiter__(self) -> AsyncIterator[Rows]:
        while True:
            target = await self._settled()
            rows, whole = await self._read()
            self._read_to = None
            if rows:
                await self._make_durable()
            for batch, size in batches(rows):
                yield Rows(batch, self._next(target, batch[-1].id), size)
                # Producers and heartbeats run between two batches, however much is waiting.
                await asyncio.sleep(0)
            if whole and target is not None:
                yield Rows([], self._next(target, target), 0)
                self._sample = None
            self._read_to = self._position
            if whole and not rows:
                await self._pause()

    async def _make_durable(self) -> None:
        """Wait until what was read is durable.

        Visible is not durable: after a crash the ids of what was lost are drawn again, for other
        messages.
        """
        while True:
            cursor = await self._connection.execute(query("make_durable"), {"relay": self._name})
            [durable] = await cursor.fetchone() or [None]
            if durable:
                return
            await asyncio.sleep(UNSAVED_SECONDS)

    def _next(self, target: int | None, read: int) -> int:
        """The next position.

        A pass ascends: whatever was visible up to the id `read` was handed over before it.
        """
        self._position += 1
        if target is not None:
            self._targets.append((self._position, min(target, read)))
        return self._position

    def confirm(self, position: int | None) -> None:
        """Everything up to this position is with the broker (None: nothing yet)."""
        self._confirmed = max(self._confirmed, position or 0)
        while position is not None and self._targets and self._targets[0][0] <= position:
            self._floor = max(self._floor, self._targets.popleft()[1])
            self._gaps.settle(self._floor)

    def floor(self, confirmed: Callable[[], int | None]) -> Floor:
        """What the passes have proved: this source keeps its floor itself."""
        return self

    def provable(self, confirmed: int | None, saved: int | None) -> int | None:
        """All that is with the broker: nobody but this source reads by its positions."""
        return confirmed

    @property
    def value(self) -> int:
        """The floor."""
        return self._floor

    @property
    def lsn(self) -> str | None:
        """Polling knows no log position."""
        return None

    def reset(self) -> None:
        """What the passes know stands on their own connection."""

    async def look(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """The passes themselves raise the floor."""

    async def _begin(self) -> int:
        """Where to begin."""
        return await self._value("relay_floor", relay=self._name)

    async def _end(self) -> None:
        """What is known is saved."""
        await self._connection.execute(
            query("raise_floor"), {"relay": self._name, "floor": self._floor}
        )

    async def _listen(self) -> None:
        await self._connection.execute(query("listen"))
        if not await self._value("has_notify_trigger"):
            reason = "the outbox has no trigger that notifies: run `streams migrate`"
            logger.warning(
                "LISTEN trigger missing, polling only",
                extra={"relay": self._name, "reason": reason},
            )

    async def _pause(self) -> None:
        """Until the next look is due, or until PostgreSQL says that somebody has committed rows."""
        if not self._notify:
            await asyncio.sleep(self._interval)
            return
        # What was said since the last look is said at once.
        async for _ in self._connection.notifies(timeout=self._interval, stop_after=1):
            pass

    async def _last_look(self) -> None:
        """The floor is the newest id, if nothing below it can be missing.

        That is when nobody can still write an older one and there is nothing that was not read.
        """
        newest = await self._value("sampled_id")
        if not await self._writers() and await self._read() == ([], True):
            self._floor = max(self._floor, newest)

    async def _settled(self) -> int | None:
        """The id up to which nobody could still write when this was called.

        None when that is not known of a new one.
        """
        if self._sample is None:
            # The id first: who drew it or an older one held the lock by then, and holds it still,
            # or has ended.
            newest = await self._value("sampled_id")
            if newest <= self._floor:
                return None
            self._sample = Sample(newest, await self._writers())
        else:
            self._sample = settle(self._sample, await self._writers(), 0)
        return None if self._sample.writers else self._sample.newest

    async def _read(self) -> tuple[list[Row], bool]:
        """The rows of one pass in the order to send them, and whether that is all.

        All is everything visible.
        """
        lows, highs = self._gaps.ranges
        newer, whole = await self._select("poll_newer", newest=self._gaps.newest)
        older: list[Row] = []
        if lows:
            bounds = {"first": lows[0], "last": highs[-1]}
            older, all_older = await self._select(
                "poll_gaps", lows=list(lows), highs=list(highs), **bounds
            )
            if not all_older:
                # A newer row may have to wait for one that is still unread.
                newer, whole = [], False
        rows = older + newer
        self._gaps.read([row.id for row in rows])
        return rows, whole

    async def _select(self, name: str, **parameters: Any) -> tuple[list[Row], bool]:
        """What one statement sees, up to the size of a pass, and whether that is all.

        It ends before anything is sent.
        """
        rows: list[Row] = []
        size, most = 0, self._most
        # The numbers, which are ours, are quoted on this side.
        statement = psycopg.AsyncClientCursor(self._connection).mogrify(
            query(name), parameters | {"most": most}
        )
        async with contextlib.aclosing(
            portions(self._connection, statement, self._portion)
        ) as results:
            async for result in results:
                portion = self._rows(result)
                rows += portion
                size += sum([len(row.value) for row in portion])
                if size > PASS_BYTES:
                    break
        # Leaving a statement before its end costs more than asking for less.
        self._most = min(PASS_ROWS, PASS_BYTES * len(rows) // size or 1) if size else PASS_ROWS
        return rows, len(rows) < most and size <= PASS_BYTES

    def _rows(self, result: pq.abc.PGresult) -> list[Row]:
        value, milliseconds = result.get_value, self._milliseconds
        rows: list[Row] = []
        for line in range(result.ntuples):
            headers: list[Header] = [
                ("id", value(line, 4)),
                ("biz_type", value(line, 5)),
                ("traceparent", value(line, 6)),
                ("resend_of", value(line, 7)),
            ]
            topic = (value(line, 0) or b"").decode()
            timestamp = milliseconds(value(line, 3) or b"")
            rows.append(
                new_row((topic, value(line, 1) or b"", value(line, 2) or b"", timestamp, headers))
            )
        return rows

    async def _writers(self) -> frozenset[str]:
        cursor = await self._connection.execute(query("outbox_writers"))
        return frozenset([row[0] async for row in cursor])

    async def _value(self, name: str, **parameters: Any) -> int:
        row = await (await self._connection.execute(query(name), parameters)).fetchone()
        return int(row[0]) if row else 0


def batches(rows: list[Row]) -> Iterator[tuple[list[Row], int]]:
    """The rows in order, in portions, and the bytes of their payloads.

    A portion is at most BATCH rows and about BATCH_BYTES.
    """
    at = 0
    while at < len(rows):
        batch = rows[at : at + BATCH]
        size = sum([len(row.value) for row in batch])
        while size > BATCH_BYTES and len(batch) > 1:
            batch = batch[: len(batch) // 2]
            size = sum([len(row.value) for row in batch])
        yield batch, size
        at += len(batch)
