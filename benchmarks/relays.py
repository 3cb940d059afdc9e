"""`make bench-relays`: outbox into Kafka by each relay, Debezium's real connector among them; prints ratios.

Every contestant finds the same backlog, in a database of its own on the same servers, and is measured from its first to its
last record on the topic.  Then rows are written at a steady rate, and a consumer sees how old each record is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import psycopg
from rich.console import Console
from rich.table import Table

from benchmarks.__main__ import PARTITIONS, TEXT, WRITERS, write
from benchmarks.arena import Arena, Contestant
from benchmarks.arrivals import PATIENCE, Ends, waits
from benchmarks.cpu import cpu
from benchmarks.raw import produce
from benchmarks.wal import statuses, written
from streams import kafka
from streams.dev.connect import ConnectWorker
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.settings import load

RATE = 1000
SIZES = (1, 100)
CDC = Contestant("cdc", "cdc")
POLL = Contestant("poll", "poll")
DEBEZIUM = Contestant("Debezium", "debezium")
COLD = Contestant("Debezium, just started", "debezium")
# Committed by the server itself: writing the backlog is not what is measured.
FILL = """
DO $$ BEGIN
    SET synchronous_commit = off;
    FOR n IN 1 .. {rows} LOOP
        INSERT INTO outbox (biz_type, topic, key, payload)
        VALUES ('chat_history_persist', '{topic}', 'c' || n % 2000, format(
            '{{"user_id":%s,"conversation_id":"c%s","role":"user","message":"{text}"}}', n % 2000, n % 2000)::json);
        IF n % {size} = 0 THEN COMMIT; END IF;
    END LOOP;
END $$
"""
console = Console(highlight=False, width=max(120, Console().width))


class Drain(NamedTuple):
    """How a backlog was published: rows a second, and CPU microseconds a row of relay, PostgreSQL and broker."""

    rate: float
    relay: float
    postgres: float
    broker: float


def fill(url: str, topic: str, rows: int, size: int) -> None:
    """A backlog in transactions of `size` rows."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(FILL.format(rows=rows, size=size, topic=topic, text=TEXT.strip()).encode())
        connection.execute("ANALYZE outbox")


async def reached(ends: Ends, count: int) -> int:
    """How many records there are, once there are as many as that."""
    deadline = time.monotonic() + PATIENCE
    while (found := await asyncio.to_thread(ends.count)) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"only {found} of {count} records within {PATIENCE} seconds")
        await asyncio.sleep(0.02)
    return found


async def drain(arena: Arena, contestant: Contestant, rows: int, size: int) -> Drain:
    """The backlog first, then the relay."""
    async with arena.world(contestant) as environ:
        await asyncio.to_thread(fill, environ["DATABASE_URL"], environ["BENCH_TOPIC"], rows, size)
        ends = Ends(arena.broker.url, environ["BENCH_TOPIC"], PARTITIONS)
        async with arena.publishing(contestant, environ) as relays:
            programs = (relays, [arena.postgres.pid], [arena.broker.pid])
            first = await reached(ends, 1)
            began, before = time.monotonic(), [cpu(each) for each in programs]
            last = await reached(ends, rows)
            seconds, after = time.monotonic() - began, [cpu(each) for each in programs]
    if last != rows:
        raise RuntimeError(f"{contestant.name} sent {last:,} records for {rows:,} rows")
    micros = [(late - early) / (rows - first) * 1e6 for early, late in zip(before, after, strict=True)]
    found = Drain((rows - first) / seconds, *micros)
    cost = f"CPU us/row: relay {found.relay:.1f}, PostgreSQL {found.postgres:.1f}, broker {found.broker:.1f}"
    console.print(f"{contestant.name:>22} {size:>4} rows/transaction {found.rate:9,.0f} rows/s  {cost}")
    return found


async def raw(arena: Arena, rows: int) -> Drain:
    """The bare producer."""
    arena.contests += 1
    topic = f"raw-{arena.contests}"
    kafka.prepare_topics(load(environ=arena.environ("raw", "raw")), [topic])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        before = cpu([arena.broker.pid])
        rate, micros = await asyncio.wrap_future(pool.submit(produce, arena.broker.url, topic, rows, TEXT.strip()))
        broker = (cpu([arena.broker.pid]) - before) / rows * 1e6
    console.print(f"{'bare producer':>22} {'':>21} {rate:9,.0f} rows/s  CPU us/row: {micros:.1f}, broker {broker:.1f}")
    return Drain(rate, micros, 0, broker)


async def steady(url: str, count: int) -> float:
    """This many messages at RATE, one transaction each, from several connections; returns WAL bytes a message."""
    with psycopg.connect(url, autocommit=True) as connection:
        before, begin = written(connection), time.monotonic()
        async with asyncio.TaskGroup() as writers:
            for first in range(WRITERS):
                writers.create_task(write(url, range(first, count, WRITERS), begin, RATE))
        return (written(connection) - before) / count


