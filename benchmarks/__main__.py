"""`make bench`: every contestant drains the same topic into a fresh database.

Prints ratios, writes nothing but the table.

The contestants take turns, several rounds, each round beginning with another one: who comes first
meets cold caches.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections import defaultdict
from statistics import median

from rich.table import Table

from benchmarks.bench import (
    PARTITIONS,
    Bench,
    Drain,
    console,
    database,
    drained,
    drop,
    fill,
    on_servers,
    publish,
    settle,
)
from benchmarks.latency import latency
from streams.broker import kafka
from streams.database import migrate
from streams.registry import configured
from streams.settings import load

CONTESTANTS = {
    "ours": ("faust", "-A", "streams.app", "worker"),
    "stock": ("faust", "-A", "benchmarks.stock", "worker", "-l", "warn"),
    "bare": ("python", "-m", "benchmarks.bare", "1"),
    "bare, 4 threads": ("python", "-m", "benchmarks.bare", "4"),
}


async def contest(bench: Bench, rounds: int) -> dict[str, list[Drain]]:
    """Each contestant drains the topic once a round."""
    drains: defaultdict[str, list[Drain]] = defaultdict(list)
    names = list(CONTESTANTS)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            place = f"round_{turn}_{names.index(name)}"
            database(bench, place, "filled")
            settle(bench)
            environ = bench.environ(place, place)
            async with bench.running(environ, *CONTESTANTS[name]) as process:
                drains[name].append(await drained(environ["DATABASE_URL"], bench.rows, [process]))
            show(name, drains[name][-1])
            drop(bench, place)
    return drains


async def pipeline(bench: Bench, rounds: int) -> tuple[list[Drain], tuple[float, float]]:
    """Rows wait in the outbox; relay and worker start.

    From the first persisted message to the last; then latency.
    """
    rates = []
    for turn in range(rounds):
        name = f"pipeline_{turn}"
        database(bench, name)
        environ = bench.environ(name, name) | {"STREAMS_BROKER__TOPIC_PREFIX": f"{name}."}
        settings = load(environ=environ)
        list(migrate.migrate(settings, configured(settings)))
        fill(environ["DATABASE_URL"], bench.rows, topic=f"{name}.chat-history")
        settle(bench)
        worker = bench.running(environ, *CONTESTANTS["ours"])
        async with worker as consumer, bench.running(environ, "streams", "relay") as relay:
            rates.append(await drained(environ["DATABASE_URL"], bench.rows, [consumer, relay]))
            show("pipeline", rates[-1])
            if turn + 1 == rounds:
                times = await latency(environ["DATABASE_URL"])
    return rates, times


def show(name: str, drain: Drain) -> None:
    """One line a measurement."""
    memory, cpu = (
        ", ".join(f"{one:.0f}" for one in drain.memory),
        ", ".join(f"{one:.0f}" for one in drain.cpu),
    )
    console.print(
        f"{name:>16} {drain.rate:9,.0f} messages/s  {memory:>8} MB  {cpu:>7} us CPU a message"
    )


def report(
    bench: Bench, found: dict[str, list[Drain]], drains: list[Drain], times: tuple[float, float]
) -> None:
    """The table of ratios, with the targets beside them.

    A ratio is the median of the rounds' ratios.
    """

    def ratio(other: str) -> float:
        return median(
            ours.rate / theirs.rate
            for ours, theirs in zip(found["ours"], found[other], strict=True)
        )

    table = Table(title=f"{bench.rows:,} messages, {PARTITIONS} partitions, {os.cpu_count()} cores")
    for column in ("what", "measured", "target"):
        table.add_column(column, justify="right" if column != "what" else "left")
    table.add_row("worker / stock take(1000)", f"{ratio('stock'):.1f}", ">= 4")
    table.add_row("worker / bare loop", f"{ratio('bare'):.2f}", ">= 0.7")
    table.add_row("worker / bare, 4 threads", f"{ratio('bare, 4 threads'):.2f}", "")
    table.add_row(
        "pipeline, messages/s", f"{median(drain.rate for drain in drains):,.0f}", ">= 30,000"
    )
    table.add_row("latency p50, ms", f"{times[0]:.0f}", "")
    table.add_row("latency p99, ms", f"{times[1]:.0f}", "< 100")
    every = [*found["ours"], *drains]
    table.add_row(
        "memory of the worker, MB", f"{max(drain.memory[0] for drain in every):.0f}", "< 200"
    )
    table.add_row(
        "memory of the relay, MB", f"{max(drain.memory[1] for drain in drains):.0f}", "< 150"
    )
    console.print(table)


async def main(rows: int, rounds: int) -> None:
    """Everything, one after the other, on servers of its own."""
    async with on_servers(rows) as bench:
        database(bench, "filled")
        settings = load(environ=bench.environ("filled", "bench") | {"STREAMS_RELAY__MODE": "poll"})
        list(migrate.migrate(settings, configured(settings)))
        kafka.prepare_topics(settings, ["chat-history"])
        fill(settings.database_url, rows)
        publish(bench, "filled")
        drains = await contest(bench, rounds)
        report(bench, drains, *await pipeline(bench, rounds))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(main(**vars(parser.parse_args())))
