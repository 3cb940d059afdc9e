"""The consumer's thread, where aiokafka lives: it reads what is committed, of this topic only."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import aiokafka.client
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.broker.topics import is_of, metadata

logger = logging.getLogger(__name__)

# aiokafka asks for topics by name, and a broker may make what it is asked for, with as many
# partitions as it likes.
aiokafka.client.MetadataRequest = partial(MetadataRequest, allow_auto_topic_creation=False)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's thread with aiokafka's consumer in it.

    It reads what was committed only, and commits offsets with the id of the topic they are of:
    those of another topic, which had the name before, are none.
    """

    consumer: Any

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
        await commit(
            {
                tp: OffsetAndMetadata(each.offset, named.get(tp.topic, ""))
                for tp, each in offsets.items()
            }
        )

    async def _seek_to_committed(self) -> dict[TP, int | None]:
        consumer, ids = self._ensure_consumer(), self.consumer.topic_ids
        tps = list(consumer._subscription.assigned_partitions())
        committed = await consumer._coordinator.fetch_committed_offsets(tps)
        offsets: dict[TP, int | None] = {}
        for tp in tps:
            offset, note = committed.get(tp, (-1, ""))
            if offset >= 0 and not is_of(note, ids.get(tp.topic)):
                where = {"topic": tp.topic, "partition": tp.partition, "committed": offset}
                logger.warning(
                    "the topic was made anew: it is read from its beginning", extra=where
                )
                offset = -1
            if offset > 0:
                consumer.seek(tp, offset)
            offsets[tp] = offset if offset >= 0 else None
        return offsets
