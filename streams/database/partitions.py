"""Partitions of outbox and outbox_state, made ahead of need without blocking an open enqueue.

CREATE TABLE ... PARTITION OF takes ACCESS EXCLUSIVE on the parent: it waits for every open enqueue
and then blocks all new ones. CREATE plus ATTACH takes SHARE UPDATE EXCLUSIVE, which lets writers
through.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, cast

import psycopg
from psycopg import sql
from sqlalchemy import Connection

from streams.database.queries import query

PARTITIONED = ("outbox", "outbox_state")
LOCK = 7_201_002
AT_ONCE = 20
FIRST_WIDTH = 5_000_000  # while nothing is known of the rate
ALIVE = 36  # partitions that a period of retention has, give or take half of it
NARROWEST, WIDEST = 10_000, 1_000_000_000
NEAR = 100_000  # ids; what is looked for is nearly always among so many
_BOUNDS = re.compile(r"FROM \('(\d+)'\) TO \('(\d+)'\)")


def fitting_width(rate: float, days: float) -> int:
    """Ids of a partition, as 1, 2 or 5 with zeros.

    At this rate a second, so many days have 20 to 60 of such partitions.
    """
    wanted = min(max(rate * days * 86_400 / ALIVE, NARROWEST), WIDEST)
    zeros: int = 10 ** math.floor(math.log10(wanted))
    widths = [zeros, 2 * zeros, 5 * zeros, 10 * zeros]
    return min(widths, key=lambda width: abs(math.log(width / wanted)))


def ensure_sync(connection: Connection, *, ahead: int, width: int) -> int:
    """Like `ensure`, on a SQLAlchemy connection, in a transaction that the caller commits."""
    driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
    # Through SQLAlchemy: it has to know of the transaction, or an error would end in another one
    # about that.
    connection.exec_driver_sql(query("partition_lock"), {"key": LOCK})
    bounds = [(row[0], row[1]) for row in connection.exec_driver_sql(query("partition_bounds"))]
    last = connection.exec_driver_sql(query("last_id")).scalar_one()
    statements = _statements(bounds, last, last + ahead, width)
    if statements:
        connection.exec_driver_sql(query("as_owner"))
    for statement in statements:
        connection.exec_driver_sql(statement.as_string(driver))
    return len(statements) // 2


async def ensure(connection: psycopg.AsyncConnection[Any], *, ahead: int, width: int) -> int:
    """Make partitions of `width` ids until the id `ahead` of the newest one has a home.

    Returns how many were made.

    A few in one transaction: each takes locks of a table that the whole server shares.
    """
    made = 0
    while True:
        async with connection.transaction(), connection.cursor() as cursor:
            await cursor.execute(query("partition_lock"), {"key": LOCK})
            await cursor.execute(query("partition_bounds"))
            bounds = await cursor.fetchall()
            await cursor.execute(query("last_id"))
            [(last,)] = await cursor.fetchall()
            end = max(_end(bounds), last)
            statements = _statements(bounds, last, min(last + ahead, end + AT_ONCE * width), width)
            if statements:
                await cursor.execute(query("as_owner"))
            for statement in statements:
                await cursor.execute(statement)
        if not statements:
            return made
        made += len(statements) // 2


async def reach(connection: psycopg.AsyncConnection[Any]) -> int:
    """The first id without a home."""
    return _end(await (await connection.execute(query("partition_bounds"))).fetchall())


async def first(connection: psycopg.AsyncConnection[Any]) -> int:
    """The first id that has a home: there is no row before it."""
    return _first(await (await connection.execute(query("partition_bounds"))).fetchall())


def first_sync(connection: Connection) -> int:
    """Like `first`, on a SQLAlchemy connection."""
    return _first(
        [(row[0], row[1]) for row in connection.exec_driver_sql(query("partition_bounds"))]
    )


def nearest_first(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges of ids from `begin` to `end`, as (after, until): those above the one, up to the other.

    The first is the one at `begin`, each ten times as wide as the one before it; an `end` below
    `begin` goes back. A statement opens every partition of its range: whoever looks for what is
    close by opens few, and yet finds what is far away.
    """
    width = NEAR
    while begin != end:
        step = min(begin + width, end) if begin < end else max(begin - width, end)
        yield min(begin, step), max(begin, step)
        begin, width = step, width * 10


def reach_sync(connection: Connection) -> int:
    """Like `reach`, on a SQLAlchemy connection."""
    return _end([(row[0], row[1]) for row in connection.exec_driver_sql(query("partition_bounds"))])


def _first(bounds: list[tuple[str, str]]) -> int:
    starts = [
        int(limits[1])
        for table, bound in bounds
        if table == "outbox" and (limits := _BOUNDS.search(bound))
    ]
    return min(starts, default=0)


def _end(bounds: list[tuple[str, str]]) -> int:
    ends = {
        parent: max(
            (
                int(match[2])
                for table, bound in bounds
                if table == parent and (match := _BOUNDS.search(bound))
            ),
            default=0,
        )
        for parent in PARTITIONED
    }
    return min(ends.values())


def _statements(
    bounds: list[tuple[str, str]], last: int, needed: int, width: int
) -> list[sql.Composed]:
    """CREATE and ATTACH for every missing partition up to the id `needed`.

    A sequence that jumped leaves a gap that no id will fall into: it gets no partitions.
    """
    statements: list[sql.Composed] = []
    for parent in PARTITIONED:
        ends = [
            int(match[2])
            for table, bound in bounds
            if table == parent and (match := _BOUNDS.search(bound))
        ]
        start = max(*ends, last // width * width) if ends else 0
        while start <= needed:
            end = (start // width + 1) * width
            statements += _partition(parent, start, end)
            start = end
    return statements


def _partition(parent: str, start: int, end: int) -> list[sql.Composed]:
    names = {"parent": sql.Identifier(parent), "child": sql.Identifier(f"{parent}_{start}")}
    # All that somebody may have given the table: a generated column, say. But identity stays the
    # parent's alone: attaching a table with an identity of its own is an error.
    create = sql.SQL(
        "CREATE TABLE {child} (LIKE {parent} INCLUDING ALL EXCLUDING IDENTITY)"
    ).format(**names)
    attach = sql.SQL(
        "ALTER TABLE {parent} ATTACH PARTITION {child} FOR VALUES FROM ({start}) TO ({end})"
    ).format(**names, start=sql.Literal(start), end=sql.Literal(end))
    return [create, attach]
