"""Partitions are made ahead of need without waiting for an open enqueue.

A new one is not held up either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg import errors

from streams.cli import cli
from streams.database import connect, migrate, sync_engine
from streams.database.partitions import ensure, ensure_sync
from streams.errors import UsageError
from streams.registry import configured
from streams.settings import load

WIDTH = 5_000_000
ENQUEUE = "SELECT outbox_enqueue('chat_history_persist', 'c', '{\"conversation_id\": \"c\"}')"


@pytest.fixture
async def connection(database: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await connect(database, session={"lock_timeout": "5s"}) as connection:
        yield connection


@pytest.fixture
def writer(database: str) -> Iterator[psycopg.Connection[Any]]:
    """Another session, with an enqueue in an open transaction."""
    with psycopg.connect(database) as writer:
        writer.execute(ENQUEUE)
        yield writer
        writer.rollback()


async def bounds(connection: psycopg.AsyncConnection[Any]) -> dict[str, str]:
    cursor = await connection.execute(
        "SELECT relname, pg_get_expr(relpartbound, c.oid) FROM pg_inherits JOIN pg_class AS c"
        " ON c.oid = inhrelid WHERE inhparent IN ('outbox'::regclass, 'outbox_state'::regclass)"
    )
    return {name: bound.removeprefix("FOR VALUES ") for name, bound in await cursor.fetchall()}


async def test_a_migrated_database_has_partitions_to_write_to(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    assert await bounds(connection) == {
        "outbox_0": "FROM ('0') TO ('5000000')",
        "outbox_state_0": "FROM ('0') TO ('5000000')",
    }
    assert await ensure(connection, ahead=1, width=WIDTH) == 0


async def test_partitions_are_made_while_an_enqueue_is_open_and_others_go_on(
    connection: psycopg.AsyncConnection[Any], writer: psycopg.Connection[Any], database: str
) -> None:
    async with asyncio.timeout(10):
        async with connection.transaction():
            # Of two tables each: up to 5, 10, 15 million there is one more, and here it is not
            # committed yet.
            assert await ensure(connection, ahead=2 * WIDTH, width=WIDTH) == 4
            async with await connect(database, session={"lock_timeout": "5s"}) as other:
                await other.execute(ENQUEUE)
            writer.execute(ENQUEUE)
    assert len(await bounds(connection)) == 6
    writer.commit()
    assert await (await connection.execute("SELECT count(*) FROM outbox")).fetchone() == (3,)


async def test_two_at_once_make_each_partition_once(
    connection: psycopg.AsyncConnection[Any], database: str
) -> None:
    async with await connect(database) as other, asyncio.timeout(20):
        made = await asyncio.gather(
            ensure(connection, ahead=3 * WIDTH, width=WIDTH),
            ensure(other, ahead=3 * WIDTH, width=WIDTH),
        )
    assert sorted(made) == [0, 6]
    assert len(await bounds(connection)) == 8


async def test_a_changed_width_goes_on_where_the_last_partition_ends(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    await ensure(connection, ahead=WIDTH, width=3_000_000)
    await ensure(connection, ahead=WIDTH + 2_000_000, width=1_000_000)
    ranges = await bounds(connection)
    assert {name: bound for name, bound in ranges.items() if "state" not in name} == {
        "outbox_0": "FROM ('0') TO ('5000000')",
        "outbox_5000000": "FROM ('5000000') TO ('6000000')",
        "outbox_6000000": "FROM ('6000000') TO ('7000000')",
        "outbox_7000000": "FROM ('7000000') TO ('8000000')",
    }
    assert len(ranges) == 8


async def test_rows_cross_into_the_next_partition(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("SELECT setval('outbox_id_seq', 4999998)")
    await ensure(connection, ahead=10, width=WIDTH)
    for _ in range(3):
        await connection.execute(ENQUEUE)
    cursor = await connection.execute("SELECT tableoid::regclass::text, id FROM outbox ORDER BY id")
    assert await cursor.fetchall() == [
        ("outbox_0", 4_999_999),
        ("outbox_5000000", 5_000_000),
        ("outbox_5000000", 5_000_001),
    ]


async def test_a_new_partition_has_what_the_old_ones_have(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    await ensure(connection, ahead=WIDTH, width=WIDTH)
    for parent in ("outbox", "outbox_state"):
        shapes = []
        for child in (f"{parent}_0", f"{parent}_5000000"):
            cursor = await connection.execute(
                "SELECT regexp_replace(pg_get_indexdef(i.indexrelid), '_(0|5000000)', '', 'g'),"
                " EXISTS (SELECT FROM pg_inherits WHERE inhrelid = i.indexrelid)"
                " FROM pg_index AS i WHERE indrelid = %s::regclass ORDER BY 1",
                [child],
            )
            indexes = await cursor.fetchall()
            assert all(attached for _, attached in indexes)
            cursor = await connection.execute(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE conrelid = %s::regclass AND contype = 'c' ORDER BY 1",
                [child],
            )
            shapes.append((indexes, await cursor.fetchall()))
        assert shapes[0] == shapes[1]
        assert shapes[0][1]


async def test_without_a_partition_enqueue_fails_loudly_and_works_again_with_one(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    await connection.execute("SELECT setval('outbox_id_seq', 4999999)")
    with pytest.raises(
        errors.CheckViolation, match='no partition of relation "outbox" found for row'
    ):
        await connection.execute(ENQUEUE)
    assert await ensure(connection, ahead=1, width=WIDTH) == 2
    await connection.execute(ENQUEUE)


async def test_after_a_jump_of_the_sequence_the_gap_gets_no_partitions(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    await connection.execute("SELECT setval('outbox_id_seq', %s)", [5000 * WIDTH + 7])
    assert await ensure(connection, ahead=1, width=WIDTH) == 2
    await connection.execute(ENQUEUE)


async def test_rows_of_a_rolled_back_transaction_are_gone(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            await ensure(connection, ahead=WIDTH, width=WIDTH)
            raise ZeroDivisionError
    assert len(await bounds(connection)) == 2
    assert await ensure(connection, ahead=WIDTH, width=WIDTH) == 2


def test_the_sync_twin_leaves_the_commit_to_its_caller(database: str) -> None:
    engine = sync_engine(database)
    with engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
        assert ensure_sync(connection, ahead=WIDTH, width=WIDTH) == 2
        connection.rollback()
        connection.exec_driver_sql("SELECT 1")
        assert ensure_sync(connection, ahead=WIDTH, width=WIDTH) == 2
        connection.commit()
        assert ensure_sync(connection, ahead=WIDTH, width=WIDTH) == 0
    engine.dispose()


def test_status_says_how_long_the_partitions_last(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database)
    with psycopg.connect(database, autocommit=True) as connection:
        in_an_hour = (
            "INSERT INTO outbox (biz_type, topic, key, payload, created_at)"
            " SELECT 'x', 'x', 'x', '{}', now() AT TIME ZONE 'UTC' - interval '1 hour'"
            " FROM generate_series(1, 3600)"
        )
        connection.execute(in_an_hour)
        assert "the outbox has partitions" not in CliRunner().invoke(cli, ["status"]).output
        connection.execute("SELECT setval('outbox_id_seq', 4999000 - 3600)")
        connection.execute(in_an_hour)
        told = CliRunner().invoke(cli, ["status"])
    assert told.exit_code == 1
    assert (
        "the outbox has partitions for 999 more rows, 17 minutes at the present rate,"
        " then enqueueing fails" in told.output
    )


async def test_a_new_partition_has_columns_and_indexes_that_somebody_gave_the_table(
    connection: psycopg.AsyncConnection[Any],
) -> None:
    """A generated column kept every partition from being attached, until enqueue failed."""
    await connection.execute(
        "ALTER TABLE outbox ADD COLUMN size int GENERATED ALWAYS AS (octet_length(key)) STORED,"
        " ADD COLUMN note text COLLATE \"C\" DEFAULT 'none'"
    )
    await connection.execute("CREATE INDEX ON outbox (size)")
    assert await ensure(connection, ahead=WIDTH, width=WIDTH) == 2
    await connection.execute("ALTER SEQUENCE outbox_id_seq RESTART WITH 5000001")
    await connection.execute(ENQUEUE)
    cursor = await connection.execute("SELECT tableoid::regclass::text, size, note FROM outbox")
    assert await cursor.fetchall() == [("outbox_5000000", 1, "none")]


def test_the_first_error_is_the_one_that_migrate_shows(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE outbox_5000000 (id int)")
        connection.execute("SELECT setval('outbox_id_seq', 4999999)")
    settings = load(environ={"DATABASE_URL": database, "STREAMS_RELAY__MODE": "poll"})
    with pytest.raises(
        UsageError, match='refuses to migrate: relation "outbox_5000000" already exists'
    ):
        list(migrate.migrate(settings, configured(settings)))
