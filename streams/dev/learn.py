"""Run a broker once, so that the JVMs of later ones start at half the price: `learned.py`."""

from __future__ import annotations

import asyncio
import fcntl
import tempfile
from pathlib import Path

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from streams.dev.downloads import resolve_in_thread
from streams.dev.kafka import KAFKA, KafkaBroker
from streams.dev.learned import can_learn, file_of


async def learn() -> Path | None:
    """Run a broker once and keep what its JVM learnt, unless that is there or cannot be.

    It takes some ten seconds of CPU. One process at a time does it; others return at once.
    """
    if not can_learn():
        return None
    file = file_of(await resolve_in_thread(KAFKA))
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if file.is_file():
            return file
        with tempfile.TemporaryDirectory(prefix="outbox-learn-", dir=file.parent) as folder:
            draft = Path(folder) / file.name
            broker = KafkaBroker(Path(folder) / "broker", learn=draft)
            await broker.start()
            await asyncio.to_thread(_use, broker.url)
            await broker.stop()
            if not draft.is_file():
                return None
            draft.rename(file)
    return file


def _use(url: str) -> None:
    """Write and read a little, so that what is needed for that is learnt too."""
    admin = AdminClient({"bootstrap.servers": url, "log_level": 0})
    for made in admin.create_topics([NewTopic("learn", 2, 1)]).values():
        made.result(30)
    producer = Producer({"bootstrap.servers": url, "enable.idempotence": True, "log_level": 0})
    for number in range(100):
        producer.produce("learn", b"value", str(number).encode())
    producer.flush(30)
    settings = {
        "bootstrap.servers": url,
        "group.id": "learn",
        "auto.offset.reset": "earliest",
        "log_level": 0,
    }
    consumer = Consumer(settings)
    consumer.subscribe(["learn"])
    try:
        if consumer.consume(100, timeout=20):
            consumer.commit(asynchronous=False)
    finally:
        consumer.close()


if __name__ == "__main__":
    asyncio.run(learn())
