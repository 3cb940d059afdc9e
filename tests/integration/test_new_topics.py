"""A biz_type that was registered after the relay had started.

Its topic is made, or waited for, and nothing is dead.
"""

from __future__ import annotations

import pytest
from confluent_kafka.admin import AdminClient

from streams.broker import kafka
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import published
from tests.fixtures.command import streams
from tests.fixtures.publish import enqueue, payload

MODES = pytest.mark.parametrize("mode", ["cdc", "poll"])
REGISTER = (
    "INSERT INTO outbox_biz_types (biz_type, topic, max_bytes, partitions, replication_factor,"
    " retention_hours) VALUES (%s, %s, 1000, %s, %s, 24)"
)
WAITING = "SELECT doing, reason IS NOT NULL FROM relay_position"
STATES = "SELECT outbox_id, status, error_code FROM outbox_state"


def register(world: World, topic: str, partitions: int | None, factor: int | None = 1) -> None:
    world.query(REGISTER, topic, topic, partitions, factor)


def send(world: World, topic: str) -> int:
    return enqueue(world.url, topic, [payload(0, "c1")], biz_type=topic)[0]


def partitions(world: World, topic: str) -> int:
    """How many the topic has, 0 when there is none."""
    topics = AdminClient(kafka.client(world.settings)).list_topics(timeout=10).topics
    return len(topics[topic].partitions) if topic in topics else 0


@MODES
async def test_its_topic_is_made_as_it_was_registered(
    world: World, eventually: Eventually, mode: str
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = mode
    world.migrate()
    world.relay()
    before = enqueue(world.url, world.topic, [payload(0, "c1")])
    await eventually(published(world, before), 60)
    likes = f"{world.settings.broker.topic_prefix}likes"
    register(world, likes, 3)
    send(world, likes)
    after = enqueue(world.url, world.topic, [payload(1, "c1")])
    await eventually(published(world, before + after), 60)
    assert partitions(world, likes) == 3
    assert world.query(STATES) == []


async def test_a_topic_that_cannot_be_made_is_waited_for_loudly(
    world: World, eventually: Eventually
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = "cdc"
    world.migrate()
    relay = world.relay()
    old, wide = (f"{world.settings.broker.topic_prefix}{name}" for name in ("old", "wide"))
    register(world, old, None)
    register(world, wide, 3, 7)
    send(world, old)
    send(world, wide)
    after = enqueue(world.url, world.topic, [payload(1, "c1")])
    log = world.directory / "streams-0.log"

    await eventually(lambda: "topic missing, the relay waits" in log.read_text(), 60)
    # What it says of itself is written down twice a second; it waits without a word as it begins.
    await eventually(lambda: world.query(WAITING) == [("waiting", True)])
    waiting = await streams(world, "relay", "status")
    assert waiting.code == 1
    assert (
        f"is waiting: topic {old} of biz_type {old} does not exist, and nobody has registered"
        in waiting.error
    )
    assert world.query(STATES) == []
    # A worker of the newer version starts.
    world.query(
        "UPDATE outbox_biz_types SET partitions = 2, replication_factor = 1, retention_hours = 24"
        " WHERE topic = %s",
        old,
    )
    await eventually(lambda: partitions(world, old) == 2, 60)

    await eventually(lambda: "replication factor 7" in log.read_text(), 60)
    assert world.query(STATES) == []
    world.query("UPDATE outbox_biz_types SET retired_at = now() WHERE topic = %s", wide)
    await eventually(published(world, after), 60)
    assert [row[1:] for row in world.query(STATES)] == [("dead", "unpublishable")]
    await eventually(lambda: world.query(WAITING)[0][0] != "waiting")
    assert (await streams(world, "relay", "status")).code == 0
    assert relay.running


async def test_a_topic_that_nobody_registered_costs_its_own_message(
    world: World, eventually: Eventually
) -> None:
    world.environ["STREAMS_RELAY__MODE"] = "poll"
    world.migrate()
    world.relay()
    dead = send(world, "nobody")
    after = enqueue(world.url, world.topic, [payload(1, "c1")])
    await eventually(published(world, after), 60)
    assert world.query(STATES) == [(dead, "dead", "unpublishable")]
