"""`make bench-relays`: outbox into Kafka by each relay, Debezium's real connector among them.

Prints ratios.

Every contestant finds the same backlog, in a database of its own on the same servers. Then rows
are written at a steady rate, and a consumer sees how old each record is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics

from rich.table import Table

from benchmarks.ages import RATE, ages, steady
from benchmarks.arena import Arena, Contestant
from benchmarks.bench import PARTITIONS, on_servers
from benchmarks.drains import Drain, console, drain, raw
from benchmarks.wal import statuses
from streams.dev.connect import ConnectWorker

CDC = Contestant("cdc", "cdc")
POLL = Contestant("poll", "poll")
DEBEZIUM = Contestant("Debezium", "debezium")
# Java compiles what it has run often: what a Connect worker does first is a figure of its own.
COLD = Contestant("Debezium, just started", "debezium")
SHARED = Contestant("poll, 4 shards, 2 relays", "poll", {"STREAMS_RELAY__SHARDS": "4"}, processes=2)
WOKEN = Contestant(
    "poll, woken", "poll", {"STREAMS_RELAY__NOTIFY": "true", "STREAMS_RELAY__POLL_INTERVAL": "1"}
)

# Rows of a transaction; 0: all of them.
CONTESTS = [(each, size) for size in (1, 100) for each in (CDC, POLL, DEBEZIUM)] + [
    (POLL, 0),
    (SHARED, 0),
]
SLOW = 20


async def rates(arena: Arena, rows: int, rounds: int) -> None:
    """Every contestant in every round.

    What the machine does meanwhile meets all of them.
    """
    drains = {(COLD.name, 100): [await drain(arena, COLD, rows, 100)]}
    for _ in range(rounds):
        drains.setdefault(("bare producer", -1), []).append(await raw(arena, rows))
        for contestant, size in CONTESTS:
            drains.setdefault((contestant.name, size), []).append(
                await drain(arena, contestant, rows, size)
            )
    middle = {
        key: Drain(*map(statistics.median, zip(*each, strict=True))) for key, each in drains.items()
    }
    table = Table(title=f"{rows:,} rows, {PARTITIONS} partitions, {os.cpu_count()} cores")
    columns = ("to Debezium: warm", "just started", "CPU us/row: relay", "PostgreSQL", "broker")
    for column in ("", "rows a transaction", "rows/s", *columns):
        table.add_column(column, justify="right" if column else "left")
    for (name, size), drained in middle.items():
        others = [middle.get((each.name, size)) for each in (DEBEZIUM, COLD)]
        ratios = [f"{drained.rate / other.rate:.1f}" if other else "" for other in others]
        costs = (f"{drained.relay:.1f}", f"{drained.postgres:.1f}", f"{drained.broker:.1f}")
        table.add_row(
            name, {0: "all", -1: ""}.get(size, str(size)), f"{drained.rate:,.0f}", *ratios, *costs
        )
    console.print(table)
    console.print(
        "targets: cdc at least 3.0, poll at least 2.0 of Debezium with 100 rows a transaction"
    )


async def latencies(arena: Arena, seconds: int) -> None:
    """Ages of records at two rates, and cores that are taken meanwhile."""
    table = Table(title=f"commit to topic, {seconds} s each")
    for column in (
        "",
        "rows/s",
        "p50 ms",
        "p99 ms",
        "cores: relay",
        "PostgreSQL",
        "WAL bytes/message",
    ):
        table.add_column(column, justify="right" if column else "left")
    for rate in (RATE, SLOW):
        for contestant in (CDC, POLL, WOKEN, DEBEZIUM):
            measured = await ages(arena, contestant, rate, seconds)
            costs = (f"{measured.relay:.2f}", f"{measured.postgres:.2f}", f"{measured.wal:.0f}")
            table.add_row(
                contestant.name, f"{rate:,}", f"{measured.p50:.1f}", f"{measured.p99:.1f}", *costs
            )
    console.print(table)


async def log_sizes(arena: Arena, seconds: int) -> None:
    """WAL bytes a message when nobody publishes, and of keeping a status."""
    table = Table(title="WAL bytes a message")
    table.add_column("")
    table.add_column("", justify="right")
    async with arena.world(POLL) as environ:
        table.add_row("enqueue", f"{await steady(environ['DATABASE_URL'], RATE * seconds):.0f}")
        for name, size in (
            await asyncio.to_thread(statuses, environ["DATABASE_URL"], RATE * seconds)
        ).items():
            table.add_row(name, f"{size:.0f}")
    console.print(table)


async def main(rows: int, rounds: int, seconds: int) -> None:
    """Everything, one after the other, on servers of its own."""
    async with (
        on_servers(rows) as bench,
        ConnectWorker(bench.directory / "connect", bench.broker) as connect,
    ):
        arena = Arena(bench.postgres, bench.broker, bench.directory, rows, connect=connect)
        await rates(arena, rows, rounds)
        await latencies(arena, seconds)
        await log_sizes(arena, seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relays", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=int, default=10, help="how long rows are written at a steady rate"
    )
    options = parser.parse_args()
    asyncio.run(main(options.rows, options.rounds, options.seconds))
