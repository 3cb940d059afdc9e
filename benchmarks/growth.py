"""What a message costs in an old deployment beside a new one: `python -m benchmarks.growth`.

Each column of the table is a deployment of its own that has worked so many messages before, in so
many partitions of the outbox, of so many conversations, on a topic of so many partitions. Then a
backlog is drained (CPU time of worker, relay and PostgreSQL for each message), messages come at a
steady rate (latency), the rest is timed once, and the oldest range is taken away while others
enqueue. The last column is the last deployment by the first.

CPU time says more than the clock on a machine that others use too.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any, LiteralString, NamedTuple

import orjson
import psycopg
from rich.table import Table

from benchmarks.bench import (
    PATIENCE,
    Bench,
    console,
    database,
    drop,
    fill,
    on_servers,
    payload,
    settle,
)
from benchmarks.cpu import cpu
from benchmarks.crowd import drop_partitions
from benchmarks.latency import latency
from benchmarks.pages import ask
from streams.audit import audit
from streams.database import connect, migrate, partitions, sync_engine
from streams.database.retention import Periods, Retention, holding
from streams.groups import TaskGroup
from streams.registry import configured
from streams.relay.leader.sweep import Sweep
from streams.settings import Settings
from streams.settings import load as settings_of
from streams.web.site import Site

PORTION = 500_000
WRITERS = 4
SECONDS = 3.0  # of enqueueing without retention
PASSES = 3
LATER = 30  # days that what was worked before lies back
# As workers leave it: worked, with its effect, a month ago.
OLD: tuple[LiteralString, ...] = (
    """
    INSERT INTO outbox (biz_type, topic, key, payload, created_at)
    SELECT 'chat_history_persist', %(topic)s, 'c' || n %% %(chats)s,
           json_build_object('user_id', n %% %(chats)s, 'conversation_id', 'c' || n %% %(chats)s,
                             'role', 'user', 'message', texts[1 + n %% array_length(texts, 1)]),
           (now() - %(days)s * interval '1 day' + n * interval '1 ms') AT TIME ZONE 'UTC'
    FROM generate_series(%(first)s::bigint, %(last)s) AS n,
         (SELECT %(texts)s::text[] AS texts) AS t
    """,
    """
    INSERT INTO outbox_state (outbox_id, status, applied, updated_at)
    SELECT n, 'consumed', nextval('outbox_applied'), now() - %(days)s * interval '1 day'
    FROM generate_series(%(first)s::bigint, %(last)s) AS n
    """,
    """
    INSERT INTO chat_histories (source, outbox_id, user_id, chat_id, role, message_content,
                                created_at)
    SELECT '', id, (payload ->> 'user_id')::bigint, key, 'user', payload ->> 'message', created_at
    FROM outbox
    WHERE id BETWEEN %(first)s AND %(last)s
    ORDER BY id
    """,
)
TALLIES: LiteralString = """
INSERT INTO agent_chats (user_id, chat_id, message_count, last_message_at)
SELECT user_id, chat_id, count(*), max(created_at)
FROM chat_histories
GROUP BY 1, 2"""
SIZE: LiteralString = """
SELECT sum(pg_total_relation_size(inhrelid))::float8
FROM pg_inherits
WHERE inhparent IN ('outbox'::regclass, 'outbox_state'::regclass)"""


class Case(NamedTuple):
    """How much there was before: messages, partitions, conversations, partitions of the topic."""

    messages: int
    partitions: int
    conversations: int
    topic_partitions: int


class Figures(NamedTuple):
    """CPU microseconds a message of each process, milliseconds, seconds, bytes."""

    worker: float
    relay: float
    postgres: float
    p50: float
    p99: float
    audit: float
    sweep: float
    status: float
    dead: float
    retention: float
    size: float
    wal: float
    enqueue: float
    during: float


TITLES = (
    "worker us", "relay us", "PostgreSQL us", "p50 ms", "p99 ms", "audit s", "sweep ms",
    "status ms", "dead list ms", "retention s", "bytes/message", "WAL bytes",
    "enqueue p99 ms",
    "during retention",
)  # fmt: skip


async def measure(bench: Bench, case: Case, load: int, seconds: int) -> Figures:
    """One deployment, from its fill to the end of its oldest range."""
    name = f"growth_{case.messages}_{case.partitions}_{case.topic_partitions}"
    database(bench, name)
    environ = bench.environ(name, name) | {
        "STREAMS_BROKER__TOPIC_PREFIX": f"{name}.",
        "STREAMS_TOPIC__PARTITIONS": str(case.topic_partitions),
    }
    settings = settings_of(environ=environ)
    url, topic = settings.database_url, f"{name}.chat-history"
    list(migrate.migrate(settings, configured(settings)))
    grow_old(url, case, topic)
    settle(bench)
    fill(url, load, topic=topic, chats=case.conversations)
    worker = ("faust", "-A", "streams.app", "worker")
    async with (
        bench.running(environ, *worker) as consumer,
        bench.running(environ, "streams", "relay") as relay,
    ):
        programs = ([consumer.pid], [relay.pid], [bench.postgres.pid])
        micros = await drained(url, case.messages, load, programs)
        wal = wal_bytes(url)
        p50, p99 = await latency(url, 1000, seconds, warm=2)
        wal = (wal_bytes(url) - wal) / (1000 * (seconds + 2))
        status, dead = await pages(settings)
        audited = await asyncio.to_thread(time_audit, settings)
        swept = await time_sweep(settings)
        with psycopg.connect(url) as connection:
            [(size,)] = connection.execute(SIZE).fetchall()
        alone = await enqueueing(url, asyncio.sleep(SECONDS))
        begun = time.monotonic()
        during = await enqueueing(url, retain(url))
        retained = time.monotonic() - begun
    drop(bench, name)
    count = case.messages + load + 1000 * (seconds + 2)
    costs = (*micros, p50, p99, audited, swept, status, dead)
    return Figures._make((*costs, retained, size / count, wal, alone, during))


def grow_old(url: str, case: Case, topic: str) -> None:
    """So many messages were worked, in so many partitions, and a relay is past them."""
    engine = sync_engine(url)
    with engine.begin() as empty:
        drop_partitions(empty)
    width = max(1000, case.messages // max(1, case.partitions - 1))
    for done in range(0, case.partitions, 20):  # a few at a time: each takes locks
        with engine.begin() as some:
            ahead = width * min(done + 20, case.partitions) - 1
            partitions.ensure_sync(some, ahead=ahead, width=width)
    with engine.begin() as last:  # what is enqueued from now on
        partitions.ensure_sync(last, ahead=width * case.partitions + 2_000_000, width=2_000_000)
    engine.dispose()
    values = {
        "topic": topic,
        "chats": case.conversations,
        "days": LATER,
        "texts": [orjson.loads(payload(number))["message"] for number in range(500)],
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        for first in range(1, case.messages + 1, PORTION):
            last_id = min(first + PORTION - 1, case.messages)
            for statement in OLD:
                connection.execute(statement, values | {"first": first, "last": last_id})
        connection.execute(TALLIES)
        connection.execute(
            "INSERT INTO relay_position (name, mode, floor, identity)"
            " VALUES (%s, 'cdc', %s, outbox_identity())"
            " ON CONFLICT (name) DO UPDATE SET floor = excluded.floor",
            [url.rpartition("/")[2].partition("?")[0], case.messages],
        )
        connection.execute("VACUUM (ANALYZE)")


async def drained(
    url: str, before: int, rows: int, programs: Sequence[Sequence[int | None]]
) -> list[float]:
    """CPU microseconds of each program for a message, from the first persisted one to the last."""
    deadline = time.monotonic() + PATIENCE + rows / 1000
    with psycopg.connect(url, autocommit=True) as connection:
        first, spent = 0, [0.0]
        while time.monotonic() < deadline:
            [(done,)] = connection.execute("SELECT last_value FROM outbox_applied").fetchall()
            if done > before and not first:
                first, spent = done, [cpu(each) for each in programs]
            if done >= before + rows:
                count = before + rows - first
                pairs = zip(programs, spent, strict=True)
                return [(cpu(each) - early) / max(1, count) * 1e6 for each, early in pairs]
            await asyncio.sleep(0.05)
    raise TimeoutError(f"only {done - before} of {rows} messages were persisted")


def wal_bytes(url: str) -> float:
    """Bytes of log that the server has written so far."""
    with psycopg.connect(url) as connection:
        [(written,)] = connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::float8"
        ).fetchall()
    return float(written)


async def pages(settings: Settings) -> tuple[float, float]:
    """Milliseconds of the first page and of the dead list."""
    site, middles = Site(settings), []
    for address in ("/", "/dead/"):
        spent = []
        for _ in range(PASSES + 2):
            site.shared.renew()
            began = time.perf_counter()
            await ask(site, address)
            spent.append((time.perf_counter() - began) * 1000)
        middles.append(median(spent[2:]))  # the first ones open connections and read templates
    await site.close()
    return middles[0], middles[1]


def time_audit(settings: Settings) -> float:
    """Seconds of an audit of what is new, after a full one; raises when something is wrong."""
    registry, seconds = configured(settings), []
    for full in (True, False):
        with migrate.connection(settings) as connection:
            began = time.monotonic()
            report = audit(connection, settings, registry, full=full, grace=60.0, age=1e9)
            seconds.append(time.monotonic() - began)
            connection.commit()
            if report.wrong:
                raise RuntimeError(f"the audit finds {report.wrong}")
    return seconds[1]


async def time_sweep(settings: Settings) -> float:
    """Milliseconds of a round of the sweep, when it knows how far it is."""
    sweep, spent = Sweep(settings, configured(settings)), []
    async with await connect(settings.database_url) as connection:
        for _ in range(PASSES + 50):
            began = time.monotonic()
            await sweep.round(connection)
            spent.append((time.monotonic() - began) * 1000)
    return median(spent[-PASSES:])


async def retain(url: str) -> None:
    """Empty and drop the oldest range: all that a pass does with it."""
    session = await connect(url, session={"lock_timeout": "2s"})
    async with session as connection, holding(connection):
        async for step in Retention(connection, Periods(messages=1)).steps():
            if step.reason is not None:
                raise RuntimeError(f"retention waits: {step.reason}")
            return


async def enqueueing(url: str, meanwhile: Any) -> float:
    """p99 in milliseconds of enqueueing until that ends, each message a transaction."""
    ended, spent = asyncio.Event(), list[float]()

    async def write(writer: int) -> None:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            number = writer
            while not ended.is_set() or len(spent) < 100:
                began = time.perf_counter()
                given = [f"c{number % 1000}", payload(number, conversation_id=f"c{number % 1000}")]
                await connection.execute(
                    "SELECT outbox_enqueue('chat_history_persist', %s, %s::json)", given
                )
                spent.append((time.perf_counter() - began) * 1000)
                number += WRITERS
                await asyncio.sleep(0.01)

    async with TaskGroup() as writers:
        for writer in range(WRITERS):
            writers.create_task(write(writer))
        try:
            await meanwhile
        finally:
            ended.set()
    return quantiles(spent, n=100)[98]


def report(cases: Sequence[Case], figures: Sequence[Figures]) -> None:
    """The table, and the last deployment by the first."""
    load = f"{os.cpu_count()} cores, load {os.getloadavg()[1]:.1f} in the last five minutes"
    table = Table(title=load)
    table.add_column("messages\npartitions\nconversations\ntopic partitions")
    for case in cases:
        table.add_column("\n".join(f"{number:,}" for number in case), justify="right")
    if len(figures) > 1:
        table.add_column("last by first", justify="right")
    for title, *values in zip(TITLES, *figures, strict=True):
        compared = [f"{values[-1] / values[0]:.2f}"] if len(values) > 1 else []
        table.add_row(title, *map(_shown, values), *compared)
    console.print(table)
    for case, each in zip(cases, figures, strict=True):
        ratio = each.during / each.enqueue
        console.print(f"{case.messages:,}: enqueue's p99 during retention {ratio:.2f} of without")


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


async def main(cases: Sequence[Case], load: int, seconds: int) -> None:
    """One deployment after the other, on servers of their own."""
    async with on_servers(load) as bench:
        figures = []
        for case in cases:
            figures.append(await measure(bench, case, load, seconds))
            report([case], figures[-1:])
    report(cases, figures)


def _numbers(parser: argparse.ArgumentParser) -> Callable[[str], Case]:
    def case(text: str) -> Case:
        try:
            numbers = [int(number) for number in text.split(",")]
            if len(numbers) != 4 or min(numbers) < 1:
                raise ValueError
        except ValueError:
            parser.error(f"{text!r}: expected MESSAGES,PARTITIONS,CONVERSATIONS,TOPIC_PARTITIONS")
        return Case(*numbers)

    return case


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "cases",
        nargs="*",
        type=_numbers(parser),
        metavar="MESSAGES,PARTITIONS,CONVERSATIONS,TOPIC_PARTITIONS",
        default=[
            Case(1_000, 2, 1_000, 8),
            Case(300_000, 40, 30_000, 8),
            Case(1_000_000, 400, 100_000, 32),
        ],
        help="Deployments; to twenty million: 20000000,400,1000000,128.",
    )
    parser.add_argument("--load", type=int, default=50_000, help="Messages of the backlog.")
    parser.add_argument("--seconds", type=int, default=10, help="Of messages at a steady rate.")
    chosen = parser.parse_args()
    asyncio.run(main(chosen.cases, chosen.load, chosen.seconds))
