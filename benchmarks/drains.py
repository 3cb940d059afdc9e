"""How fast a backlog is published: from the first record on the topic to the last."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import psycopg
from rich.console import Console

from benchmarks.arena import Arena, Contestant
from benchmarks.arrivals import PATIENCE, Ends
from benchmarks.bench import CHATS, PARTITIONS, payload
from benchmarks.cpu import cpu
from benchmarks.raw import produce
from streams.broker import kafka
from streams.settings import load

# By the server itself, from one message of each chat: writing the backlog is not what is measured.
FILL = """
DO $$
DECLARE payloads text[] := (SELECT array_agg(payload ORDER BY number) FROM payloads);
BEGIN
    SET synchronous_commit = off;
    FOR n IN 0 .. {rows} - 1 LOOP
        INSERT INTO outbox (biz_type, topic, key, payload)
        VALUES ('chat_history_persist', '{topic}', 'c' || n % {chats},
                payloads[1 + n % {chats}]::json);
        IF (n + 1) % {size} = 0 THEN COMMIT; END IF;
    END LOOP;
END $$
"""
LEADERS = (
    "SELECT count(DISTINCT pid) FROM (SELECT pid, heartbeat FROM relay_position UNION"
    " SELECT pid, heartbeat FROM relay_shards) AS leaders"
    " WHERE heartbeat > now() - interval '3 seconds'"
)
console = Console(highlight=False, width=max(120, Console().width))


class Drain(NamedTuple):
    """Rows a second, and CPU microseconds a row of relay, PostgreSQL and broker."""

    rate: float
    relay: float
    postgres: float
    broker: float


async def drain(arena: Arena, contestant: Contestant, rows: int, size: int) -> Drain:
    """A backlog in transactions of `size` rows first, then the relay.

    0: one transaction that ends when all relays wait.
    """
    async with arena.world(contestant) as environ:
        with psycopg.connect(environ["DATABASE_URL"], autocommit=size > 0) as backlog:
            await asyncio.to_thread(_fill, backlog, environ["BENCH_TOPIC"], rows, size or rows + 1)
            ends = Ends(arena.broker.url, environ["BENCH_TOPIC"], PARTITIONS)
            async with arena.publishing(contestant, environ) as relays:
                if not size:
                    await _waiting(environ["DATABASE_URL"], contestant.processes)
                    backlog.commit()
                programs = (relays, [arena.postgres.pid], [arena.broker.pid])
                first = await _reached(ends, 1)
                began, before = time.monotonic(), [cpu(each) for each in programs]
                last = await _reached(ends, rows)
                seconds, after = time.monotonic() - began, [cpu(each) for each in programs]
    if last != rows:
        raise RuntimeError(f"{contestant.name} sent {last:,} records for {rows:,} rows")
    micros = [
        (late - early) / (rows - first) * 1e6 for early, late in zip(before, after, strict=True)
    ]
    result = Drain((rows - first) / seconds, *micros)
    cost = (
        f"CPU us/row: relay {result.relay:.1f}, PostgreSQL {result.postgres:.1f},"
        f" broker {result.broker:.1f}"
    )
    console.print(
        f"{contestant.name:>25} {size or 'all':>4} rows/transaction {result.rate:9,.0f} rows/s "
        f" {cost}"
    )
    return result


async def raw(arena: Arena, rows: int) -> Drain:
    """The bare producer."""
    arena.contests += 1
    topic = f"raw-{arena.contests}"
    kafka.prepare_topics(load(environ=arena.environ("raw", "raw")), [topic])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        before = cpu([arena.broker.pid])
        rate, micros = await asyncio.wrap_future(
            pool.submit(produce, arena.broker.url, topic, rows)
        )
        broker = (cpu([arena.broker.pid]) - before) / rows * 1e6
    console.print(
        f"{'bare producer':>25} {'':>21} {rate:9,.0f} rows/s  CPU us/row: {micros:.1f}, broker"
        f" {broker:.1f}"
    )
    return Drain(rate, micros, 0, broker)


def _fill(connection: psycopg.Connection[Any], topic: str, rows: int, size: int) -> None:
    connection.execute("CREATE TEMP TABLE payloads (number int, payload text)")
    with connection.cursor() as cursor, cursor.copy("COPY payloads FROM STDIN") as copy:
        for number in range(CHATS):
            copy.write_row((number, payload(number)))
    connection.execute(FILL.format(rows=rows, size=size, topic=topic, chats=CHATS).encode())
    connection.execute("ANALYZE outbox")


async def _reached(ends: Ends, count: int) -> int:
    """How many records there are, once there are as many as that."""
    deadline = time.monotonic() + PATIENCE
    while (arrived := await asyncio.to_thread(ends.count)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {arrived} of {count} records within {PATIENCE} seconds")
        await asyncio.sleep(0.02)
    return arrived


async def _waiting(url: str, relays: int) -> None:
    """As many relays lead."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while await (await connection.execute(LEADERS)).fetchone() != (relays,):
            await asyncio.sleep(0.1)
