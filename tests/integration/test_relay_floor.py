"""The floor on a real server.

It is never above a row that may still be committed, and never stuck for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from tests.conftest import Eventually, World
from tests.fixtures.publish import CHAT, enqueue, payload

INSERT = (
    "INSERT INTO outbox (biz_type, topic, key, payload) VALUES (%s, %s, 'c', '{}') RETURNING id"
)


# That of several shards in `make test`: tests/integration/test_relay_shards.py.
@pytest.fixture(params=["cdc", "poll", pytest.param("poll in shards", marks=pytest.mark.long)])
async def relayed(
    world: World, request: pytest.FixtureRequest, eventually: Eventually
) -> AsyncIterator[World]:
    """A world whose relay, in one mode, has written its first floor."""
    world.environ["STREAMS_RELAY__MODE"], _, shards = request.param.partition(" in ")
    if shards:
        world.environ["STREAMS_RELAY__SHARDS"] = "4"
    world.migrate()
    world.relay(STREAMS_RELAY__FLOOR_INTERVAL="0.1")
    ids = enqueue(world.url, world.topic, [payload(0, "c")])
    await eventually(lambda: floor(world) >= ids[-1])
    yield world


def floor(world: World) -> int:
    return int(world.query("SELECT coalesce(max(floor), 0) FROM relay_position")[0][0])


async def test_an_open_transaction_holds_the_floor_below_its_rows(
    relayed: World, eventually: Eventually
) -> None:
    with psycopg.connect(relayed.url) as connection:
        [early] = connection.execute(INSERT, (CHAT, relayed.topic)).fetchone() or []
        late = enqueue(relayed.url, relayed.topic, [payload(1, "d")])
        await asyncio.sleep(1.5)
        assert floor(relayed) < early
    await eventually(lambda: floor(relayed) >= late[-1])


async def test_a_rolled_back_row_does_not_hold_the_floor(
    relayed: World, eventually: Eventually
) -> None:
    with psycopg.connect(relayed.url) as connection:
        [lost] = connection.execute(INSERT, (CHAT, relayed.topic)).fetchone() or []
        connection.rollback()
    await eventually(lambda: floor(relayed) >= lost)


async def test_a_prepared_transaction_holds_the_floor_without_a_connection(
    relayed: World, name: str, eventually: Eventually
) -> None:
    connection = psycopg.connect(relayed.url, autocommit=True)
    connection.execute("BEGIN")
    [early] = connection.execute(INSERT, (CHAT, relayed.topic)).fetchone() or []
    await asyncio.sleep(0.5)
    connection.execute(f"PREPARE TRANSACTION '{name}'")
    connection.close()
    late = enqueue(relayed.url, relayed.topic, [payload(1, "d")])
    await asyncio.sleep(1.5)
    assert floor(relayed) < early
    relayed.query(f"COMMIT PREPARED '{name}'")
    await eventually(lambda: floor(relayed) >= late[-1])


async def test_a_long_transaction_elsewhere_does_not_hold_the_floor(
    relayed: World, eventually: Eventually
) -> None:
    with psycopg.connect(relayed.url) as connection:
        connection.execute("CREATE TEMP TABLE other (x int)")
        ids = enqueue(relayed.url, relayed.topic, [payload(1, "d")])
        await eventually(lambda: floor(relayed) >= ids[-1])


async def test_a_row_written_into_a_partition_directly_holds_the_floor(
    relayed: World, eventually: Eventually
) -> None:
    with psycopg.connect(relayed.url) as connection:
        [early] = (
            connection.execute(
                "INSERT INTO outbox_0 (id, biz_type, topic, key, payload) OVERRIDING SYSTEM VALUE"
                " VALUES (nextval('outbox_id_seq'), %s, %s, 'c', '{}') RETURNING id",
                (CHAT, relayed.topic),
            ).fetchone()
            or []
        )
        enqueue(relayed.url, relayed.topic, [payload(1, "d")])
        await asyncio.sleep(1.0)
        assert floor(relayed) < early
    await eventually(lambda: floor(relayed) >= early)


async def test_the_floor_is_never_above_a_row_that_is_not_confirmed(
    relayed: World, eventually: Eventually
) -> None:
    """Transactions of random length.

    After each commit the floor seen before it was below its rows.
    """

    def write(number: int) -> list[str]:
        wrong = []
        with (
            psycopg.connect(relayed.url) as connection,
            psycopg.connect(relayed.url, autocommit=True) as watch,
        ):
            for turn in range(20):
                [outbox_id] = connection.execute(INSERT, (CHAT, relayed.topic)).fetchone() or []
                connection.execute("SELECT pg_sleep(%s)", [(number * 37 + turn * 11) % 30 / 100])
                [seen] = watch.execute("SELECT max(floor) FROM relay_position").fetchone() or []
                if seen >= outbox_id:
                    wrong.append(f"floor {seen} while {outbox_id} was open")
                if turn % 4:
                    connection.commit()
                else:
                    connection.rollback()
        return wrong

    written = await asyncio.gather(*(asyncio.to_thread(write, number) for number in range(6)))
    assert [line for lines in written for line in lines] == []
    [(newest,)] = relayed.query("SELECT last_value FROM outbox_id_seq")
    await eventually(lambda: floor(relayed) == newest)


async def test_the_floor_survives_a_change_of_leader(
    relayed: World, eventually: Eventually
) -> None:
    before = floor(relayed)
    relayed.processes[0].kill()
    second = relayed.relay(STREAMS_RELAY__FLOOR_INTERVAL="0.1")
    await eventually(lambda: relayed.query("SELECT pid FROM relay_position") == [(second.pid,)])
    assert floor(relayed) >= before
    ids = enqueue(relayed.url, relayed.topic, [payload(1, "d")])
    await eventually(lambda: floor(relayed) >= ids[-1])


async def test_the_leader_makes_partitions_ahead(world: World, eventually: Eventually) -> None:
    world.environ["STREAMS_OUTBOX__PARTITION_ROWS"] = "1000"
    world.migrate()
    ahead = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'outbox'::regclass"
    [(before,)] = world.query(ahead)
    world.query("ALTER TABLE outbox ALTER COLUMN id RESTART WITH 5000000")
    world.relay()
    await eventually(lambda: world.query(ahead)[0][0] > before)
