"""The limit: a bare confluent-kafka producer whose records lie ready in memory.

It has the relay's settings.
"""

from __future__ import annotations

import time

from confluent_kafka import Producer

from benchmarks.bench import CHATS, payload
from streams.relay.source.rows import Header

KIND: Header = ("biz_type", b"chat_history_persist")
SETTINGS = {
    "acks": "all",
    "enable.idempotence": True,
    "partitioner": "murmur2_random",
    "compression.type": "lz4",
    "linger.ms": 5,
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 200_000,
}


def produce(broker: str, topic: str, rows: int) -> tuple[float, float]:
    """Records a second, and CPU microseconds a record; blocking, for a process of its own."""
    now = int(time.time() * 1000)
    records: list[tuple[bytes, bytes, list[Header]]] = []
    for number in range(rows):
        headers: list[Header] = [
            ("id", b"%d" % number),
            KIND,
            ("traceparent", None),
            ("resend_of", None),
        ]
        records.append((payload(number % CHATS).encode(), b"c%d" % (number % CHATS), headers))
    producer = Producer({"bootstrap.servers": broker, **SETTINGS})
    producer.list_topics(topic, timeout=10)
    began, used = time.monotonic(), time.process_time()
    for number, (value, key, headers) in enumerate(records):
        producer.produce(topic, value, key, timestamp=now, headers=headers)
        if number % 500 == 0:
            producer.poll(0)
        # As much in flight as the relay allows itself.
        while len(producer) > 20_000:
            producer.poll(0.005)
    producer.flush()
    return rows / (time.monotonic() - began), (time.process_time() - used) / rows * 1e6
