"""Faust's consumer, delivering runs: it asks its progress what to do with what is fetched.

Stock Faust creates four tasks a message and decides by offsets what may be committed. Here one
message is a Run, and the ledger of its partition decides. Records that were fetched across a
positioning of the consumer are never delivered, and a hole between two fetches is read again before
it is believed. What this leans on inside Faust is listed and checked in
tests/contract/test_faust_contract.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, cast

from aiokafka.errors import KafkaError
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import Message
from mode.utils.futures import notify

from streams.worker.driver import undecodable
from streams.worker.driver.pace import Pace
from streams.worker.driver.progress import Fetched, Progress
from streams.worker.driver.runs import Run, split
from streams.worker.driver.suspicion import Owner
from streams.worker.driver.thread import ConsumerThread
from streams.worker.driver.unread import Unread

logger = logging.getLogger(__name__)

AGAIN = 1.0  # seconds until a partition that could not be read on is tried again
GOODBYE = 2.0  # seconds that the last commit may take


class RunConsumer(driver.Consumer):
    """Faust's consumer, handing out runs for the topics in `run_topics`.

    Every other topic comes as single records. `topic_ids` are Kafka's ids of its topics, `suspects`
    who has to know what becomes of its partitions.
    """

    run_topics: frozenset[str] = frozenset()
    run_records = 1000
    run_bytes = 4_000_000
    suspects: Owner | None = None
    topic_ids: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress = Progress()
        self._pace = Pace()
        self._fetch: asyncio.Future[Any] | None = None  # under way, or abandoned
        self._changelogs: dict[
            TP, int
        ] = {}  # up to where each was delivered since Faust positioned it
        self._sought: dict[TP, int] = {}
        self._dirty = (
            False  # something fetched was not delivered: position anew before the next fetch
        )
        self._room = asyncio.Event()
        self._unread = Unread()
        self._next_look = 0.0

    # A rebalance gives and takes partitions.

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Take what a rebalance gives.

        Faust seeks to the committed offsets before the flow goes on.
        """
        self.progress.forget(assigned)
        if self.suspects is not None:
            self.suspects.assigned(self._places(assigned))
        await super().on_partitions_assigned(assigned, generation_id)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """A rebalance takes these away: acks that still arrive for them count no more."""
        self.progress.forget(revoked)
        await super().on_partitions_revoked(revoked)
        if self.suspects is not None:
            await self.suspects.give_up(self._places(revoked))

    # Positioning: whatever was in flight will come again.

    async def perform_seek(self) -> None:
        """Position every partition at its committed offset."""
        self._dirty = (
            False  # before, not after: what is dropped while this waits may be from after the seek
        )
        self.progress.forget(self.assignment())
        await super().perform_seek()
        tps = [tp for tp in self.assignment() if tp.topic in self.run_topics]
        self.progress.forget(tps)
        # Not Faust's own note of what is committed: it holds offsets whose commit failed.
        known = {tp: self._sought[tp] for tp in tps if (self._sought.get(tp) or -1) >= 0}
        unknown = [tp for tp in tps if tp not in known]
        for tp, offset in (await self.earliest_offsets(*unknown) if unknown else {}).items():
            # aiokafka leaves a partition without a committed offset where it was read to: that is
            # no rewind.
            known[ensure_TP(tp)] = offset
            await self._seek(tp, offset)
        for tp, offset in known.items():
            self.progress[tp].expected = offset
            if tp in unknown and offset > 0:
                # Nobody ever read here, or so long ago that Kafka forgot how far.
                self.progress[tp].note_deleted((-1, offset))

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """The committed offset of every assigned partition, where it is positioned now."""
        sought: Mapping[TP, int] = await super().seek_to_committed()
        self._sought = {ensure_TP(tp): offset for tp, offset in sought.items()}
        return sought

    async def seek(self, partition: TP, offset: int) -> None:
        """Position one partition."""
        self.progress.forget([partition])
        await super().seek(partition, offset)
        self.progress[partition].expected = offset

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Position changelogs where the recovery of a table begins to read."""
        self._changelogs.update(partitions)
        await super().seek_wait(partitions)

    def resume_flow(self) -> None:
        """Fetch on.

        Faust empties its agents' queues before that: what was delivered into them already comes
        again.
        """
        self._dirty |= any(
            not run.taken
            for partition in self.progress.values()
            for run in partition.ledger.in_flight
        )
        super().resume_flow()

    def on_buffer_drop(self, tp: TP) -> None:
        """A partition that was held back may be fetched again."""
        super().on_buffer_drop(tp)
        self._room.set()

    # Fetching and delivering.

    # Faust's own signature
    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Message]]:  # noqa: ASYNC109
        """Fetch once and yield what came: (partition, message).

        A message's value is a Run for run topics.
        """
        if await self._end_abandoned_fetch():
            self._dirty = True
        if self._dirty and self.flow_active:
            await self.perform_seek()
            await self._read_changelogs_again()
        await self._read_unread()
        await self._wait_for_room(timeout)
        if self._pace.linger:
            await asyncio.sleep(self._pace.linger)
        epoch = self.progress.epoch
        self._set_broker_wait(self._pace.broker_wait(idle=self._idle))
        records, active = await self._wait_next_records(
            self._pace.fetch_wait(held_back=bool(self._buffered_partitions))
        )
        self._pace.fetched(
            0 if self.should_stop else sum(map(len, records.values())) if records else 0
        )
        if not records or self.should_stop:
            return
        if epoch != self.progress.epoch or not self.flow_active:
            # Fetched across a seek: these may be from before it, or from after it, and nothing
            # tells which.
            self._dirty = True
            return
        whole = False
        try:
            for key, fetched in records.items():
                tp = ensure_TP(key)
                if not await self._wanted(tp, fetched, active):
                    continue
                self.app.monitor.track_tp_end_offset(tp, self.end_of(tp))
                for message in self._messages(tp, fetched):
                    if epoch != self.progress.epoch or not self.flow_active:
                        return
                    yield tp, message
                    # When the flow stops, Faust gives up handing a message over.
                    if tp in self._changelogs and epoch == self.progress.epoch and self.flow_active:
                        self._changelogs[tp] = message.offset + 1
            whole = epoch == self.progress.epoch and self.flow_active
        finally:
            self._dirty |= not whole

    async def _wanted(self, tp: TP, fetched: list[Any], active: set[TP] | None) -> bool:
        """Whether to deliver what was fetched; what is not delivered now is fetched again."""
        first = fetched[0].offset
        if active is not None and tp not in active and tp not in self._buffered_partitions:
            await self._seek(tp, first)
            return False
        if tp.topic not in self.run_topics:
            return True
        partition, epoch = self.progress[tp], self.progress.epoch
        expected = partition.expected
        where = {"topic": tp.topic, "partition": tp.partition, "offset": first}
        if partition.came_again(first, epoch):
            logger.warning("records lost between broker and worker are read again", extra=where)
        match partition.judge(first, epoch):
            case Fetched.NEXT if expected is not None and first > expected:
                try:
                    partition.note_deleted(await self._deleted(tp, expected, first))
                except KafkaError:  # asked again with what is fetched again
                    await self._seek(tp, expected)
                    return False
            case Fetched.HOLE:
                await self._seek(tp, cast("int", expected))
                return False
            case Fetched.SHORTER:
                text = "Kafka lost the end of a partition: it is read again from where it begins"
                logger.error(text, extra={**where, "expected": expected})
                # Faust passes over what is before what it has read.
                self._read_offset[tp] = None
        return True

    async def _deleted(self, tp: TP, expected: int, first: int) -> tuple[int, int] | None:
        """The offsets of this hole that Kafka deleted; the others held transaction markers.

        Or they were compacted. Asked only where the log goes on behind what was expected.
        """
        begin = (await self.earliest_offsets(tp)).get(tp, 0)
        return (expected, min(begin, first)) if begin > expected else None

    def _messages(self, tp: TP, fetched: list[Any]) -> Iterable[Message]:
        if tp.topic not in self.run_topics:
            for record in fetched:
                yield self._to_message(tp, record)
            return
        suspicion = self.suspects.of(tp.topic, tp.partition) if self.suspects is not None else None
        if suspicion is not None:
            suspicion.delivered(max(self.end_of(tp), fetched[-1].offset + 1))
        for run in split(tp.topic, tp.partition, fetched, self.run_records, self.run_bytes):
            message = self._to_message(tp, run.records[-1])
            message.key, message.value = None, cast("Any", run)
            run.suspicion = suspicion
            self.progress[tp].deliver(run)
            yield message

    @property
    def _idle(self) -> bool:
        """Whether nothing came, nothing is in flight and nothing is held back."""
        if self._pace.busy or self._buffered_partitions:
            return False
        return not any(partition.ledger.in_flight for partition in self.progress.values())

    async def _wait_for_room(self, seconds: float) -> None:
        """Wait until a partition is not held back any more.

        Faust sleeps a whole second when all are; this wakes up with the first that is not.
        """
        if self.flow_active and self._buffered_partitions and not self._get_active_partitions():
            self._room.clear()
            # Not `wait_for`, which loses a cancellation in Python 3.11.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._room.wait()

    def _set_broker_wait(self, seconds: float) -> None:
        """How long the broker may keep a request for partitions that have nothing.

        aiokafka has one request a broker under way. While some partitions have records that nobody
        took yet, it asks for the others only; if those are empty, everything waits for that answer:
        1.5 seconds, if Faust had its way.
        """
        if (consumer := self._thread._consumer) is not None:
            consumer._fetcher._fetch_max_wait_ms = round(1000 * seconds)

    # What is fetched again: a fetch that was given up, one that broke off, a log that goes on
    # behind what came.

    # Faust's own signature
    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109
        # A rebalance cancels who waits for a fetch; the fetch goes on in the consumer's thread, and
        # takes what comes.
        self._fetch = asyncio.ensure_future(super()._getmany(active_partitions, timeout))
        try:
            fetched = await asyncio.shield(self._fetch)
        except UnicodeDecodeError:
            if (fetched := await self._read_on()) is None:
                raise
        self._fetch = None
        return fetched

    async def _end_abandoned_fetch(self) -> bool:
        """Whether an abandoned fetch took something.

        It may have done so after the partitions were positioned again.
        """
        if self._fetch is None:
            return False
        await asyncio.wait([self._fetch])
        ended, self._fetch = self._fetch, None
        return not ended.cancelled() and (ended.exception() is not None or bool(ended.result()))

    async def _read_on(self) -> dict[TP, Any] | None:
        """What a fetch would have brought of a partition that aiokafka cannot go on decoding.

        None when there is none.
        """
        try:
            read: dict[TP, Any] = await self._thread.call_thread(
                undecodable.read_on, self._thread._consumer
            )
        except KafkaError as error:
            # A broker that went away or leads no more: the next fetch breaks off here again, and is
            # read on then.
            logger.warning(
                "a partition cannot be read on now", extra={"error": type(error).__name__}
            )
            await asyncio.sleep(AGAIN)
            read = {}
        else:
            if not read:
                return None
        await self._read_again()  # what the fetch had taken of others is dropped
        assigned = self.assignment()
        for tp, records in read.items():
            if tp in assigned:
                await self._seek(tp, records[-1].offset + 1)
        return read

    async def _read_again(self) -> None:
        """What was fetched and not delivered comes again."""
        await self._read_changelogs_again()
        for tp in self.assignment() - self._changelogs.keys():
            delivered = self.progress[tp].expected
            if tp.topic not in self.run_topics and (last := self._read_offset.get(tp)) is not None:
                delivered = last + 1
            if delivered is not None:
                await self._seek(tp, delivered)

    async def _read_changelogs_again(self) -> None:
        """Fetch again what was fetched of changelogs.

        Nobody commits their offsets, and recovery waits for what they hold.
        """
        assigned = self.assignment()
        for tp in [tp for tp in self._changelogs if tp in assigned]:
            await self._seek(tp, self._changelogs[tp])

    async def _read_unread(self) -> None:
        """Read a log again that goes on behind what was delivered.

        This is the second net, whatever lost the records. Where nothing comes of it again, there
        are only transaction markers and what was aborted.
        """
        now = time.monotonic()
        if now < self._next_look or not self.flow_active:
            return
        self._next_look = now + 1
        epoch = self.progress.epoch
        for tp in self._get_active_partitions():
            if (
                epoch != self.progress.epoch
            ):  # a rebalance while one was positioned: what was delivered is nobody's now
                return
            partition, position = self.progress[tp], self.position_of(tp) or 0
            if (delivered := partition.expected) is None:
                continue
            if partition.came_to_nothing(position, epoch):
                try:
                    deleted = await self._deleted(tp, delivered, position)
                except KafkaError:  # asked again with the next look
                    continue
                if epoch != self.progress.epoch:
                    return
                partition.note_deleted(deleted)
                if partition.pass_over(position):
                    self._acked[tp]  # lets Faust's commit look at this partition
                if deleted is not None:
                    where = {"topic": tp.topic, "partition": tp.partition, "offset": delivered}
                    logger.warning(
                        "Kafka deleted records before they were read, nothing came after them yet",
                        extra={**where, "count": deleted[1] - delivered},
                    )
            elif not partition.ledger.in_flight and self._unread.overdue(
                tp, delivered, self.end_of(tp), now, read=position > delivered
            ):
                partition.read_again(epoch)
                await self._seek(tp, delivered)

    # Acks and commits.

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

    def _new_offset(self, tp: TP) -> int | None:
        if tp.topic in self.run_topics:
            return self.progress[tp].ledger.committable()
        offset: int | None = super()._new_offset(tp)
        return offset

    def _should_commit(self, tp: TP, offset: int) -> bool:
        if tp.topic in self.run_topics:
            confirmed = self.progress[tp].confirmed
            return confirmed is None or offset > confirmed
        wanted: bool = super()._should_commit(tp, offset)
        return wanted

    async def _commit_offsets(
        self, offsets: Mapping[TP, int], start_new_transaction: bool = True
    ) -> bool:
        # Faust notes an offset as committed even when the commit failed, and would never send it
        # again.
        epoch = self.progress.epoch
        done: bool = await super()._commit_offsets(offsets, start_new_transaction)
        if done and epoch == self.progress.epoch:
            for tp, offset in offsets.items():
                self.progress[tp].confirmed = offset
        return done

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        # A run's message carries its last offset: what looks like a gap to Faust is the run.
        if tp.topic not in self.run_topics:
            await super()._add_gap(tp, offset_from, offset_to)

    async def on_stop(self) -> None:
        """Commit a last time, if Kafka is there to take it, and soon.

        What is not committed comes again.
        """
        if self.in_touch():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE):
                    await super().on_stop()

    # What others ask.

    def in_touch(self) -> bool:
        """Whether Kafka has answered this member of the group in time: else it cannot commit.

        In time is within its session's timeout.
        """
        consumer = self._thread._consumer
        if consumer is None or consumer._coordinator.coordinator_id is None:
            return False
        # Where packets vanish a request waits for its time limit, which is longer, and the
        # coordinator is not given up.
        connections = list(consumer._client._conns.values())
        heard = max((connection._last_action for connection in connections), default=0.0)
        return time.monotonic() - heard < float(self.app.conf.broker_session_timeout)

    def has_lost(self, brokers: Collection[str]) -> bool:
        """Whether Kafka does not answer here, and its brokers have moved.

        That is when none of these brokers (`host:port`), which are there, is known here.
        """
        consumer = self._thread._consumer
        if consumer is None or self.in_touch():
            return False
        return {
            f"{each.host}:{each.port}" for each in consumer._client.cluster.brokers()
        }.isdisjoint(brokers)

    def end_of(self, tp: TP) -> int:
        """The end of what may be read of the partition, as the last fetch saw it.

        0 while there was none.

        What an open transaction wrote, and everything behind it, is not there yet.
        """
        state = self._state(tp)
        return 0 if state is None else max(state.lso or 0, 0)

    def position_of(self, tp: TP) -> int | None:
        """Up to where aiokafka has given what the partition holds, transaction markers included.

        None while unknown.
        """
        state = self._state(tp)
        return None if state is None else state._position

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Let Faust say that a partition stands still, unless that is being positioned again.

        Faust asks for a position that is not there then, in a task whose errors end the worker.
        """
        if self.position_of(tp) is None:
            return
        # Or from now on, in the consumer's thread.
        with contextlib.suppress(AssertionError, AttributeError):
            super().verify_event_path(now, tp)

    def positions(self) -> dict[str, dict[int, dict[str, int | bool | None]]]:
        """How far each partition of each topic is, and whether it is held back.

        Offset delivered up to, persisted up to, committed up to.
        """
        topics: dict[str, dict[int, dict[str, int | bool | None]]] = {}
        for tp in sorted(tp for tp in self.assignment() if tp.topic in self.run_topics):
            partition = self.progress[tp]
            topics.setdefault(tp.topic, {})[tp.partition] = {
                "delivered": partition.expected,
                "persisted": partition.ledger.committable(),
                "committed": partition.confirmed,
                "in_flight": len(partition.ledger.in_flight),
                "held_back": tp in self._buffered_partitions,
                "fetching": tp in self._get_active_partitions(),
            }
        return topics

    def _state(self, tp: TP) -> Any:
        """What aiokafka knows of an assigned partition, in its thread.

        None when it was taken away in this moment.
        """
        consumer = self._thread._consumer
        subscription = None if consumer is None else consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        return None if assignment is None else assignment.state_value(tp)

    def _places(self, tps: Iterable[TP]) -> list[tuple[str, int]]:
        return [(tp.topic, tp.partition) for tp in tps if tp.topic in self.run_topics]

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)
