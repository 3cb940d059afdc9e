"""A connector that is missing, different, failed or changed: one clear line each, and what can be mended is mended."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from streams.dev.connect import ConnectWorker
from streams.dev.process import Process
from streams.relay.debezium.config import connector
from streams.relay.debezium.rest import Connect
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import check_order, leads, published
from tests.fixtures.publish import enqueue, payload
from tests.integration.test_relay_healing import drop


@pytest.fixture
async def looked_after(world: World, connect: ConnectWorker) -> AsyncIterator[World]:
    """A world with Kafka Connect, whose relay does not make its connector."""
    world.migrate()
    world.environ |= {"STREAMS_RELAY__MODE": "debezium", "STREAMS_CONNECT__URL": connect.url}
    yield world
    for process in world.processes:
        process.kill()
    await Connect(connect.url, world.settings.relay.name).delete()


def last_line(world: World, number: int = 0) -> str:
    return (world.directory / f"streams-{number}.log").read_text().splitlines()[-1]


async def ended(relay: Process, eventually: Eventually) -> int | None:
    await eventually(lambda: relay.returncode is not None)
    return relay.returncode


async def test_it_prints_the_configuration_and_says_that_nobody_uses_it(
    looked_after: World, eventually: Eventually
) -> None:
    relay = looked_after.relay()
    assert await ended(relay, eventually) == 2
    text = (looked_after.directory / "streams-0.log").read_text()
    printed, _ = json.JSONDecoder().raw_decode(text)
    assert printed == {"name": looked_after.settings.relay.name, "config": connector(looked_after.settings)}
    assert "does not exist in Kafka Connect: set connect.register to true" in last_line(looked_after)


async def test_a_connector_that_would_send_other_bytes_is_refused(
    looked_after: World, connect: ConnectWorker, eventually: Eventually
) -> None:
    settings = looked_after.settings
    rest = Connect(connect.url, settings.relay.name)
    await rest.register(connector(settings) | {"extended.headers.enabled": "true"})
    relay = looked_after.relay()
    assert await ended(relay, eventually) == 2
    assert "extended.headers.enabled is 'true': set it to 'false'" in last_line(looked_after)
    # Mended, it is looked after; changed later, the relay says so and ends.
    await rest.register(connector(settings))
    second = looked_after.relay()
    await eventually(leads(looked_after, second))
    await rest.register(connector(settings) | {"key.converter": "org.apache.kafka.connect.json.JsonConverter"})
    assert await ended(second, eventually) == 2
    assert "key.converter is 'org.apache.kafka.connect.json.JsonConverter'" in last_line(looked_after, 1)


async def test_connect_that_does_not_answer_ends_the_start(looked_after: World, eventually: Eventually) -> None:
    relay = looked_after.relay(STREAMS_CONNECT__URL="http://127.0.0.1:1")
    assert await ended(relay, eventually) == 3
    assert "Kafka Connect at http://127.0.0.1:1 cannot be reached" in last_line(looked_after)


async def test_a_failed_task_is_named_and_another_relay_can_take_over(
    looked_after: World, eventually: Eventually
) -> None:
    relay = looked_after.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(looked_after.url, looked_after.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(looked_after, ids), 60)
    # No record can carry this timestamp: Debezium's task ends, and again at each start.
    [(broken,)] = looked_after.query(
        "INSERT INTO outbox (biz_type, topic, key, payload, created_at) VALUES ('x', %s, 'c', '{}', '1900-01-01')"
        " RETURNING id",
        looked_after.topic,
    )
    ids += enqueue(looked_after.url, looked_after.topic, [payload(n, "c") for n in range(10)])
    log = looked_after.directory / "streams-0.log"
    await eventually(lambda: "state=FAILED" in log.read_text(), 60)
    assert "Invalid record timestamp" in log.read_text()
    assert relay.running
    await relay.stop(grace=15)
    looked_after.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(looked_after, ids))
    dead = looked_after.query("SELECT outbox_id, status FROM outbox_state")
    assert dead == [(broken, "dead")]


async def test_stopped_in_order_it_gives_the_slot_to_whoever_comes_next(
    looked_after: World, eventually: Eventually
) -> None:
    relay = looked_after.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 3}") for n in range(50)])
    await eventually(published(looked_after, ids), 60)
    await relay.stop(grace=15)
    assert relay.returncode == 0
    looked_after.relay(STREAMS_RELAY__MODE="cdc")
    ids += enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 3}") for n in range(50)])
    await eventually(published(looked_after, ids))
    check_order(looked_after, ids)


async def test_a_slot_lost_under_our_connector_is_healed_by_polling(
    looked_after: World, eventually: Eventually
) -> None:
    relay = looked_after.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(looked_after, ids), 60)
    await drop(looked_after, eventually)
    log = looked_after.directory / "streams-0.log"
    await eventually(lambda: "does not exist" in log.read_text(), 10)
    ids += enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(looked_after, ids), 60)
    await eventually(lambda: looked_after.query("SELECT mode FROM relay_position") == [("debezium",)], 60)
    ids += enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(looked_after, ids), 60)
    check_order(looked_after, ids)
    await eventually(lambda: looked_after.query("SELECT floor FROM relay_position") == [(ids[-1],)])
    assert relay.running


async def test_a_slot_lost_under_another_ones_connector_stops_the_relay_with_what_to_do(
    looked_after: World, connect: ConnectWorker, eventually: Eventually
) -> None:
    settings = looked_after.settings
    await Connect(connect.url, settings.relay.name).register(connector(settings))
    relay = looked_after.relay()
    ids = enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(looked_after, ids), 60)
    await eventually(leads(looked_after, relay))
    await Connect(connect.url, settings.relay.name).stop()
    await drop(looked_after, eventually)
    assert await ended(relay, eventually) == 2
    assert "stop its connector and run `streams relay --mode cdc`" in last_line(looked_after)
    ids += enqueue(looked_after.url, looked_after.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    looked_after.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(looked_after, ids))
    check_order(looked_after, ids)
