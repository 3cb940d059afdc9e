"""What failing messages cost the others: `python -m benchmarks.fate`.

Ratios against a clean run on the same schema.

What refuses messages looks at good ones too: what that costs is no cost of failing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import psycopg
from rich.table import Table

from benchmarks.bench import (
    CHATS,
    PARTITIONS,
    Bench,
    console,
    database,
    drop,
    on_servers,
    payload,
    publish,
)
from benchmarks.cpu import cpu
from streams.broker import kafka
from streams.database import migrate
from streams.registry import configured
from streams.settings import load

# Named: the server quotes the row, and its outbox_id is found there. Unnamed: nothing tells which
# message it was.
NAMED = "ALTER TABLE chat_histories ADD CONSTRAINT no_poison CHECK (role <> 'poison')"
RAISE = (
    "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF NEW.role = 'poison' THEN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END IF;"
    " RETURN NEW; END $$;"
    "CREATE TRIGGER refuse BEFORE INSERT ON chat_histories FOR EACH ROW EXECUTE FUNCTION refuse()"
)
UNNAMED = RAISE.format(sqlstate="22000")
TRANSIENT = RAISE.format(sqlstate="P0001")


def fill(url: str, topic: str, rows: int, bad: Callable[[int, int], bool]) -> None:
    """Outbox rows of which those with `bad(number, conversation)` are poison."""
    copy_in = "COPY outbox (biz_type, topic, key, payload) FROM STDIN"
    with (
        psycopg.connect(url) as connection,
        connection.cursor() as cursor,
        cursor.copy(copy_in) as copy,
    ):
        for number in range(rows):
            chat = number % CHATS
            role = "poison" if bad(number, chat) else "user"
            copy.write_row(("chat_history_persist", topic, f"c{chat}", payload(number, role=role)))


def nothing(number: int, chat: int) -> bool:
    """No message is bad."""
    return False


class Drain(NamedTuple):
    """Messages a second, and CPU microseconds that PostgreSQL and the worker took for each."""

    rate: float
    micros: float


async def drained(url: str, rows: int, processes: Sequence[int | None]) -> Drain:
    """From the first message with a state to the last."""
    with psycopg.connect(url, autocommit=True) as connection:
        started, first, before, deadline = 0.0, 0, 0.0, time.monotonic() + 300
        while time.monotonic() < deadline:
            [(done,)] = connection.execute("SELECT count(*) FROM outbox_state")
            if done and not started:
                started, first, before = time.monotonic(), done, cpu(processes)
            if done >= rows:
                count = rows - first
                return Drain(
                    count / (time.monotonic() - started), (cpu(processes) - before) / count * 1e6
                )
            await asyncio.sleep(0.2)
    raise TimeoutError(f"only {done} of {rows} messages got a state within 300 seconds")


async def contest(bench: Bench, name: str, refuse: str, bad: Callable[[int, int], bool]) -> Drain:
    """How messages get their state, of a load with these bad ones."""
    database(bench, name)
    environ = bench.environ(name, name) | {
        "STREAMS_RELAY__MODE": "poll",
        "STREAMS_BROKER__TOPIC_PREFIX": f"{name}.",
    }
    settings = load(environ=environ)
    list(migrate.migrate(settings, configured(settings)))
    topic = f"{name}.chat-history"
    kafka.prepare_topics(settings, [topic])
    fill(settings.database_url, topic, bench.rows, bad)
    publish(bench, name, topic)
    with psycopg.connect(settings.database_url, autocommit=True) as connection:
        connection.execute(refuse.encode())
        connection.execute("CHECKPOINT")
    async with bench.running(
        environ, "faust", "-A", "streams.app", "worker", "-l", "error"
    ) as worker:
        result = await drained(settings.database_url, bench.rows, [bench.postgres.pid, worker.pid])
    console.print(
        f"{name:>20} {result.rate:9,.0f} messages/s, {result.micros:5.1f} us CPU a message"
    )
    drop(bench, name)
    return result


async def main(rows: int, rounds: int) -> None:
    """Each kind of bad, and before it the same without, on the same servers."""
    async with on_servers(rows) as bench:
        cases = [
            (
                "1 bad in 500, named by the error",
                ">= 0.6",
                "named",
                NAMED,
                lambda number, chat: number % 499 == 7,
            ),
            (
                "1 bad in 500, unnamed",
                ">= 0.6",
                "unnamed",
                UNNAMED,
                lambda number, chat: number % 499 == 7,
            ),
            (
                "10 bad in 500, unnamed",
                ">= 0.05",
                "many",
                UNNAMED,
                lambda number, chat: number % 49 == 7,
            ),
            (
                "1 conversation in 100 parked",
                ">= 0.9",
                "parked",
                TRANSIENT,
                lambda number, chat: chat % 100 == 7,
            ),
        ]
        table = Table(
            title=(
                f"{rows:,} messages, {PARTITIONS} partitions, median of {rounds}:"
                " rate beside a clean one"
            )
        )
        for column in ("what", "messages/s", "ratio", "target", "CPU us/message", "clean"):
            table.add_column(column)
        results: defaultdict[str, list[tuple[Drain, Drain]]] = defaultdict(list)
        for turn in range(rounds):
            for _, _, name, refuse, bad in cases:
                # One after the other: what a shared machine can do changes from minute to
                # minute.
                clean = await contest(bench, f"{name}_clean_{turn}", refuse, nothing)
                results[name].append((await contest(bench, f"{name}_{turn}", refuse, bad), clean))
        for what, target, name, _, _ in cases:
            rate, micros = (median(one[at] for one, _ in results[name]) for at in range(2))
            ratio = median(one.rate / clean.rate for one, clean in results[name])
            clean_micros = median(clean.micros for _, clean in results[name])
            table.add_row(
                what,
                f"{rate:,.0f}",
                f"{ratio:.2f}",
                target,
                f"{micros:.1f}",
                f"{clean_micros:.1f}",
            )
        console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fate", description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    asyncio.run(main(asked.rows, asked.rounds))
