"""The statements of one transaction on one topic; the pipeline says which of them, and when.

They go straight to psycopg; handlers get the SQLAlchemy connection around the same transaction. A
transaction never takes a second connection, so the pool cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import orjson
import psycopg

from streams.worker.database.response_deadline import response_deadline
from streams.worker.delivery import Delivery, Rejected, by_reason
from streams.worker.failure.doubt import Leaf
from streams.worker.run.decide import Fact, Named, Range, rejected_range
from streams.worker.run.origin import Origin
from streams.worker.set_aside import SetAside

OPEN_BYTES = 1_000_000  # of payloads read at once, as they are stored: compressed

Query = tuple[str, dict[str, Any]]  # a named query and its parameters
Fates = Sequence[tuple[Delivery, SetAside]]  # what is set aside, and the delivery it came by
# What pg_stat_activity calls a worker's session while it holds the locks of partitions, before the
# time for which it may say nothing; the query `end_vanished` reads it.
IN_A_RUN = "outbox-streams worker, in a run, silent for at most "
BOTH = "another transaction decided one of these messages in this moment"


class NotYetVisible(Exception):
    """What others committed, perhaps, is not visible yet: the run has to be tried again soon."""


class Transaction:
    """One transaction that locks partitions of one topic; each statement may take `seconds`."""

    def __init__(
        self, driver: psycopg.AsyncConnection[Any], topic: str, origin: Origin, seconds: float
    ) -> None:
        self._driver, self.topic, self.origin, self._seconds = driver, topic, origin, seconds
        self.probe_seconds = 0.0  # how long it took to learn whether anything of the topic is open
        # What was open and is taken: since when each of them waits.
        self._reclaimed: dict[int, float | None] = {}

    async def lock(self, partitions: Iterable[int]) -> None:
        """Keep every other owner, past or future, of these partitions out until the commit."""
        name, parameters = _locking(partitions)
        await self.execute(name, **parameters)

    async def lock_and_claim(
        self, partitions: Iterable[int], deliveries: Sequence[Delivery]
    ) -> Sequence[Delivery]:
        """Claim all that is new, in the round trip that locks.

        Nothing is claimed while something of the topic is open.
        """
        claimed, _ = await self._claimed(deliveries, checked=False, before=_locking(partitions))
        return claimed

    async def lock_and_ask(
        self, partitions: Iterable[int], deliveries: Sequence[Delivery]
    ) -> set[str]:
        """Which of these messages' conversations wait behind an open message.

        That is asked in the round trip that locks.
        """
        _, (_, rows) = await self._together(_locking(partitions), ("open_keys", _keys(deliveries)))
        return {key for (key,) in rows}

    async def waiting_conversations(self, deliveries: Sequence[Delivery]) -> set[str]:
        """Which of these messages' conversations wait behind an open message."""
        if not deliveries:
            return set()
        return {key for (key,) in await self.execute("open_keys", **_keys(deliveries))}

    async def claim_and_open(
        self, free: Sequence[Delivery], behind: Fates
    ) -> tuple[Sequence[Delivery], list[tuple[Delivery, SetAside]]]:
        """Claim messages whose conversations wait for nothing, and `open` others.

        It returns those of each that are new.
        """
        opening = self._opening(behind, known=False) if behind else None
        claimed, rows = await self._claimed(free, checked=True, before=opening)
        return claimed, _of(behind, rows)

    async def claim(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Those of these messages that are new and ours now.

        That the records are their outbox rows' and that their conversations wait for nothing is
        known.
        """
        if not deliveries:
            return []
        try:
            return await self._claim_each(deliveries, checked=True, known=True)
        except psycopg.errors.UniqueViolation as error:
            raise NotYetVisible(BOTH) from error

    async def open(self, arrivals: Fates) -> list[tuple[Delivery, SetAside]]:
        """Store messages behind an open one, parked, or dead on arrival; those that had no fate."""
        if not arrivals:
            return []
        _, rows = await self._claimed([], checked=True, before=self._opening(arrivals, known=True))
        return _of(arrivals, rows)

    async def reclaim(self, turns: Iterable[tuple[Delivery, str]]) -> set[int]:
        """Take open messages, each given with its status; the ids of those that still had it."""
        rows = [
            {
                "outbox_id": delivery.outbox_id,
                "status": status,
                "partition": delivery.partition,
                "offset": delivery.offset,
            }
            for delivery, status in turns
        ]
        if not rows:
            return set()
        ids = [row["outbox_id"] for row in rows]
        reclaimed = dict(
            await self.execute("reclaim", messages=orjson.dumps(rows).decode(), ids=ids)
        )
        self._reclaimed |= reclaimed
        return set(reclaimed)

    async def set_aside(self, fates: Fates) -> list[SetAside]:
        """Give messages that have a state row another status than consumed.

        It says when each is due.
        """
        if not fates:
            return []
        rows = [
            {
                "outbox_id": fate.outbox_id,
                "status": fate.status,
                "open": fate.open,
                "key": fate.key,
                "partition": delivery.partition,
                "offset": delivery.offset,
                "attempts": fate.attempts,
                "error_code": fate.code,
                "error": fate.error,
                "delay": fate.delay,
                **self.origin.to_store(delivery),
            }
            for delivery, fate in fates
        ]
        ids = [fate.outbox_id for _, fate in fates]
        due = dict(await self.execute("set_aside", messages=orjson.dumps(rows).decode(), ids=ids))
        again = [
            {"outbox_id": fate.outbox_id, "opened": opened}
            for _, fate in fates
            if fate.open and (opened := self._reclaimed.get(fate.outbox_id)) is not None
        ]
        if again:
            await self.execute("opened_before", messages=orjson.dumps(again).decode())
        return [replace(fate, due=due[fate.outbox_id]) for _, fate in fates]

    async def reject(self, rejected: Sequence[Rejected]) -> None:
        """Note records that are no outbox row's, as ranges: a topic may be full of them."""
        if not rejected:
            return
        ranges = by_reason(rejected)
        given = [
            {"partition": partition, "reason": reason, "first": offsets[0]}
            for (partition, reason), offsets in ranges.items()
        ]
        rows = await self.execute("rejected_before", given=orjson.dumps(given).decode())
        before = {(row[0], row[4]): Range(*row) for row in rows}
        new = [
            rejected_range(partition, reason, offsets, before.get((partition, reason)))
            for (partition, reason), offsets in ranges.items()
        ]
        rejects = [each._asdict() for each in new if each is not None]
        await self.execute("reject", rejects=orjson.dumps(rejects).decode())

    async def identities(self, ids: Collection[int]) -> dict[int, Named]:
        """What tells the records of these outbox rows from any other's, by id.

        A row that is not there has None.
        """
        return {row[0]: Named(*row[1:]) for row in await self.execute("identities", ids=list(ids))}

    async def gone(self, ids: Collection[int]) -> set[int]:
        """Those of these ids, of which there is no row, that retention took away."""
        if not ids:
            return set()
        return {row[0] for row in await self.execute("retired_among", ids=list(ids))}

    async def facts(self, ids: Collection[int]) -> dict[int, Fact]:
        """What is known of each of these messages."""
        return {row[0]: Fact(*row[1:]) for row in await self.execute("facts", ids=list(ids))}

    async def payloads(self, bodies: Mapping[int, int]) -> dict[int, tuple[Any, ...]]:
        """What is stored of these messages, as `load` takes it.

        For each message the row whose payload counts is given: its own, or that of its last replay.
        A message of which nothing is stored has None.
        """
        rows = await self.execute("payloads", ids=list(bodies), bodies=list(bodies.values()))
        return {row[0]: row for row in rows}

    async def row_writers(self, ids: Collection[int]) -> list[Leaf]:
        """The partitions of the outbox in which these rows would be, and their writers.

        Those are sessions that may be committing into them.
        """
        return [Leaf(*row) for row in await self.execute("row_writers", ids=list(ids))]

    async def registered(self, biz_types: Collection[str]) -> dict[str, bool]:
        """Whether each of these biz_types is retired; none for one that nobody ever registered."""
        return dict(await self.execute("biz_types_registered", biz_types=list(biz_types)))

    async def open_line(self, keys: Sequence[str], most: int) -> dict[int, int]:
        """The first so many open messages of each of these conversations, in their order.

        Each has the row whose payload counts.
        """
        given = orjson.dumps(list(keys)).decode()
        return dict(await self.execute("open_line", keys=given, most=most))

    async def open_rows(
        self, line: Mapping[int, int], but: Collection[int]
    ) -> list[tuple[Any, ...]]:
        """What is stored of these open messages; of those in `but` all except the payload."""
        if not line:
            return []
        bodies = [body for outbox_id, body in line.items() if outbox_id not in but]
        return await self.execute("open_rows", ids=list(line), bodies=bodies, bytes=OPEN_BYTES)

    async def settle(self) -> None:
        """Before the commit: forget what was stored of messages that are settled now."""
        if self.origin.settle is not None and self._reclaimed:
            await self.execute(self.origin.settle, ids=list(self._reclaimed))

    async def execute(self, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query."""
        with response_deadline(self._driver, self._seconds):
            async with self._driver.cursor() as cursor:
                await cursor.execute(self.origin.statement(name), self._complete(parameters))
                return await cursor.fetchall() if cursor.description else []

    async def _claimed(
        self, deliveries: Sequence[Delivery], *, checked: bool, before: Query | None = None
    ) -> tuple[Sequence[Delivery], list[tuple[Any, ...]]]:
        """Claim these messages: returns those that were new, and the rows of `before`."""
        queries = [before] if before else []
        if deliveries:
            parameters = {"checked": checked, **self.origin.claim(deliveries)}
            queries += _by_index("claim_all", parameters, probing=not checked)
        try:
            answers = await self._together(*queries) if queries else []
            rows = answers[0][1] if before else []
            if deliveries and not checked:
                self.probe_seconds = answers[-3][1][0][0]
            if not deliveries or answers[-2][0] == len(deliveries):
                return deliveries, rows
            return await self._claim_each(deliveries, checked=checked, known=False), rows
        except psycopg.errors.UniqueViolation as error:
            raise NotYetVisible(BOTH) from error

    async def _claim_each(
        self, deliveries: Sequence[Delivery], *, checked: bool, known: bool
    ) -> list[Delivery]:
        parameters = {"checked": checked, **self.origin.claim_each(deliveries, known)}
        rows = (await self._together(*_by_index("claim", parameters)))[1][1]
        claimed = {row[0] for row in rows}
        return (
            [delivery for delivery in deliveries if delivery.outbox_id in claimed]
            if claimed
            else []
        )

    async def _together(self, *queries: Query) -> list[tuple[int, list[tuple[Any, ...]]]]:
        """Run several named queries in one round trip.

        Gives how many rows each read or wrote, and which it gave back.
        """
        with response_deadline(self._driver, self._seconds):
            async with AsyncExitStack() as stack:
                cursors = [await stack.enter_async_context(self._driver.cursor()) for _ in queries]
                async with self._driver.pipeline():
                    for cursor, (name, parameters) in zip(cursors, queries, strict=True):
                        await cursor.execute(
                            self.origin.statement(name), self._complete(parameters)
                        )
                # Left first: while the server waits for the rest of a pipeline, no timeout of its
                # own frees the lock.
                return [
                    (cursor.rowcount, await cursor.fetchall() if cursor.description else [])
                    for cursor in cursors
                ]

    def _complete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {"topic": self.topic, "source": self.origin.source, **parameters}

    def _opening(self, arrivals: Fates, *, known: bool) -> Query:
        """The query that stores what is set aside on arrival.

        `known` when the records are their outbox rows'.
        """
        rows = [
            {
                "outbox_id": fate.outbox_id,
                "partition": delivery.partition,
                "offset": delivery.offset,
                "key": fate.key,
                "ms": delivery.time,
                "known": known,
                "status": fate.status,
                "open": fate.open,
                "error_code": fate.code,
                "error": fate.error,
                **self.origin.to_store(delivery),
            }
            for delivery, fate in arrivals
        ]
        ids = [fate.outbox_id for _, fate in arrivals]
        return "open", {"messages": orjson.dumps(rows).decode(), "ids": ids}


def _of(fates: Fates, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Delivery, SetAside]]:
    """Those whose ids the rows hold."""
    stored = {row[0] for row in rows}
    return [(delivery, fate) for delivery, fate in fates if fate.outbox_id in stored]


def _locking(partitions: Iterable[int]) -> Query:
    return "lock_partitions", {"partitions": sorted(partitions), "session": IN_A_RUN}


def _by_index(name: str, parameters: dict[str, Any], *, probing: bool = False) -> list[Query]:
    return [("probe" if probing else "by_index", {}), (name, parameters), ("as_planned", {})]


def _keys(deliveries: Iterable[Delivery]) -> dict[str, Any]:
    return {"keys": orjson.dumps(list({delivery.key for delivery in deliveries})).decode()}
