"""When each waiting conversation is to be woken: by Faust's tables, made true by PostgreSQL.

A wake-up call is a record on the topic's retry topic, keyed by conversation: it reaches the owner
of the partition, and what it finds due there is PostgreSQL's to say. So a call too many, or one
that is lost, costs nothing but time.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Collection, Iterable
from typing import Any

from streams.worker.retries.tables import AsideTables
from streams.worker.run.persister import Persister
from streams.worker.set_aside import SetAside

logger = logging.getLogger(__name__)

TICK = 0.1  # seconds between two looks at what is due
# Seconds between two comparisons with PostgreSQL; an operator's act is followed by one at once
RECONCILE = 30.0
AGAIN = 2.0  # the same after one that failed
SELDOM = 30  # of so many comparisons that fail one after another, one is reported
# After a second call that changed nothing of what it woke; doubled each time.
FIRST_PAUSE = 2 * TICK
CALLS = 1000  # wake-up calls in one tick: what an outage has left behind returns in portions
DEAD_SHOWN = 1000  # dead letters of a worker's partitions that its table shows, the newest


class Schedule:
    """What is due when, of one topic's conversations in the partitions this worker owns."""

    def __init__(self) -> None:
        self._due: dict[tuple[int, str], float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._unmoved: dict[tuple[int, str], tuple[tuple[Any, ...], int]] = {}

    def put(self, partition: int, key: str, due: float | None) -> None:
        """Wake this conversation at `due` (epoch seconds); None: not before somebody asks again."""
        if due is None:
            self._due.pop((partition, key), None)
        elif self._due.get((partition, key)) != due:
            self._due[partition, key] = due
            heapq.heappush(self._heap, (due, partition, key))

    def put_woken(self, partition: int, key: str, head: SetAside | None, now: float) -> None:
        """The same for a conversation that was just woken, by what it waits for now, if anything.

        A head that is due and stays as it is, call after call, is one that nobody can take: it is
        woken more and more seldom, until a comparison with PostgreSQL does as much.
        """
        where, due = (partition, key), None if head is None else head.due
        if head is None or due is None or due > now:
            self._unmoved.pop(where, None)
        else:
            state = (head.outbox_id, head.status, head.attempts)
            before, calls = self._unmoved.get(where, (None, 0))
            calls = calls + 1 if before == state else 0
            self._unmoved[where] = state, calls
            if calls:
                due = now + min(RECONCILE, FIRST_PAUSE * 2.0 ** min(calls - 1, 16))
        self.put(partition, key, due)

    def take(self, now: float, most: int) -> list[tuple[int, str]]:
        """Take out (partition, conversation) of at most so many that are due, earliest first.

        They are not due any more afterwards.
        """
        due_now: list[tuple[int, str]] = []
        while self._heap and self._heap[0][0] <= now and len(due_now) < most:
            due, partition, key = heapq.heappop(self._heap)
            if self._due.get((partition, key)) == due:
                del self._due[partition, key]
                due_now.append((partition, key))
        return due_now

    def keep(self, partitions: Iterable[int]) -> None:
        """Forget every other partition: another worker has it."""
        mine = set(partitions)
        self._due = {where: due for where, due in self._due.items() if where[0] in mine}
        self._unmoved = {where: seen for where, seen in self._unmoved.items() if where[0] in mine}
        self._heap = [(due, *where) for where, due in self._due.items()]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._due)


class Scheduler:
    """Sends wake-up calls for one topic, and compares its schedule and tables with PostgreSQL."""

    def __init__(
        self,
        app: Any,
        topic: str,
        retry_topic: Any,
        tables: AsideTables,
        persister: Persister,
        schedule: Schedule,
    ) -> None:
        self._app, self._topic, self._retry_topic = app, topic, retry_topic
        self._tables, self._persister, self._schedule = tables, persister, schedule
        self._mine: frozenset[int] = frozenset()
        self._compared = 0.0
        self._missed = self._act = 0

    async def run(self) -> None:
        """Compare until the worker stops.

        An error is logged, and the next comparison makes up for what was missed.
        """
        while not self._app.should_stop:
            try:
                await self._tick()
            except Exception as error:  # whatever it was: retries must not end with it
                self._compared = time.monotonic() - RECONCILE + AGAIN
                if self._missed % SELDOM == 0:
                    logger.warning(
                        "schedule not compared",
                        extra={"topic": self._topic, "error": type(error).__name__},
                    )
                self._missed += 1
            await asyncio.sleep(TICK)

    async def _tick(self) -> None:
        if self._app.rebalancing or not self._app.tables.recovery.completed.is_set():
            return
        mine = frozenset(
            tp.partition for tp in self._app.consumer.assignment() if tp.topic == self._topic
        )
        if mine != self._mine:
            self._schedule.keep(mine)
            for partition, key, due in self._tables.waiting(mine - self._mine):
                self._schedule.put(partition, key, due)
            self._mine, self._compared = mine, 0.0
        act = self._persister.database.newest_act
        if mine and (time.monotonic() - self._compared >= RECONCILE or act != self._act):
            self._compared, self._act = time.monotonic(), act
            await self._reconcile(sorted(mine))
            self._missed = 0
        for partition, key in self._schedule.take(self._persister.database.now(), CALLS):
            await self._wake(partition, key)

    async def _reconcile(self, mine: list[int]) -> None:
        heads = {
            (head.partition, head.key): head
            for head in await self._persister.all_heads(self._topic, mine)
        }
        for where, head in heads.items():
            self._schedule.put(*where, head.due)
        dead = await self._persister.dead_letters(self._topic, mine, DEAD_SHOWN)
        gone = self._tables.dead_ids(mine)
        gone -= await self._persister.still_dead(self._topic, sorted(gone)) if gone else set()
        for partition, key in self._tables.differing(mine, heads, dead, gone):
            await self._wake(partition, key)

    async def _wake(self, partition: int, key: str) -> None:
        async with asyncio.timeout(5.0):
            await self._retry_topic.send(key=key.encode(), value=b"", partition=partition)


def noted(
    schedule: Schedule,
    heads: Iterable[SetAside],
    keys: Collection[tuple[int, str]],
    now: float,
) -> None:
    """Put what these conversations, just woken, wait for; one without a head waits for nothing.

    A head may be in another partition, where another system's producer spreads a conversation: its
    owner is woken.
    """
    by_place = {(head.partition, head.key): head for head in heads}
    for where in keys:
        schedule.put_woken(*where, by_place.get(where), now)
    for where in by_place.keys() - set(keys):
        schedule.put(*where, by_place[where].due)
