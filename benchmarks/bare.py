"""The limit: a confluent-kafka consumer without any framework, with the same statements.

`python -m benchmarks.bare THREADS`: 1 is the plain loop; more hand each partition's records to a
thread of its own, which is as far as one Python process goes.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local
from typing import Any

import psycopg
from confluent_kafka import Consumer

from benchmarks.persist import Record, statements

TOPIC = os.environ["BENCH_TOPIC"]
_thread = local()


def persist(partition: int, records: list[Record]) -> None:
    """One transaction on the thread's own connection."""
    if not hasattr(_thread, "connection"):
        _thread.connection = psycopg.connect(os.environ["DATABASE_URL"])
    for statement, parameters in statements(TOPIC, partition, records):
        _thread.connection.execute(statement, parameters)
    _thread.connection.commit()


def main(threads: int) -> None:
    """Consume until killed."""
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["BROKER_URL"],
            "group.id": os.environ["BENCH_GROUP"],
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([TOPIC])
    with ThreadPoolExecutor(threads) as pool:
        while True:
            by_partition: defaultdict[int, list[Record]] = defaultdict(list)
            for message in consumer.consume(1000 * threads, timeout=0.2):
                by_partition[message.partition() or 0].append(_record(message))
            work: list[Future[None]] = [
                pool.submit(persist, *batch) for batch in by_partition.items()
            ]
            for future in work:
                future.result()
            if by_partition:
                consumer.commit(asynchronous=True)


def _record(message: Any) -> Record:
    headers = message.headers()
    return Record(
        int(headers[0][1]),
        message.offset(),
        message.key().decode(),
        message.value(),
        message.timestamp()[1],
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
