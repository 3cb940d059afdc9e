"""The limit: a bare confluent-kafka producer whose records lie ready in memory, with the relay's settings."""

from __future__ import annotations

import time

from confluent_kafka import Producer

from streams.relay.rows import Header

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


def produce(broker: str, topic: str, rows: int, text: str) -> tuple[float, float]:
    """Records a second, and CPU microseconds a record; blocking, for a process of its own."""
    now = int(time.time() * 1000)
    records: list[tuple[bytes, bytes, list[Header]]] = []
    for number in range(rows):
        key = f"c{number % 2000}"
        value = f'{{"user_id":{number % 2000},"conversation_id":"{key}","role":"user","message":"{text}"}}'
        headers: list[Header] = [("id", b"%d" % number), KIND, ("traceparent", None), ("resend_of", None)]
        records.append((value.encode(), key.encode(), headers))
    producer = Producer({"bootstrap.servers": broker, **SETTINGS})
    producer.list_topics(topic, timeout=10)
    began, used = time.monotonic(), time.process_time()
    for number, (payload, name, headers) in enumerate(records):
        producer.produce(topic, payload, name, timestamp=now, headers=headers)
        if number % 500 == 0:
            producer.poll(0)
        # As much in flight as the relay allows itself.
        while len(producer) > 20_000:
            producer.poll(0.005)
    producer.flush()
    return rows / (time.monotonic() - began), (time.process_time() - used) / rows * 1e6
