"""A connector that is missing, different, failed or changed.

One clear line each, and what can be mended is mended.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator

import pytest

from streams.dev.connect import ConnectWorker
from streams.dev.process import Process
from streams.errors import UsageError
from streams.relay.debezium import supervisor
from streams.relay.debezium.config import DATABASE, connector
from streams.relay.debezium.rest import Connect, State
from streams.relay.debezium.supervisor import ConnectorSupervisor
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import check_order, leads, published
from tests.fixtures.publish import enqueue, payload
from tests.integration.test_relay_healing import drop


@pytest.fixture
async def world(world: World, connect: ConnectWorker) -> AsyncIterator[World]:
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
    await eventually(lambda: relay.returncode is not None, 60)
    return relay.returncode


async def test_it_prints_the_configuration_and_says_that_nobody_uses_it(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay()
    assert await ended(relay, eventually) == 2
    text = (world.directory / "streams-0.log").read_text()
    printed, _ = json.JSONDecoder().raw_decode(text)
    assert printed == {"name": world.settings.relay.name, "config": connector(world.settings)}
    assert "does not exist in Kafka Connect: set connect.register to true" in last_line(world)


@pytest.mark.long
async def test_a_connector_that_would_send_other_bytes_is_refused(
    world: World, connect: ConnectWorker, eventually: Eventually
) -> None:
    settings = world.settings
    rest = Connect(connect.url, settings.relay.name)
    await rest.register(connector(settings) | {"extended.headers.enabled": "true"})
    relay = world.relay()
    assert await ended(relay, eventually) == 2
    assert "extended.headers.enabled is 'true': set it to 'false'" in last_line(world)
    # Mended, it is looked after; changed later, the relay says so and ends.
    await rest.register(connector(settings))
    second = world.relay()
    await eventually(leads(world, second))
    await rest.register(
        connector(settings) | {"key.converter": "org.apache.kafka.connect.json.JsonConverter"}
    )
    assert await ended(second, eventually) == 2
    assert "key.converter is 'org.apache.kafka.connect.json.JsonConverter'" in last_line(world, 1)


async def test_connect_that_does_not_answer_ends_the_start(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay(STREAMS_CONNECT__URL="http://127.0.0.1:1")
    assert await ended(relay, eventually) == 3
    assert "Kafka Connect at http://127.0.0.1:1 cannot be reached" in last_line(world)


async def test_a_failed_task_is_named_and_another_relay_can_take_over(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids), 60)
    # No record can carry this timestamp: Debezium's task ends, and again at each start.
    [(broken,)] = world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload, created_at)"
        " VALUES ('x', %s, 'c', '{}', '1900-01-01') RETURNING id",
        world.topic,
    )
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    log = world.directory / "streams-0.log"
    await eventually(lambda: "state=FAILED" in log.read_text(), 60)
    assert "Invalid record timestamp" in log.read_text()
    assert relay.running
    await relay.stop(grace=15)
    world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(world, ids))
    dead = world.query("SELECT outbox_id, status FROM outbox_state")
    assert dead == [(broken, "dead")]


async def test_a_connector_of_another_database_is_left_to_it(
    world: World,
    connect: ConnectWorker,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two deployments with one relay.name at one Kafka Connect."""
    rest = Connect(connect.url, world.settings.relay.name)
    theirs = {**connector(world.settings), DATABASE: "1/2/3", "poll.interval.ms": "7"}
    line = (
        f"connector {world.settings.relay.name} of Kafka Connect publishes the outbox of another"
        " database (1/2/3): set relay.name to one that nobody has"
    )
    await rest.register(theirs)
    for _ in range(100):
        if (await rest.state()).name == "RUNNING":
            break
        await asyncio.sleep(0.1)
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    assert await ended(relay, eventually) == 2
    assert line in last_line(world)
    assert theirs.items() <= (await rest.configuration() or {}).items()
    world.environ |= {"STREAMS_CONNECT__URL": connect.url, "STREAMS_CONNECT__REGISTER": "true"}
    with monkeypatch.context() as patched:

        async def failed(_: Connect) -> State:
            return State("FAILED", "its database is restarted")

        patched.setattr(Connect, "state", failed)
        with pytest.raises(UsageError, match=re.escape(line)):
            await ConnectorSupervisor(world.settings).begin()
    # What its relay has stopped may be taken.
    await rest.stop()
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids), 60)
    await rest.register(theirs)
    assert await ended(relay, eventually) == 2
    assert line in last_line(world, 1)