async def ages(arena: Arena, contestant: Contestant, seconds: int) -> tuple[float, float, float]:
    """p50 and p99 of the records' ages in ms at a steady rate, the first second left out; WAL bytes a message."""
    count = RATE * seconds
    async with arena.world(contestant) as environ, arena.publishing(contestant, environ):
        where = (arena.broker.url, environ["BENCH_TOPIC"], PARTITIONS)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            # When the first message has gone through, nothing starts any more.
            await write(environ["DATABASE_URL"], range(1), time.monotonic(), RATE)
            await asyncio.wrap_future(pool.submit(waits, *where, 1))
            arriving = asyncio.wrap_future(pool.submit(waits, *where, count + 1))
            wal = await steady(environ["DATABASE_URL"], count)
            cuts = statistics.quantiles((await arriving)[1 + RATE :], n=100)
    console.print(f"{contestant.name:>22} p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, WAL {wal:.0f} bytes a message")
    return cuts[49], cuts[98], wal


async def unread(arena: Arena, seconds: int) -> tuple[float, dict[str, float]]:
    """WAL bytes a message when nobody publishes, and of keeping a status."""
    async with arena.world(POLL) as environ:
        wal = await steady(environ["DATABASE_URL"], RATE * seconds)
        return wal, await asyncio.to_thread(statuses, environ["DATABASE_URL"], RATE * seconds)


def report_rates(rows: int, found: dict[tuple[str, int], list[Drain]]) -> None:
    """Medians, and ratios to Debezium."""
    middle = {key: Drain(*map(statistics.median, zip(*rounds, strict=True))) for key, rounds in found.items()}
    table = Table(title=f"{rows:,} rows, {PARTITIONS} partitions, {os.cpu_count()} cores")
    for column in ("", "rows a transaction", "rows/s", "to Debezium", "CPU us/row: relay", "PostgreSQL", "broker"):
        table.add_column(column, justify="right" if column else "left")
    for (name, size), drained in middle.items():
        other = middle.get((DEBEZIUM.name, size))
        ratio = f"{drained.rate / other.rate:.1f}" if other else ""
        costs = (f"{drained.relay:.1f}", f"{drained.postgres:.1f}", f"{drained.broker:.1f}")
        table.add_row(name, str(size or ""), f"{drained.rate:,.0f}", ratio, *costs)
    console.print(table)
    console.print("targets: cdc at least 3.0, poll at least 2.0 of Debezium")


async def main(rows: int, rounds: int, seconds: int) -> None:
    """Everything, one after the other, on servers of its own."""
    with tempfile.TemporaryDirectory(prefix="outbox-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        async with (
            PostgresServer(directory / "postgres") as postgres,
            KafkaBroker(directory / "kafka") as broker,
            ConnectWorker(directory / "connect", broker) as connect,
        ):
            arena = Arena(postgres, broker, directory, rows, connect=connect)
            await rates(arena, (CDC, POLL, DEBEZIUM), rows, rounds)
            await latencies(arena, (CDC, POLL, DEBEZIUM), seconds)


async def rates(arena: Arena, contestants: Sequence[Contestant], rows: int, rounds: int) -> None:
    """Every contestant in every round, so that what the machine does meanwhile meets all of them."""
    # Java compiles what it has run often: what a Connect worker does first is a figure of its own.
    found = {(COLD.name, 100): [await drain(arena, COLD, rows, 100)]}
    for _ in range(rounds):
        found.setdefault(("bare producer", 0), []).append(await raw(arena, rows))
        for size in SIZES:
            for contestant in contestants:
                drained = await drain(arena, contestant, rows, size)
                found.setdefault((contestant.name, size), []).append(drained)
    report_rates(rows, found)


async def latencies(arena: Arena, contestants: Sequence[Contestant], seconds: int) -> None:
    """Ages of records, and WAL, at a steady rate."""
    without, status = await unread(arena, seconds)
    table = Table(title=f"{RATE:,} rows/s for {seconds} s: commit to topic, WAL bytes a message")
    for column in ("", "p50 ms", "p99 ms", "WAL of enqueue and relay", "of which relay"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("nobody publishes", "", "", f"{without:.0f}", "")
    for contestant in contestants:
        p50, p99, wal = await ages(arena, contestant, seconds)
        table.add_row(contestant.name, f"{p50:.1f}", f"{p99:.1f}", f"{wal:.0f}", f"{max(0, wal - without):.0f}")
    for name, size in status.items():
        table.add_row(f"+ {name}", "", "", "", f"{size:.0f}")
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relays", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10, help="how long rows are written at a steady rate")
    options = parser.parse_args()
    asyncio.run(main(options.rows, options.rounds, options.seconds))
