"""Faust's Kafka driver, delivering runs: consecutive records of one partition as one Faust message.

Stock Faust creates four tasks a message and decides by offsets what may be committed.  Here one message is a Run, and the
ledger of its partition decides.  Records that were fetched across a positioning of the consumer are never delivered, and a
hole between two fetches is read again before it is believed.  What this leans on inside Faust is listed and checked in
tests/contract/test_faust_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import Message

from streams.worker.driver.positions import PositionedConsumer
from streams.worker.driver.runs import split
from streams.worker.driver.suspicion import Owner
from streams.worker.driver.unread import Unread

logger = logging.getLogger(__name__)

IDLE_WAIT = 0.5  # seconds one fetch may wait for data: a rebalance waits for its end
HELD_WAIT = 0.003  # the same while some partitions are held back, so that they resume soon
HELD_MOST = 0.05  # and after several fetches in vain, each of which waits twice as long
BUSY_WAIT = 0.02  # seconds a broker may wait for data while anything is under way
LINGER = 0.005  # seconds that thin traffic may gather before the next fetch: each one costs the same, however little it brings
GOODBYE = 2.0  # seconds that the last commit may take
THIN = 100  # records of one fetch below which traffic is thin


class RunConsumer(PositionedConsumer):
    """Faust's consumer, handing out runs for the topics in `run_topics` and single records for every other."""

    run_records = 1000
    run_bytes = 4_000_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._room = asyncio.Event()
        self._reread: dict[TP, tuple[int, int, int]] = {}
        self._thin = self._busy = False
        self._in_vain = 0  # fetches since the last one that brought anything
        self._unread = Unread()
        self._reading_again: dict[TP, tuple[int, int]] = {}  # from which offset, and in which epoch
        self._next_look = 0.0

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:  # noqa: ASYNC109 - Faust's own signature
        """Fetch once and yield what came: (partition, message), a message's value being a Run for run topics."""
        if await self.end_abandoned_fetch():
            self._dirty = True
        if self._dirty and self.flow_active:
            await self.perform_seek()
            await self._read_changelogs_again()
        await self._read_unread()
        await self._wait_for_room(timeout)
        if self._thin:
            await asyncio.sleep(LINGER)
        epoch = self._epoch
        self.set_broker_wait(IDLE_WAIT if self._idle else BUSY_WAIT)
        held_wait = min(HELD_MOST, HELD_WAIT * 2 ** min(self._in_vain, 8))
        records, active = await self._wait_next_records(held_wait if self._buffered_partitions else IDLE_WAIT)
        self._busy = bool(records)
        self._in_vain = 0 if records else self._in_vain + 1
        if not records or self.should_stop:
            self._thin = False
            return
        self._thin = sum(len(found) for found in records.values()) < THIN
        if epoch != self._epoch or not self.flow_active:
            # Fetched across a seek: these may be from before it, or from after it, and nothing tells which.
            self._dirty = True
            return
        whole = False
        try:
            for key, found in records.items():
                tp = ensure_TP(key)
                if not await self._wanted(tp, found, active):
                    continue
                self.app.monitor.track_tp_end_offset(tp, self.end_of(tp))
                for message in self._messages(tp, found):
                    if epoch != self._epoch or not self.flow_active:
                        return
                    yield tp, message
                    # When the flow stops, Faust gives up handing a message over.
                    if tp in self._changelogs and epoch == self._epoch and self.flow_active:
                        self._changelogs[tp] = message.offset + 1
            whole = epoch == self._epoch and self.flow_active
        finally:
            self._dirty |= not whole

    async def on_stop(self) -> None:
        """The last commit, if Kafka is there to take it, and soon: what is not committed comes again."""
        if self.in_touch():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await super().on_stop()

    def on_buffer_drop(self, tp: TP) -> None:
        """A partition that was held back may be fetched again."""
        super().on_buffer_drop(tp)
        self._room.set()

    @property
    def _idle(self) -> bool:
        """Whether nothing came, nothing is in flight and nothing is held back."""
        return not (self._busy or self._buffered_partitions or any(one.in_flight for one in self.ledgers.values()))

    async def _read_unread(self) -> None:
        """The second net, whoever lost records: a log that goes on behind what was delivered is read again from there.

        Where nothing comes of it again, there are only transaction markers and what was aborted.
        """
        now = time.monotonic()
        if now < self._next_look or not self.flow_active:
            return
        self._next_look = now + 1
        epoch = self._epoch
        for tp in self._get_active_partitions() & self._expected.keys():
            if epoch != self._epoch:  # a rebalance while one was positioned: what was delivered is nobody's now
                return
            delivered, position = self._expected[tp], self.position_of(tp) or 0
            if self.ledgers[tp].in_flight:
                self._reading_again.pop(tp, None)
            elif self._reading_again.get(tp) == (delivered, self._epoch) and position > delivered:
                self._pass_over(tp, position)
            elif self._unread.overdue(tp, delivered, self.end_of(tp), now, read=position > delivered):
                self._reading_again[tp] = (delivered, self._epoch)
                await self._seek(tp, delivered)

    def _pass_over(self, tp: TP, position: int) -> None:
        """Nothing between what was delivered and this position is a record: it is done, and no lag."""
        del self._reading_again[tp]
        self._expected[tp] = position
        self.ledgers[tp].pass_over(position)
        self._acked[tp]  # lets Faust's commit look at this partition

    async def _read_again(self) -> None:
        await super()._read_again()
        for tp in self.assignment() - self._changelogs.keys():
            delivered = self._expected.get(tp)
            if tp.topic not in self.run_topics and (last := self._read_offset.get(tp)) is not None:
                delivered = last + 1
            if delivered is not None:
                await self._seek(tp, delivered)

    async def _wait_for_room(self, seconds: float) -> None:
        """Faust sleeps a whole second when every partition is held back; this wakes up with the first that is not."""
        if self.flow_active and self._buffered_partitions and not self._get_active_partitions():
            self._room.clear()
            try:
                await asyncio.wait_for(self._room.wait(), seconds)
            except TimeoutError:
                return

    async def _wanted(self, tp: TP, found: list[Any], active: set[TP] | None) -> bool:
        """Whether to deliver what was fetched; what is not delivered now is fetched again."""
        if active is not None and tp not in active and tp not in self._buffered_partitions:
            await self._seek(tp, found[0].offset)
            return False
        if tp.topic not in self.run_topics:
            return True
        expected, first = self._expected.get(tp), found[0].offset
        if self._reading_again.pop(tp, None) == (expected, self._epoch) and first == expected:
            where = {"topic": tp.topic, "partition": tp.partition, "offset": first}
            logger.warning("nothing came of what a partition holds: it is read again", extra=where)
        hole = (expected or 0, first, self._epoch)
        if expected is not None and first != expected and self._reread.get(tp) != hole:
            # Compaction, retention and transaction markers leave holes that stay; a race with a seek does not.  What was
            # seen in another epoch proves nothing: the same fetch may have been dropped again.
            self._reread[tp] = hole
            await self._seek(tp, expected)
            return False
        if expected is not None and first < expected:
            self._believe_shorter(tp, first, expected)
        return True

    def _believe_shorter(self, tp: TP, first: int, expected: int) -> None:
        """The log ends before what was read of it: it lost its tail, and what is written there now are other records."""
        where = {"topic": tp.topic, "partition": tp.partition, "offset": first, "expected": expected}
        logger.error("Kafka lost the end of a partition: it is read again from where it begins", extra=where)
        # Faust passes over what is before what it has read, and commits nothing below what it has committed.
        self._read_offset[tp] = None
        self._confirmed.pop(tp, None)
        # What is in flight is still persisted, but its offsets are of the log that is gone.
        self.ledgers[tp].detach()

    def _messages(self, tp: TP, found: list[Any]) -> Iterable[Message]:
        if tp.topic not in self.run_topics:
            for record in found:
                yield self._to_message(tp, record)
            return
        suspicion = self.suspects.of(tp.topic, tp.partition) if self.suspects is not None else None
        if suspicion is not None:
            suspicion.delivered(max(self.end_of(tp), found[-1].offset + 1))
        for run in split(tp.topic, tp.partition, found, self.run_records, self.run_bytes):
            message = self._to_message(tp, run.records[-1])
            message.key, message.value = None, cast("Any", run)
            run.suspicion = suspicion
            self.ledgers[tp].open(run)
            self._expected[tp] = run.end
            yield message


class RunTransport(driver.Transport):
    """Faust's Kafka transport with a consumer that delivers runs."""

    Consumer = RunConsumer


def run_transport(
    topics: Iterable[str],
    records: int,
    size: int,
    suspects: Owner | None = None,
    topic_ids: Mapping[str, str] = MappingProxyType({}),
) -> type[RunTransport]:
    """A transport class whose consumer delivers `topics` as runs of at most `records` records and `size` bytes."""
    limits = {"run_topics": frozenset(topics), "run_records": records, "run_bytes": size, "suspects": suspects}
    consumer = type("Consumer", (RunConsumer,), limits | {"topic_ids": topic_ids})
    return type("Transport", (RunTransport,), {"Consumer": consumer})
