"""What a claim costs PostgreSQL at 1, 60 and 400 partitions: `python -m benchmarks.partitions`.

CPU time of one backend.

Runs of 500 messages are claimed as a worker claims them, in the newest partition of many. Wall
time depends on who else is on the machine; CPU time of the backend and the number of locks do not.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from hashlib import md5
from pathlib import Path
from typing import Any

import psutil
import psycopg
from rich.table import Table

from benchmarks.bench import console
from streams.database import connect, migrate, query
from streams.dev.postgres import PostgresServer
from streams.registry import configured
from streams.settings import load

WIDTH, SIZE, WARM = 100_000, 500, 20
LEAVES = """
SELECT inhrelid::regclass::text
FROM pg_inherits
WHERE inhparent IN ('outbox'::regclass, 'outbox_state'::regclass)"""
FILL = """
INSERT INTO outbox (biz_type, topic, key, payload)
SELECT 'x', 't', 'k' || n, '{"a": 1}' FROM generate_series(1, %s) AS n"""
STATEMENTS = ("probe", "claim_all", "as_planned")


async def fill(
    connection: psycopg.AsyncConnection[Any], partitions: int, rows: int
) -> list[tuple[Any, ...]]:
    """Make so many partitions, and rows in the last one.

    Each row comes with id, key and time as a digest takes them.
    """
    for (leaf,) in await (await connection.execute(LEAVES.encode())).fetchall():
        await connection.execute(f"DROP TABLE {leaf}".encode())
    for number in range(partitions):
        first, end = number * WIDTH, (number + 1) * WIDTH
        for parent in ("outbox", "outbox_state"):
            bounds = f"FROM ({first}) TO ({end})"
            await connection.execute(
                f"CREATE TABLE {parent}_{first} PARTITION OF {parent} FOR VALUES {bounds}".encode()
            )
    await connection.execute(
        "SELECT setval('outbox_id_seq', %s, false)", [(partitions - 1) * WIDTH + 1]
    )
    await connection.execute(FILL.encode(), [rows])
    await connection.execute("ANALYZE outbox")
    cursor = await connection.execute(
        "SELECT id, key, timestamp_send(created_at) FROM outbox ORDER BY id"
    )
    return await cursor.fetchall()


async def claim(connection: psycopg.AsyncConnection[Any], rows: Sequence[tuple[Any, ...]]) -> int:
    """One run in one transaction; how many locks it holds in the end."""
    ids = [row[0] for row in rows]
    array = "{" + ",".join(map(str, ids)) + "}"
    digest = md5(
        b"".join(key.encode() + bytes(time) for _, key, time in rows), usedforsecurity=False
    ).hexdigest()
    given = {"ids": array, "offsets": array, "partitions": "{" + ",".join(["0"] * len(ids)) + "}"}
    given |= {"first": ids[0], "last": ids[-1], "checked": False, "topic": "t", "digest": digest}  # type: ignore[dict-item]
    async with connection.transaction():
        cursors = [connection.cursor() for _ in STATEMENTS]
        async with connection.pipeline():
            for cursor, name in zip(cursors, STATEMENTS, strict=True):
                await cursor.execute(query(name), given)
        assert cursors[1].rowcount == len(ids)
        locks = await connection.execute(
            "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()"
        )
        return int((await locks.fetchall())[0][0])


async def measure(url: str, partitions: int, runs: int) -> tuple[float, int]:
    """CPU microseconds of the backend for each message, and the most locks of one run."""
    async with await connect(url) as connection:
        rows = await fill(connection, partitions, (WARM + runs) * SIZE)
        backend = psutil.Process(connection.info.backend_pid)
        locks, began = 0, 0.0
        for number in range(WARM + runs):
            if number == WARM:
                began = sum(backend.cpu_times()[:2])
            locks = max(locks, await claim(connection, rows[number * SIZE : (number + 1) * SIZE]))
        return 1e6 * (sum(backend.cpu_times()[:2]) - began) / (runs * SIZE), locks


async def main(counts: Sequence[int], runs: int) -> None:
    """Each number of partitions in a database of its own, on one server."""
    table = Table("partitions", "CPU microseconds a message", "locks")
    with tempfile.TemporaryDirectory() as folder:
        async with PostgresServer(Path(folder) / "postgres", trusting=True) as server:
            for count in counts:
                name = f"partitions_{count}"
                with psycopg.connect(server.url, autocommit=True) as connection:
                    connection.execute(f"CREATE DATABASE {name}".encode())
                url = server.url_of(name)
                settings = load(environ={"DATABASE_URL": url, "STREAMS_RELAY__MODE": "poll"})
                list(migrate.migrate(settings, configured(settings)))
                micros, locks = await measure(url, count, runs)
                table.add_row(str(count), f"{micros:.1f}", str(locks))
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--partitions", type=int, nargs="*", default=[1, 60, 400])
    parser.add_argument("--runs", type=int, default=150)
    chosen = parser.parse_args()
    asyncio.run(main(chosen.partitions, chosen.runs))
