"""Faust's Kafka driver, delivering runs: consecutive records of one partition as one Faust message.

Stock Faust creates four tasks a message and decides by offsets what may be committed.  Here one message is a Run, and the
ledger of its partition decides.  Every positioning of the consumer starts an epoch; records that were fetched across one are
never delivered, and a hole between two fetches is read again before it is believed.  What this leans on inside Faust is
listed and checked in tests/contract/test_faust_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, cast

from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import Message
from mode.utils.futures import notify

from streams.worker.fetch import FetchingConsumer
from streams.worker.ledger import Ledger, Run, split
from streams.worker.watch import Unread

logger = logging.getLogger(__name__)

IDLE_WAIT = 0.5  # seconds one fetch may wait for data: a rebalance waits for its end
HELD_WAIT = 0.05  # the same while some partitions are held back, so that they resume soon
BUSY_WAIT = 0.02  # seconds a broker may wait for data while anything is under way
LINGER = 0.005  # seconds that thin traffic may gather before the next fetch: each one costs the same, however little it brings
GOODBYE = 2.0  # seconds that the last commit may take
THIN = 100  # records of one fetch below which traffic is thin


class RunConsumer(FetchingConsumer):
    """Faust's consumer, handing out runs for the topics in `run_topics` and single records for every other."""

    run_topics: frozenset[str] = frozenset()
    run_records = 1000
    run_bytes = 4_000_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ledgers: defaultdict[TP, Ledger] = defaultdict(Ledger)
        self._epoch = 0
        self._expected: dict[TP, int] = {}
        self._reread: dict[TP, tuple[int, int, int]] = {}
        self._confirmed: dict[TP, int] = {}
        self._sought: dict[TP, int] = {}
        self._room = asyncio.Event()
        self._thin = self._busy = False
        self._suspect: set[TP] = set()
        self._unread = Unread()
        self._next_look = 0.0
        self._dirty = False  # something fetched was not delivered: position anew before the next fetch

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:  # noqa: ASYNC109 - Faust's own signature
        """Fetch once and yield what came: (partition, message), a message's value being a Run for run topics."""
        if await self.end_abandoned_fetch():
            self._dirty = True
        if self._dirty and self.flow_active:
            await self.perform_seek()
            await super()._read_again()
        await self._read_unread()
        await self._wait_for_room(timeout)
        if self._thin:
            await asyncio.sleep(LINGER)
        epoch = self._epoch
        self.set_broker_wait(IDLE_WAIT if self._idle else BUSY_WAIT)
        records, active = await self._wait_next_records(HELD_WAIT if self._buffered_partitions else IDLE_WAIT)
        self._busy = bool(records)
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
                self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
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

    def ack(self, message: Message) -> bool:
        """A run's transaction is committed; its ledger decides what that means for the offset."""
        run = message.value
        if not isinstance(run, Run):
            acked: bool = super().ack(message)
            return acked
        message.acked = run.acked = True
        self._unacked_messages.discard(message)
        self._acked[message.tp]  # lets Faust's commit look at this partition
        self._n_acked += 1
        notify(self._waiting_for_ack)
        return True

    async def perform_seek(self) -> None:
        """Position every partition at its committed offset; whatever was in flight will come again."""
        self._dirty = False  # before, not after: what is dropped while this waits may be from after the seek
        self._forget(self.assignment())
        await super().perform_seek()
        tps = [tp for tp in self.assignment() if tp.topic in self.run_topics]
        self._forget(tps)
        # Not Faust's own note of what is committed: it holds offsets whose commit failed.
        known = {tp: self._sought[tp] for tp in tps if (self._sought.get(tp) or -1) >= 0}
        unknown = [tp for tp in tps if tp not in known]
        for tp, offset in (await self.earliest_offsets(*unknown) if unknown else {}).items():
            # aiokafka leaves a partition without a committed offset where it was read to: that is no rewind.
            known[ensure_TP(tp)] = offset
            await self._seek(tp, offset)
        self._expected.update(known)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """The committed offset of every assigned partition, where it is positioned now."""
        sought: Mapping[TP, int] = await super().seek_to_committed()
        self._sought = {ensure_TP(tp): offset for tp, offset in sought.items()}
        return sought

    async def seek(self, partition: TP, offset: int) -> None:
        """Position one partition; whatever was in flight of it will come again."""
        self._forget([partition])
        await super().seek(partition, offset)
        self._expected[partition] = offset

    def resume_flow(self) -> None:
        """Fetch on.  Faust empties its agents' queues before that: what was delivered into them already comes again."""
        self._dirty |= any(not run.taken for ledger in self.ledgers.values() for run in ledger.in_flight)
        super().resume_flow()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """A rebalance takes these away: acks that still arrive for them count no more."""
        self._forget(revoked)
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """A rebalance gives these; Faust seeks to their committed offsets before the flow goes on."""
        self._forget(assigned)
        self._suspect |= {ensure_TP(tp) for tp in assigned}
        await super().on_partitions_assigned(assigned, generation_id)

    def confirmed(self, tp: TP) -> int | None:
        """The offset whose commit the broker confirmed since the partition was positioned."""
        return self._confirmed.get(ensure_TP(tp))

    def positions(self) -> dict[str, dict[int, dict[str, int | bool | None]]]:
        """Per topic and partition: offset delivered up to, persisted up to, committed up to, and whether it is held back."""
        found: dict[str, dict[int, dict[str, int | bool | None]]] = {}
        for tp in sorted(tp for tp in self.assignment() if tp.topic in self.run_topics):
            found.setdefault(tp.topic, {})[tp.partition] = {
                "delivered": self._expected.get(tp),
                "persisted": self.ledgers[tp].committable(),
                "committed": self._confirmed.get(tp),
                "in_flight": len(self.ledgers[tp].in_flight),
                "held_back": tp in self._buffered_partitions,
                "fetching": tp in self._get_active_partitions(),
            }
        return found

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

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic in self.run_topics:
            return self.ledgers[tp].committable()
        offset: int | None = super()._new_offset(tp)
        return offset

    def _should_commit(self, tp: TP, offset: int) -> bool:
        if tp.topic in self.run_topics:
            return offset > self._confirmed.get(tp, -1)
        wanted: bool = super()._should_commit(tp, offset)
        return wanted

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        # Faust notes an offset as committed even when the commit failed, and would never send it again.
        epoch = self._epoch
        done: bool = await super()._commit_offsets(offsets, start_new_transaction)
        if done and epoch == self._epoch:
            self._confirmed.update(offsets)
        return done

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # A run's message carries its last offset: what looks like a gap to Faust is the run.
        if tp.topic not in self.run_topics:
            await super()._add_gap(tp, offset_from, offset_to)

    def _forget(self, tps: Iterable[TP]) -> None:
        self._epoch += 1
        for tp in tps:
            self.ledgers[tp].reset()
            self._expected.pop(tp, None)
            self._confirmed.pop(tp, None)

    @property
    def _idle(self) -> bool:
        """Whether nothing came, nothing is in flight and nothing is held back."""
        return not (self._busy or self._buffered_partitions or any(one.in_flight for one in self.ledgers.values()))

    async def _read_unread(self) -> None:
        """The second net, whoever lost records: a log that goes on behind what was delivered is read again from there."""
        now = time.monotonic()
        if now < self._next_look or not self.flow_active:
            return
        self._next_look = now + 1
        for tp in self._get_active_partitions() & self._expected.keys():
            delivered = self._expected[tp]
            end = delivered if self.ledgers[tp].in_flight else self.end_of(tp)
            if self._unread.overdue(tp, delivered, end, now):
                where = {"topic": tp.topic, "partition": tp.partition, "offset": delivered, "end": end}
                logger.warning("nothing came of what a partition holds: it is read again", extra=where)
                await self._seek(tp, delivered)

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
        for run in split(tp.topic, tp.partition, found, self.run_records, self.run_bytes):
            message = self._to_message(tp, run.records[-1])
            message.key, message.value = None, cast("Any", run)
            run.suspect = tp in self._suspect
            self._suspect.discard(tp)
            self.ledgers[tp].open(run)
            self._expected[tp] = run.end
            yield message


class RunTransport(driver.Transport):
    """Faust's Kafka transport with a consumer that delivers runs."""

    Consumer = RunConsumer


def run_transport(topics: Iterable[str], records: int, size: int) -> type[RunTransport]:
    """A transport class whose consumer delivers `topics` as runs of at most `records` records and `size` bytes."""
    consumer = type(
        "Consumer", (RunConsumer,), {"run_topics": frozenset(topics), "run_records": records, "run_bytes": size}
    )
    return type("Transport", (RunTransport,), {"Consumer": consumer})
