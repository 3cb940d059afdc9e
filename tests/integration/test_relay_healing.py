"""A slot that is lost under load, or replaced while the relay was away.

No row is missed, and order for each key is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from streams.testing.services import UNSAFE
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import Writers, check_order, leads, on_topic, published
from tests.fixtures.publish import enqueue, payload

DROP = """
SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots
WHERE slot_name = %(slot)s AND active_pid IS NOT NULL;
SELECT pg_drop_replication_slot(%(slot)s)
"""


def log(world: World, number: int = 0) -> str:
    return (world.directory / f"streams-{number}.log").read_text()


def doing(world: World) -> tuple[Any, ...]:
    """(mode, what the leader does); nothing before the first one has said so."""
    rows = world.query(
        "SELECT mode, doing FROM relay_position WHERE name = %s", world.settings.relay.name
    )
    return rows[0] if rows else ()


def streaming(world: World) -> Callable[[], bool]:
    return lambda: doing(world) == ("cdc", "streaming")


async def drop(world: World, eventually: Eventually) -> None:
    """Drop the slot while a relay reads it, which takes its walsender first.

    The relay is quick to be back.
    """

    def dropped() -> bool:
        with psycopg.connect(world.url, autocommit=True) as connection:
            try:
                for statement in DROP.split(";"):
                    connection.execute(statement.encode(), {"slot": world.settings.relay.name})
            except psycopg.errors.ObjectInUse:
                return False
        return True

    await eventually(dropped)


@pytest.mark.parametrize("transactions", [400, pytest.param(2000, marks=pytest.mark.long)])
async def test_a_slot_dropped_under_load_is_made_anew_without_a_gap(
    world: World, eventually: Eventually, transactions: int
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="cdc", STREAMS_RELAY__FLOOR_INTERVAL="0.1")
    await eventually(leads(world, relay))
    writers = Writers(world.url, world.topic, transactions)
    await eventually(lambda: len(on_topic(world)) > 100)
    await drop(world, eventually)
    await eventually(lambda: "does not exist" in log(world))
    await eventually(lambda: "relay healed" in log(world), 60)
    await drop(world, eventually)
    ids = await asyncio.to_thread(writers.join)
    await eventually(published(world, ids), 60, every=0.5)
    check_order(world, ids)
    await eventually(lambda: log(world).count("relay healed") == 2 and streaming(world)(), 60)
    assert relay.running


@pytest.mark.long
async def test_a_slot_whose_wal_is_gone_is_made_anew_without_a_gap(
    world: World, kafka: KafkaBroker, tmp_path: Path, eventually: Eventually
) -> None:
    small = {"max_slot_wal_keep_size": "32MB", "max_wal_size": "64MB", "wal_keep_size": "0"}
    settings = {**UNSAFE, **small}
    async with PostgresServer(tmp_path / "small", settings=settings, trusting=True) as server:
        world.environ["DATABASE_URL"] = server.url
        world.migrate()
        first = world.relay(STREAMS_RELAY__MODE="cdc")
        ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
        await eventually(published(world, ids))
        first.kill()
        ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
        lost = "SELECT wal_status FROM pg_replication_slots"
        await eventually(lambda: spend(world) and world.query(lost) == [("lost",)], 60)
        ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
        world.relay(STREAMS_RELAY__MODE="cdc")
        await eventually(published(world, ids))
        check_order(world, ids)
        await eventually(streaming(world))
        assert "has lost its WAL" in log(world, 1)
        assert world.query(lost) == [("reserved",)]
        ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
        await eventually(published(world, ids))
        check_order(world, ids)
        for process in world.processes:
            process.kill()


def spend(world: World) -> bool:
    """Some WAL that has nothing to do with the outbox."""
    for _ in range(3):
        world.query(
            "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))"
            " FROM generate_series(1, 20)"
        )
        world.query("SELECT pg_switch_wal()")
    world.query("CHECKPOINT")
    return True


async def test_a_slot_that_somebody_made_anew_meanwhile_is_not_trusted(
    world: World, eventually: Eventually
) -> None:
    """As after a failover: the name is there, what was written before it began is not in it."""
    world.migrate()
    first = world.relay(STREAMS_RELAY__MODE="cdc")
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await eventually(published(world, ids))
    first.kill()
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await drop(world, eventually)
    world.query(
        "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", world.settings.relay.name
    )
    writers = Writers(world.url, world.topic, 30)
    world.relay(STREAMS_RELAY__MODE="cdc")
    ids += await asyncio.to_thread(writers.join)
    await eventually(published(world, ids))
    check_order(world, ids)
    await eventually(streaming(world))
    assert "begins at" in log(world, 1)


@pytest.mark.long
async def test_kill_9_while_it_heals_loses_nothing(world: World, eventually: Eventually) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(leads(world, relay))
    # Who has written holds up the new slot.
    with psycopg.connect(world.url) as connection:
        insert = (
            "INSERT INTO outbox (biz_type, topic, key, payload) VALUES ('x', %s, 'c1', '{}')"
            " RETURNING id"
        )
        [early] = connection.execute(insert, (world.topic,)).fetchone() or []
        await drop(world, eventually)
        await eventually(lambda: doing(world) == ("poll", "healing"))
        ids = enqueue(world.url, world.topic, [payload(n, f"d{n % 9}") for n in range(100)])
        await eventually(published(world, ids))
        relay.kill()
        second = world.relay(STREAMS_RELAY__MODE="cdc")
        await eventually(leads(world, second))
        ids += enqueue(world.url, world.topic, [payload(n, f"d{n % 9}") for n in range(100)])
        await eventually(published(world, ids))
        assert doing(world) == ("poll", "healing")
    await eventually(published(world, [early, *ids]))
    await eventually(streaming(world))
    check_order(world, [early, *ids])


async def test_a_role_that_may_not_make_a_slot_polls_and_says_what_mends_it(
    world: World, name: str, eventually: Eventually
) -> None:
    world.migrate()
    world.query(f"CREATE ROLE {name} LOGIN REPLICATION IN ROLE pg_read_all_data, pg_write_all_data")
    try:
        environ = {
            "STREAMS_RELAY__MODE": "cdc",
            "DATABASE_URL": world.url.replace("postgres@", f"{name}@"),
        }
        relay = world.relay(**environ)
        ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(20)])
        await eventually(published(world, ids))
        world.query(f"ALTER ROLE {name} NOREPLICATION")
        await drop(world, eventually)
        ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(20)])
        await eventually(published(world, ids))
        await eventually(lambda: f"ALTER ROLE {name} REPLICATION" in log(world))
        statement = "SELECT mode, reason FROM relay_position"
        await eventually(
            lambda: f"run ALTER ROLE {name} REPLICATION" in (world.query(statement)[0][1] or "")
        )
        world.query(f"ALTER ROLE {name} REPLICATION")
        await eventually(streaming(world), 60)
        relay.kill()
        check_order(world, ids)
    finally:
        for process in world.processes:
            process.kill()
        world.query(f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_rows_from_before_the_first_slot_are_published(
    world: World, eventually: Eventually
) -> None:
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(50)])
    world.migrate()
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(50)])
    world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(world, ids))
    await eventually(streaming(world))
    check_order(world, ids)
