"""`streams relay switch`: another relay publishes, under load.

There is an overlap, and no gap.
"""

from __future__ import annotations

import asyncio

import psycopg
import pytest

from streams.dev.connect import ConnectWorker
from streams.relay.debezium.rest import Connect
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import Writers, check_order, leads, on_topic, published
from tests.fixtures.command import streams
from tests.fixtures.publish import enqueue, payload

SLOTS = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
MODE = "SELECT mode, doing, wish FROM relay_position"


@pytest.mark.long
@pytest.mark.parametrize("transactions", [4000])
async def test_there_and_back_under_load(
    world: World, name: str, eventually: Eventually, transactions: int
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(leads(world, relay))
    writers = Writers(world.url, world.topic, transactions)
    await eventually(lambda: len(on_topic(world)) > 100)
    there = await streams(world, "relay", "switch", "--to", "poll", "--why", "maintenance")
    assert (there.code, f"relay {name} publishes in mode poll" in there.out) == (0, True)
    assert world.query(MODE) == [("poll", "polling", "poll")]
    await eventually(lambda: world.query(SLOTS, name) == [(0,)])
    # Who has written holds up the new slot, until the command has told of it.
    with psycopg.connect(world.url) as connection:
        insert = (
            "INSERT INTO outbox (biz_type, topic, key, payload) VALUES ('x', %s, 'held', '{}')"
            " RETURNING id"
        )
        [held] = connection.execute(insert, (world.topic,)).fetchone() or []
        back = world.start("streams", "relay", "switch", "--to", "cdc")
        await eventually(lambda: "poll: healing" in back.output(), 60)
    assert await back.finish(120) == 0, back.output()
    assert world.query(MODE) == [("cdc", "streaming", "cdc")]
    ids = [held, *await asyncio.to_thread(writers.join)]
    await eventually(published(world, ids), 60, every=0.5)
    check_order(world, ids)
    assert relay.running
    acts = world.query("SELECT act, what->>'to', why FROM outbox_actions ORDER BY id")
    assert acts == [("relay switch", "poll", "maintenance"), ("relay switch", "cdc", None)]


@pytest.mark.long
async def test_to_debezium_and_back_under_load(
    world: World, connect: ConnectWorker, name: str, eventually: Eventually
) -> None:
    world.environ |= {"STREAMS_CONNECT__URL": connect.url, "STREAMS_CONNECT__REGISTER": "true"}
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(leads(world, relay))
    writers = Writers(world.url, world.topic, 400)
    await eventually(lambda: len(on_topic(world)) > 100)
    for mode in ("debezium", "poll", "debezium", "cdc"):
        answer = await streams(world, "relay", "switch", "--to", mode)
        assert answer.code == 0, answer
        if mode == "poll":
            await eventually(lambda: world.query(SLOTS, name) == [(0,)])
    ids = await asyncio.to_thread(writers.join)
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(20)])
    await eventually(published(world, ids), 60, every=0.5)
    check_order(world, ids)
    await relay.stop(grace=15)
    await Connect(connect.url, name).delete()


async def test_a_wish_outlives_the_relay_and_migrate_makes_no_slot_against_it(
    world: World, name: str, eventually: Eventually
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(leads(world, relay))
    assert (await streams(world, "relay", "switch", "--to", "poll")).code == 0
    await eventually(lambda: world.query(SLOTS, name) == [(0,)])
    await relay.stop(grace=8)
    assert (
        f"no replication slot: relay {name} was switched to poll"
        in (await streams(world, "migrate")).out
    )
    second = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(leads(world, second))
    assert world.query(MODE) == [("poll", "polling", "poll")]


async def test_a_relay_that_cannot_be_switched_says_why(
    world: World, eventually: Eventually
) -> None:
    never = await streams(world, "relay", "switch", "--to", "poll")
    assert (never.code, "never ran here: start it" in never.error) == (2, True)
    world.migrate()
    await eventually(leads(world, world.relay(STREAMS_RELAY__MODE="cdc")))
    fixed = await streams(world, "relay", "switch", "--to", "poll")
    assert (fixed.code, "was started with mode cdc and follows nobody" in fixed.error) == (2, True)
    nowhere = await streams(world, "relay", "switch", "--to", "debezium")
    assert (nowhere.code, "set connect.url, and connect.register" in nowhere.error) == (2, True)
    assert world.query("SELECT count(*) FROM outbox_actions") == [(0,)]


async def test_a_switch_that_takes_too_long_is_bad_news_and_goes_on(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(leads(world, relay))
    await relay.stop(grace=8)
    late = await streams(world, "relay", "switch", "--to", "poll", "--timeout", "0.5")
    assert (late.code, "is not in mode poll after 0.5 s, and goes on trying" in late.error) == (
        1,
        True,
    )
    world.relay(STREAMS_RELAY__MODE="auto")
    await eventually(lambda: world.query(MODE) == [("poll", "polling", "poll")])
