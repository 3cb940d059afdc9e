"""Fetching from the consumer's thread, where aiokafka lives: how long the broker waits, and a fetch that its waiter gave up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import Any

import aiokafka.client
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.broker.topics import is_of, metadata
from streams.worker.driver import undecodable

logger = logging.getLogger(__name__)

AGAIN = 1.0  # seconds until a partition that could not be read on is tried again


# aiokafka asks for topics by name, and a broker may make what it is asked for, with as many partitions as it likes.
aiokafka.client.MetadataRequest = partial(MetadataRequest, allow_auto_topic_creation=False)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's thread with aiokafka's consumer in it.

    It reads what was committed only, and commits offsets with the id of the topic they are of: those of another topic, which
    had the name before, are none.
    """

    consumer: FetchingConsumer

    async def seek_to_committed(self) -> Mapping[TP, Any]:
        """Seek partitions to their committed offsets; None for one without."""
        offsets: Mapping[TP, int | None] = await self.call_thread(self._seek_to_committed)
        return offsets

    def _create_worker_consumer(self, transport: Any) -> Any:
        # Faust reads what was never committed, unless it writes transactions itself.
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer.commit = partial(self._commit_with_ids, consumer.commit)
        return consumer

    async def _commit_with_ids(self, commit: Any, offsets: Mapping[Any, OffsetAndMetadata]) -> None:
        ids = self.consumer.topic_ids
        named = {topic: metadata(topic_id) for topic, topic_id in ids.items()}
        await commit({tp: OffsetAndMetadata(each.offset, named.get(tp.topic, "")) for tp, each in offsets.items()})

    async def _seek_to_committed(self) -> dict[TP, int | None]:
        consumer, ids = self._ensure_consumer(), self.consumer.topic_ids
        tps = list(consumer._subscription.assigned_partitions())
        committed = await consumer._coordinator.fetch_committed_offsets(tps)
        offsets: dict[TP, int | None] = {}
        for tp in tps:
            offset, note = committed.get(tp, (-1, ""))
            if offset >= 0 and not is_of(note, ids.get(tp.topic)):
                where = {"topic": tp.topic, "partition": tp.partition, "committed": offset}
                logger.warning("the topic was made anew: it is read from its beginning", extra=where)
                offset = -1
            if offset > 0:
                consumer.seek(tp, offset)
            offsets[tp] = offset if offset >= 0 else None
        return offsets


class FetchingConsumer(driver.Consumer):
    """Faust's consumer, with what it does not say of its thread.  `topic_ids` are Kafka's ids of its topics."""

    topic_ids: Mapping[str, str] = MappingProxyType({})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fetch: asyncio.Future[Any] | None = None  # under way, or abandoned
        self._changelogs: dict[TP, int] = {}  # up to where each was delivered since Faust positioned it

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def in_touch(self) -> bool:
        """Whether Kafka has answered this member of the group within its session's timeout: only then can it commit."""
        consumer = self._thread._consumer
        if consumer is None or consumer._coordinator.coordinator_id is None:
            return False
        # Where packets vanish a request waits for its time limit, which is longer, and the coordinator is not given up.
        heard = max((one._last_action for one in list(consumer._client._conns.values())), default=0.0)
        return time.monotonic() - heard < float(self.app.conf.broker_session_timeout)

    def has_lost(self, brokers: Collection[str]) -> bool:
        """Whether Kafka does not answer here, and none of these brokers (`host:port`), which are there, is known here."""
        consumer = self._thread._consumer
        if consumer is None or self.in_touch():
            return False
        return {f"{each.host}:{each.port}" for each in consumer._client.cluster.brokers()}.isdisjoint(brokers)

    def end_of(self, tp: TP) -> int:
        """The end of what may be read of the partition, as the last fetch saw it; 0 while there was none.

        What an open transaction wrote, and everything behind it, is not there yet.
        """
        state = self._state(tp)
        return 0 if state is None else max(state.lso or 0, 0)

    def position_of(self, tp: TP) -> int | None:
        """Up to where aiokafka has given what the partition holds, transaction markers included; None while unknown."""
        state = self._state(tp)
        return None if state is None else state._position

    def _state(self, tp: TP) -> Any:
        """What aiokafka knows of an assigned partition, in its thread; None when it was taken away in this moment."""
        consumer = self._thread._consumer
        subscription = None if consumer is None else consumer._subscription.subscription
        assignment = None if subscription is None else subscription.assignment
        return None if assignment is None else assignment.state_value(tp)

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Let Faust say that a partition stands still, unless that is being positioned anew.

        Faust asks for a position that is not there then, in a task whose errors end the worker.
        """
        if self.position_of(tp) is None:
            return
        # Or from now on, in the consumer's thread.
        with suppress(AssertionError, AttributeError):
            super().verify_event_path(now, tp)

    def set_broker_wait(self, seconds: float) -> None:
        """How long the broker may keep a request for partitions that have nothing.

        aiokafka has one request a broker under way.  While some partitions have records that nobody took yet, it asks for the
        others only; if those are empty, everything waits for that answer: 1.5 seconds, if Faust had its way.
        """
        if (consumer := self._thread._consumer) is not None:
            consumer._fetcher._fetch_max_wait_ms = round(1000 * seconds)

    async def end_abandoned_fetch(self) -> bool:
        """Whether such a fetch took something, perhaps after the partitions were positioned anew."""
        if self._fetch is None:
            return False
        await asyncio.wait([self._fetch])
        ended, self._fetch = self._fetch, None
        return not ended.cancelled() and (ended.exception() is not None or bool(ended.result()))

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Position changelogs where the recovery of a table begins to read."""
        self._changelogs.update(partitions)
        await super().seek_wait(partitions)

    async def _read_again(self) -> None:
        """What was fetched and not delivered comes again."""
        await self._read_changelogs_again()

    async def _read_changelogs_again(self) -> None:
        """The same of the changelogs alone: nobody commits their offsets, and recovery waits for what they hold."""
        assigned = self.assignment()
        for tp in [tp for tp in self._changelogs if tp in assigned]:
            await self._seek(tp, self._changelogs[tp])

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's own signature
        # A rebalance cancels who waits for a fetch; the fetch goes on in the consumer's thread, and takes what comes.
        self._fetch = asyncio.ensure_future(super()._getmany(active_partitions, timeout))
        try:
            found = await asyncio.shield(self._fetch)
        except UnicodeDecodeError:
            if (found := await self._read_on()) is None:
                raise
        self._fetch = None
        return found

    async def _read_on(self) -> dict[TP, Any] | None:
        """What a fetch would have brought of a partition that aiokafka cannot go on decoding; None when there is none."""
        try:
            found: dict[TP, Any] = await self._thread.call_thread(undecodable.read_on, self._thread._consumer)
        except KafkaError as error:
            # A broker that went away or leads no more: the next fetch breaks off here again, and is read on then.
            logger.warning("a partition cannot be read on now", extra={"error": type(error).__name__})
            await asyncio.sleep(AGAIN)
            found = {}
        else:
            if not found:
                return None
        await self._read_again()  # what the fetch had taken of others is dropped
        assigned = self.assignment()
        for tp, records in found.items():
            if tp in assigned:
                await self._seek(tp, records[-1].offset + 1)
        return found
