"""Enqueue to persisted at a steady rate, by the server's clock."""

from __future__ import annotations

import asyncio
import statistics
import time

import psycopg

from benchmarks.bench import CHATS, console, payload
from streams.groups import TaskGroup

WRITERS = 4


async def latency(
    url: str, rate: int = 1000, seconds: int = 20, warm: int = 10
) -> tuple[float, float]:
    """p50 and p99 in milliseconds from the outbox row's INSERT to the commit of its history row.

    Several connections write, as a business does; the rate they really reached is what is printed.
    The first `warm` seconds are printed apart: a broker that was drained in large pieces compiles
    its code for little ones meanwhile.
    """
    count = rate * (warm + seconds)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute(
            "CREATE TABLE seen (outbox_id bigint, at timestamptz);"
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO seen VALUES (NEW.outbox_id, clock_timestamp()); RETURN NULL; END $$;"
            "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON chat_histories DEFERRABLE INITIALLY"
            " DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION note()"
        )
        # What the drained rows left behind is not part of this measurement.
        await connection.execute("VACUUM ANALYZE")
        await connection.execute("CHECKPOINT")
        begin = time.monotonic()
        async with TaskGroup() as writers:
            for first in range(WRITERS):
                writers.create_task(write(url, range(first, count, WRITERS), begin, rate))
        reached = count / (time.monotonic() - begin)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            cursor = await connection.execute(
                "SELECT extract(epoch FROM at - created_at AT TIME ZONE 'UTC') * 1000"
                " FROM seen JOIN outbox ON id = outbox_id ORDER BY outbox_id"
            )
            waits = [float(row[0]) for row in await cursor.fetchall()]
            if len(waits) >= count:
                break
            await asyncio.sleep(0.2)
        else:
            raise TimeoutError(
                f"only {len(waits)} of {count} messages were persisted within 30 seconds"
            )
    spans = {"warming up": waits[rate : rate * warm], "latency": waits[rate * warm :]}
    for name, part in spans.items():
        cuts = statistics.quantiles(part, n=100)
        console.print(
            f"{name:>16} p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms at {reached:,.0f} messages/s"
        )
    return cuts[49], cuts[98]


async def write(url: str, numbers: range, begin: float, rate: int) -> None:
    """These messages, each at its time, one transaction each, on one connection."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for number in numbers:
            if (ahead := begin + number / rate - time.monotonic()) > 0:
                await asyncio.sleep(ahead)
            await connection.execute(
                "SELECT outbox_enqueue('chat_history_persist', %s, %s::json)",
                [f"c{number % CHATS}", payload(number)],
            )
