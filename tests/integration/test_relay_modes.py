"""What the modes have to do with each other.

The same bytes, one leader whatever the modes, and what auto chooses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from streams.broker import kafka
from streams.database import migrate
from streams.dev.connect import ConnectWorker
from streams.registry import configured
from streams.relay.debezium.rest import Connect
from streams.settings import load
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import check_order, confirmed, leads, on_topic, published
from tests.fixtures.publish import CHAT, commit, enqueue, payload

PAGE = Path(__file__).parents[2] / "docs" / "relays.md"
PRIVILEGES = re.findall(
    r"^```sql\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
)

ODD = """
INSERT INTO outbox (biz_type, topic, key, payload, traceparent, resend_of, created_at) VALUES
    (%s, %s, 'k\u00e9', '{"a":  1, "b": "\\u00e9 \U0001f40d", "a": 2}', NULL, NULL,
     '2026-01-31 12:00:00'),
    (%s, %s, 'k\u00e9', ' [1,2]
', '00-ab-cd-01', 1, '2026-01-31 12:00:00.5'),
    (%s, %s, ' ', '"x"', '', NULL, '1970-01-02 00:00:00.001'),
    (%s, %s, 'c', 'null', NULL, NULL, '2999-12-31 23:59:59.999')
RETURNING id
"""


async def test_records_are_the_same_bytes_in_every_mode(
    world: World, connect: ConnectWorker, name: str, eventually: Eventually
) -> None:
    """Topic, partition, key, value, time, and headers with their names and order."""
    debezium = {
        "STREAMS_RELAY__MODE": "debezium",
        "STREAMS_RELAY__NAME": f"{name}d",
        "STREAMS_CONNECT__URL": connect.url,
        "STREAMS_CONNECT__REGISTER": "true",
    }
    for environ in (world.environ, world.environ | debezium):
        settings = load(environ=environ)
        list(migrate.migrate(settings, configured(settings)))
    ids = [row[0] for row in world.query(ODD, *(CHAT, world.topic) * 4)]
    ids += enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(200)])
    first = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(world, ids))
    await first.stop(grace=8)
    # All over again, by a relay whose beat goes on: without it the database would have gone back.
    world.query("UPDATE relay_position SET floor = 0, lsn = NULL, publication = NULL")
    second = world.relay(STREAMS_RELAY__MODE="poll")
    await eventually(lambda: len(on_topic(world)) == 2 * len(ids))
    await second.stop(grace=8)
    third = world.relay(**debezium)
    await eventually(lambda: len(on_topic(world)) == 3 * len(ids), 60)
    await third.stop(grace=12)
    await Connect(connect.url, f"{name}d").delete()
    records = on_topic(world)
    for one in ids:
        by_log, by_poll, by_debezium = [
            record._replace(offset=0) for record in records if record.id == one
        ]
        assert by_log == by_poll == by_debezium


@pytest.mark.long
async def test_relays_of_one_name_never_lead_together_whatever_their_modes(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    by_log = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(leads(world, by_log))
    by_poll = world.relay(STREAMS_RELAY__MODE="poll")
    await eventually(lambda: "relay stands by" in (world.directory / "streams-1.log").read_text())
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    await eventually(confirmed(world))
    by_log.kill()
    await eventually(leads(world, by_poll), 60)
    third = world.relay(STREAMS_RELAY__MODE="cdc")
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    await eventually(published(world, ids))
    by_poll.kill()
    await eventually(leads(world, third), 60)
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(50)])
    await eventually(published(world, ids))
    check_order(world, ids)


@pytest.fixture
def least(world: World) -> Iterator[str]:
    """The URL of the role that docs/relays.md makes, without REPLICATION."""
    world.migrate()
    world.environ["STREAMS_RELAY__SWEEP_INTERVAL"] = "0.5"
    create, _ = PRIVILEGES
    world.query(create)
    yield world.url.replace("postgres@", "outbox_relay@")
    for process in world.processes:
        process.kill()
    world.query("DROP OWNED BY outbox_relay; DROP ROLE outbox_relay")


async def test_the_least_privileges_of_polling_are_enough_and_auto_says_why_it_polls(
    world: World, least: str, eventually: Eventually
) -> None:
    relay = world.relay(STREAMS_RELAY__MODE="auto", DATABASE_URL=least)
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(200)])
    await eventually(published(world, ids))
    await eventually(
        lambda: world.query("SELECT mode, floor FROM relay_position") == [("poll", ids[-1])]
    )
    log = world.directory / "streams-0.log"
    assert "ALTER ROLE outbox_relay REPLICATION" in log.read_text()
    lost(world)
    await eventually(lambda: "messages sent again" in log.read_text())
    await relay.stop(grace=8)
    world.relay(STREAMS_RELAY__MODE="poll", STREAMS_RELAY__SHARDS="2", DATABASE_URL=least)
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(200)])
    await eventually(published(world, ids))


@pytest.mark.parametrize("mode", ["cdc", pytest.param("debezium", marks=pytest.mark.long)])
async def test_the_least_privileges_of_a_relay_that_reads_the_log_are_enough(
    world: World, least: str, connect: ConnectWorker, eventually: Eventually, mode: str
) -> None:
    _, replicate = PRIVILEGES
    world.query(replicate)
    debezium = {"STREAMS_CONNECT__URL": connect.url, "STREAMS_CONNECT__REGISTER": "true"}
    relay = world.relay(
        STREAMS_RELAY__MODE=mode, DATABASE_URL=least, **(debezium if mode == "debezium" else {})
    )
    ids = enqueue(world.url, world.topic, [payload(n, f"c{n % 9}") for n in range(200)])
    await eventually(published(world, ids), 60)
    await eventually(
        lambda: world.query("SELECT mode, floor FROM relay_position") == [(mode, ids[-1])]
    )
    log = world.directory / "streams-0.log"
    lost(world)
    await eventually(lambda: "messages sent again" in log.read_text())
    await relay.stop(grace=15)
    if mode == "debezium":
        await Connect(connect.url, world.settings.relay.name).delete()


def lost(world: World) -> None:
    """The workers committed past everything on the topic, and no message has a fate."""
    settings = world.settings
    consumer = Consumer(kafka.client(settings, group_id="nobody"))
    places = [TopicPartition(world.topic, number) for number in range(settings.topic.partitions)]
    ends = {
        place.partition: consumer.get_watermark_offsets(place, timeout=10)[1] for place in places
    }
    consumer.close()
    commit(settings.broker_url, settings.worker.group, world.topic, ends)


async def test_an_idle_outbox_holds_back_no_wal(world: World, eventually: Eventually) -> None:
    world.migrate()
    world.relay()
    world.query("CREATE TABLE other AS SELECT repeat('x', 500) FROM generate_series(1, 20000)")
    await eventually(confirmed(world))
