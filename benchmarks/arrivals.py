"""What arrives on a topic: how much, when, and how long after its row was written."""

from __future__ import annotations

import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

PATIENCE = 180.0


class Ends:
    """How many records a topic of one broker holds."""

    def __init__(self, broker: str, topic: str, partitions: int) -> None:
        self._admin = AdminClient({"bootstrap.servers": broker, "log_level": 0})
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        self._asked = {TopicPartition(topic, number): latest for number in range(partitions)}
        # The first answer takes long: where the topic is has to be found out.
        self.count()

    def count(self) -> int:
        """The sum of all ends; blocking, one request."""
        while True:
            offsets = self._admin.list_offsets(self._asked, request_timeout=5)
            try:
                return sum(each.result().offset for each in offsets.values())
            except KafkaException as error:
                # A topic that was just made.
                if error.args[0].code() not in (
                    KafkaError.NOT_LEADER_FOR_PARTITION,
                    KafkaError.UNKNOWN_TOPIC_OR_PART,
                ):
                    raise
                time.sleep(0.1)


def waits(broker: str, topic: str, partitions: int, records: int) -> list[float]:
    """Milliseconds from `created_at` to a consumer's hands, in the order of arrival.

    Blocking, for a process of its own.

    `created_at`, the record's time, is PostgreSQL's clock just before the commit; it is the clock
    of this machine too.
    """
    consumer = Consumer(
        {"bootstrap.servers": broker, "group.id": "waits", "enable.auto.commit": False}
    )
    consumer.assign(
        [TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)]
    )
    seconds: list[float] = []
    deadline = time.monotonic() + PATIENCE
    while len(seconds) < records:
        # Asked for many, it would wait for many.
        batch = consumer.consume(1, timeout=0.1)
        now = time.time() * 1000
        batch += consumer.consume(500, timeout=0)
        for message in batch:
            if (error := message.error()) is not None:
                raise KafkaException(error)
            seconds.append(now - message.timestamp()[1])
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"only {len(seconds)} of {records} records arrived within {PATIENCE} seconds"
            )
    consumer.close()
    return seconds
