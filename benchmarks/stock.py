"""The stock contestant: `stream.take(1000)` as Faust's documentation shows it.

It uses the same statements.
"""

from __future__ import annotations

import os
from typing import Any

import faust
import psycopg

from benchmarks.persist import Record, statements

TOPIC = os.environ["BENCH_TOPIC"]
app = faust.App(
    os.environ["BENCH_GROUP"],
    broker=f"kafka://{os.environ['BROKER_URL']}",
    consumer_auto_offset_reset="earliest",
    topic_allow_declare=False,
    topic_disable_leader=True,
    web_enabled=False,
    datadir=os.environ["BENCH_DIRECTORY"],
)
topic = app.topic(
    TOPIC, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
)


@app.agent(topic)
async def persist(stream: Any) -> None:
    """One transaction a batch, whatever partitions its messages came from."""
    async with await psycopg.AsyncConnection.connect(os.environ["DATABASE_URL"]) as connection:
        async for events in stream.take_events(1000, within=0.1):
            records = [_record(event) for event in events]
            for statement, parameters in statements(TOPIC, 0, records):
                await connection.execute(statement, parameters)
            await connection.commit()


def _record(event: Any) -> Record:
    message = event.message
    headers = dict(message.headers)
    return Record(
        int(headers["id"]),
        message.offset,
        message.key.decode(),
        message.value,
        int(message.timestamp * 1000),
    )
