"""An outage of Kafka never fills the database's disk.

A slot that holds back too much is dropped, and made again later.
"""

from __future__ import annotations

import pytest

from streams.dev.kafka import KafkaBroker
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import check_order, leads, published
from tests.fixtures.copies import Copies
from tests.fixtures.publish import enqueue, payload

SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"


@pytest.fixture
def frugal(world: World, broker: KafkaBroker, copies: Copies) -> World:
    """A migrated world whose slot may hold back little, and holds back none of what others do."""
    copies.wait()
    world.environ |= {
        "BROKER_URL": broker.url,
        "STREAMS_RELAY__MODE": "cdc",
        "STREAMS_RELAY__WAL_WARN": "2000000",
        "STREAMS_RELAY__WAL_LIMIT": "10000000",
    }
    world.migrate()
    return world


def log(world: World, number: int = 0) -> str:
    return (world.directory / f"streams-{number}.log").read_text()


def spend(world: World, megabytes: int) -> None:
    """Some WAL that has nothing to do with the outbox."""
    world.query(
        "SELECT pg_logical_emit_message(false, 'x', repeat('x', 1000000))"
        " FROM generate_series(1, %s)",
        megabytes,
    )


async def test_while_the_broker_is_away_the_slot_is_dropped_and_afterwards_made_anew(
    frugal: World, broker: KafkaBroker, name: str, eventually: Eventually
) -> None:
    relay = frugal.relay()
    ids = enqueue(frugal.url, frugal.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    await eventually(published(frugal, ids))
    broker.kill()
    ids += enqueue(frugal.url, frugal.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    spend(frugal, 4)
    await eventually(lambda: "slot holds back WAL" in log(frugal))
    assert frugal.query(SLOTS, name) == [(1,)]
    spend(frugal, 10)
    await eventually(lambda: frugal.query(SLOTS, name) == [(0,)])
    ids += enqueue(frugal.url, frugal.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    # Held back no more, also when that goes on.
    spend(frugal, 15)
    await broker.restart()
    await eventually(published(frugal, ids), 60)
    await eventually(
        lambda: frugal.query("SELECT doing FROM relay_position") == [("streaming",)], 60
    )
    assert frugal.query(SLOTS, name) == [(1,)]
    check_order(frugal, ids)
    assert relay.running


@pytest.mark.long
async def test_a_relay_that_cannot_start_without_the_broker_drops_it_too(
    frugal: World, broker: KafkaBroker, name: str, eventually: Eventually
) -> None:
    relay = frugal.relay()
    await eventually(leads(frugal, relay))
    await relay.stop(grace=8)
    broker.kill()
    ids = enqueue(frugal.url, frugal.topic, [payload(n, f"c{n % 9}") for n in range(100)])
    spend(frugal, 15)
    second = frugal.relay()
    await eventually(lambda: second.returncode is not None, 60)
    assert second.returncode == 3
    assert frugal.query(SLOTS, name) == [(0,)]
    await broker.restart()
    frugal.relay()
    await eventually(published(frugal, ids), 60)
    check_order(frugal, ids)


@pytest.mark.long
async def test_partitions_are_made_by_a_relay_that_is_started_again_while_the_broker_is_away(
    frugal: World, broker: KafkaBroker, eventually: Eventually
) -> None:
    """A pod that moves during an outage of Kafka: business transactions go on."""
    room = (
        "SELECT max(substring(pg_get_expr(c.relpartbound, c.oid)"
        " FROM 'TO \\(''(\\d+)')::bigint) - s.last_value FROM pg_inherits JOIN pg_class AS c"
        " ON c.oid = inhrelid, outbox_id_seq AS s WHERE inhparent = 'outbox'::regclass"
        " GROUP BY s.last_value"
    )
    frugal.environ["STREAMS_OUTBOX__PARTITION_ROWS"] = "1000"
    broker.kill()
    [(left,)] = frugal.query(room)
    frugal.query("SELECT setval('outbox_id_seq', last_value + %s) FROM outbox_id_seq", left - 500)
    ids: list[int] = []
    for _ in range(4):
        relay = frugal.relay()
        await eventually(lambda: frugal.query(room) > [(1200,)])
        relay.kill()
        ids += enqueue(frugal.url, frugal.topic, [payload(n, f"c{n % 9}") for n in range(1200)])
    await broker.restart()
    frugal.relay()
    await eventually(published(frugal, ids), 60)
    check_order(frugal, ids)
