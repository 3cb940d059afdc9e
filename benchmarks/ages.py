"""How old records are when a consumer has them, and what that costs.

Rows are written at a steady rate meanwhile.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import psycopg

from benchmarks.arena import Arena, Contestant
from benchmarks.arrivals import waits
from benchmarks.bench import PARTITIONS
from benchmarks.cpu import cpu
from benchmarks.drains import console
from benchmarks.latency import WRITERS, write
from benchmarks.wal import written
from streams.groups import TaskGroup

RATE = 1000


class Ages(NamedTuple):
    """Milliseconds from commit to consumer, and what that takes.

    Cores of relay and PostgreSQL, and WAL bytes for each message.
    """

    p50: float
    p99: float
    relay: float
    postgres: float
    wal: float


async def ages(arena: Arena, contestant: Contestant, rate: int, seconds: int) -> Ages:
    """The first second does not count."""
    count = rate * seconds
    async with arena.world(contestant) as environ, arena.publishing(contestant, environ) as relays:
        where = (arena.broker.url, environ["BENCH_TOPIC"], PARTITIONS)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            # When the first message has gone through, nothing starts any more.
            await write(environ["DATABASE_URL"], range(1), time.monotonic(), rate)
            await asyncio.wrap_future(pool.submit(waits, *where, 1))
            arriving = asyncio.wrap_future(pool.submit(waits, *where, count + 1))
            programs = (relays, [arena.postgres.pid])
            began, before = time.monotonic(), [cpu(each) for each in programs]
            wal = await steady(environ["DATABASE_URL"], count, rate)
            took, after = time.monotonic() - began, [cpu(each) for each in programs]
            cuts = statistics.quantiles((await arriving)[1 + rate :], n=100)
    relay, postgresql = [(late - early) / took for early, late in zip(before, after, strict=True)]
    measured = Ages(cuts[49], cuts[98], relay, postgresql, wal)
    console.print(
        f"{contestant.name:>25} {rate:>5} rows/s  p50 {measured.p50:.1f} ms,"
        f" p99 {measured.p99:.1f} ms"
    )
    return measured


async def steady(url: str, count: int, rate: int = RATE) -> float:
    """This many messages, one transaction each, from several connections.

    Returns WAL bytes a message.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        before, begin = written(connection), time.monotonic()
        async with TaskGroup() as writers:
            for first in range(WRITERS):
                writers.create_task(write(url, range(first, count, WRITERS), begin, rate))
        return (written(connection) - before) / count