async def test_a_stop_of_the_leader_before_is_undone_and_one_of_an_operator_is_named(
    world: World,
    connect: ConnectWorker,
    eventually: Eventually,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No relay pauses it; a stop long after the relay has begun cannot be a relay's either."""
    rest = Connect(connect.url, world.settings.relay.name)
    standing = "SELECT doing, reason FROM relay_position"
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids), 60)
    await rest.stop()
    await eventually(lambda: "state=STOPPED" in (world.directory / "streams-0.log").read_text())
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids), 60)
    await eventually(lambda: world.query(standing) == [("connector", None)])
    await rest._ask("PUT", f"{rest._path}/pause")
    await eventually(lambda: world.query(standing)[0][0] == "waiting")
    assert f"{world.settings.relay.name} was paused" in world.query(standing)[0][1]
    assert (await rest.state()).name == "PAUSED"
    await rest.resume()
    await eventually(lambda: world.query(standing) == [("connector", None)])
    await relay.stop(grace=60)

    monkeypatch.setattr(supervisor, "HANDOVER_SECONDS", 0.0)
    world.environ["STREAMS_CONNECT__REGISTER"] = "true"
    connector_of_ours, told = ConnectorSupervisor(world.settings), list[str | None]()
    await connector_of_ours.begin()
    watching = asyncio.create_task(connector_of_ours.watch(told.append))
    await rest.stop()
    await eventually(lambda: any("was stopped" in (reason or "") for reason in told))
    await asyncio.wait([watching], timeout=1.5)
    assert (await rest.state()).name == "STOPPED"
    watching.cancel()
    await asyncio.wait([watching])


async def test_killed_it_loses_nothing_and_stopped_it_gives_the_slot_to_whoever_comes_next(
    world: World, connect: ConnectWorker, eventually: Eventually
) -> None:
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 3}") for n in range(50)])
    await eventually(published(world, ids), 60)
    relay.kill()
    connect.kill()
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 3}") for n in range(50)])
    await connect.restart()
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    await eventually(published(world, ids), 120)
    await eventually(leads(world, relay), 60)
    await relay.stop(grace=60)
    assert relay.returncode == 0
    world.relay(STREAMS_RELAY__MODE="cdc")
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 3}") for n in range(50)])
    await eventually(published(world, ids))
    check_order(world, ids)


@pytest.mark.long
async def test_a_slot_lost_under_our_connector_is_healed_by_polling(
    world: World, eventually: Eventually
) -> None:
    relay = world.relay(STREAMS_CONNECT__REGISTER="true")
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(world, ids), 60)
    await drop(world, eventually)
    log = world.directory / "streams-0.log"
    await eventually(lambda: "does not exist" in log.read_text())
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(world, ids), 60)
    await eventually(lambda: world.query("SELECT mode FROM relay_position") == [("debezium",)], 60)
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(world, ids), 60)
    check_order(world, ids)
    await eventually(lambda: world.query("SELECT floor FROM relay_position") == [(ids[-1],)])
    assert relay.running


@pytest.mark.long
async def test_a_slot_lost_under_another_ones_connector_stops_the_relay_with_what_to_do(
    world: World, connect: ConnectWorker, eventually: Eventually
) -> None:
    settings = world.settings
    await Connect(connect.url, settings.relay.name).register(connector(settings))
    relay = world.relay()
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    await eventually(published(world, ids), 60)
    await eventually(leads(world, relay))
    await Connect(connect.url, settings.relay.name).stop()
    await drop(world, eventually)
    assert await ended(relay, eventually) == 2
    assert "stop its connector and run `streams relay --mode cdc`" in last_line(world)
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 5}") for n in range(50)])
    world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(world, ids))
    check_order(world, ids)
