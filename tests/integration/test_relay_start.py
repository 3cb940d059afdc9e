"""What stops a relay from starting: one line, and an exit code.

The line names the statement or setting that mends it.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from streams.broker import kafka
from streams.dev.ports import HOST
from streams.dev.postgres import PostgresServer
from streams.errors import NotMigrated, ServiceUnreachable, StreamsError, UsageError
from streams.registry import configured
from streams.relay import Relay
from streams.testing.services import UNSAFE
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import check_order, published
from tests.fixtures.proxy import Proxy
from tests.fixtures.publish import enqueue, payload


async def refusal(world: World) -> StreamsError:
    """What a relay says instead of starting."""
    settings = world.settings
    with pytest.raises(StreamsError) as caught:
        await Relay(settings, configured(settings), "cdc").run()
    assert "\n" not in str(caught.value)
    return caught.value


MENDED = [
    ("DROP PUBLICATION outbox_pub", NotMigrated, "streams migrate"),
    (
        "ALTER PUBLICATION outbox_pub SET (publish = 'insert, update')",
        UsageError,
        "SET (publish = 'insert'",
    ),
    (
        "ALTER PUBLICATION outbox_pub SET (publish = 'delete')",
        UsageError,
        "SET (publish = 'insert'",
    ),
    (
        "ALTER PUBLICATION outbox_pub SET (publish_via_partition_root = false)",
        UsageError,
        "publish_via_partition_root",
    ),
    ("ALTER PUBLICATION outbox_pub ADD TABLE agent_chats", UsageError, "SET TABLE outbox"),
    ("ALTER PUBLICATION outbox_pub SET TABLE agent_chats", UsageError, "SET TABLE outbox"),
    (
        "ALTER PUBLICATION outbox_pub SET TABLE outbox WHERE (id > 5)",
        UsageError,
        "SET TABLE outbox",
    ),
    ("ALTER PUBLICATION outbox_pub SET TABLE outbox (id, key)", UsageError, "SET TABLE outbox"),
    ("DROP TABLE outbox_streams_version", NotMigrated, "streams migrate"),
]


@pytest.mark.parametrize(("statement", "kind", "remedy"), MENDED, ids=[case[0] for case in MENDED])
async def test_a_database_that_does_not_fit(
    world: World, statement: str, kind: type[StreamsError], remedy: str
) -> None:
    world.migrate()
    world.query(statement)
    error = await refusal(world)
    assert isinstance(error, kind)
    assert remedy in str(error)
    assert error.exit_code == 2


async def test_a_missing_slot(world: World, name: str) -> None:
    world.migrate()
    world.query("SELECT pg_drop_replication_slot(%s)", name)
    error = await refusal(world)
    assert (
        error.exit_code,
        f"slot {name} does not exist: run `streams migrate`" in str(error),
    ) == (2, True)


async def test_a_slot_of_another_system(world: World, name: str) -> None:
    world.migrate()
    world.query("SELECT pg_drop_replication_slot(%s)", name)
    world.query("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", name)
    error = await refusal(world)
    assert (error.exit_code, "set relay.name" in str(error)) == (2, True)


async def test_a_role_without_the_privilege(world: World, name: str) -> None:
    world.migrate()
    world.query(f"CREATE ROLE {name} LOGIN IN ROLE pg_read_all_data")
    try:
        world.environ["DATABASE_URL"] = world.url.replace("postgres@", f"{name}@")
        error = await refusal(world)
    finally:
        world.environ["DATABASE_URL"] = world.url.replace(f"{name}@", "postgres@")
        world.query(f"DROP ROLE {name}")
    assert (error.exit_code, f"ALTER ROLE {name} REPLICATION" in str(error)) == (2, True)


async def test_a_topic_with_another_partition_count(world: World) -> None:
    world.migrate()
    kafka.prepare_topics(world.settings, [world.topic])
    world.environ["STREAMS_TOPIC__PARTITIONS"] = "5"
    error = await refusal(world)
    assert (error.exit_code, "topics.chat-history.partitions to 8" in str(error)) == (2, True)


async def test_a_topic_that_gets_more_partitions_meanwhile(
    world: World, eventually: Eventually
) -> None:
    """Later messages of a conversation would go to another partition, and overtake."""
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="cdc")
    ids = enqueue(world.url, world.topic, [payload(0, "c")])
    await eventually(published(world, ids))
    admin = AdminClient(kafka.client(world.settings))
    [future] = admin.create_partitions([NewPartitions(world.topic, 12)]).values()
    future.result(10)
    await eventually(lambda: relay.returncode is not None, 60)
    last = (world.directory / "streams-0.log").read_text().splitlines()[-1]
    assert (relay.returncode, "has 12 partitions, faust.yml says 8" in last) == (2, True)


async def test_a_standby_is_no_primary(world: World) -> None:
    """On a server that is read only nothing is begun.

    It knows no writers, and its floor would be wrong.
    """
    world.migrate()
    [(database,)] = world.query("SELECT current_database()")
    world.query(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    error = await refusal(world)
    assert (error.exit_code, "read-only" in str(error)) == (3, True)


async def test_a_right_that_was_forgotten(world: World, name: str) -> None:
    world.migrate()
    tables = "outbox, outbox_streams_version"
    world.query(f"CREATE ROLE {name} LOGIN REPLICATION; GRANT SELECT ON {tables} TO {name}")
    try:
        world.environ["DATABASE_URL"] = world.url.replace("postgres@", f"{name}@")
        error = await refusal(world)
    finally:
        world.environ["DATABASE_URL"] = world.url.replace(f"{name}@", "postgres@")
        world.query(f"DROP OWNED BY {name}; DROP ROLE {name}")
    assert (error.exit_code, "refuses: permission denied for" in str(error)) == (2, True)


async def test_services_that_do_not_answer(world: World) -> None:
    world.migrate()
    world.environ["BROKER_URL"] = f"{HOST}:1"
    error = await refusal(world)
    assert isinstance(error, ServiceUnreachable)
    assert "Kafka" in str(error)
    world.environ["DATABASE_URL"] = f"postgresql://postgres:secret-canary@{HOST}:1/x"
    error = await refusal(world)
    assert isinstance(error, ServiceUnreachable)
    assert "PostgreSQL" in str(error)
    assert "canary" not in str(error)


async def test_a_server_without_logical_decoding(world: World, tmp_path: Path) -> None:
    async with PostgresServer(
        tmp_path / "replica", settings={**UNSAFE, "wal_level": "replica"}, trusting=True
    ) as server:
        world.environ["DATABASE_URL"] = server.url
        world.migrate()
        error = await refusal(world)
    assert (error.exit_code, "ALTER SYSTEM SET wal_level = 'logical'" in str(error)) == (2, True)


async def test_the_command_ends_with_one_line_and_the_code(
    world: World, eventually: Eventually
) -> None:
    relay = world.start("streams", "relay", "--mode", "cdc")
    await eventually(lambda: relay.returncode is not None, 60)
    assert relay.returncode == 2
    [line] = (world.directory / "streams-0.log").read_text().splitlines()
    assert line == "streams: publication outbox_pub does not exist: run `streams migrate`"


async def test_a_publication_dropped_later_ends_it_and_what_it_missed_is_sent(
    world: World, eventually: Eventually
) -> None:
    """PostgreSQL 18 goes on without a word, and skips rows."""
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="cdc")
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids))
    world.query("DROP PUBLICATION outbox_pub")
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(lambda: relay.returncode is not None, 60)
    assert relay.returncode == 2
    last = (world.directory / "streams-0.log").read_text().splitlines()[-1]
    assert last == "streams: publication outbox_pub does not exist: run `streams migrate`"
    world.migrate()
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(published(world, ids))
    check_order(world, ids)


async def test_in_mode_auto_it_polls_while_there_is_no_publication(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_RELAY__MODE="auto")
    ids = enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids))
    world.query("DROP PUBLICATION outbox_pub")
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids))
    world.migrate()
    doing = "SELECT mode, doing FROM relay_position"
    await eventually(lambda: world.query(doing) == [("cdc", "streaming")])
    ids += enqueue(world.url, world.topic, [payload(n, "c") for n in range(10)])
    await eventually(published(world, ids))
    check_order(world, ids)
    assert relay.running


async def test_connections_are_closed_when_it_does_not_start(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    world.query("DROP PUBLICATION outbox_pub")
    await refusal(world)
    # Clients only, for an autovacuum may run; a server process ends a moment after its client.
    others = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND backend_type IN ('client backend', 'walsender')"
    )
    await eventually(lambda: world.query(others) == [(0,)])


# Less than the waits that a signal has to interrupt: 10 s for brokers, 5 s for an answer of Kafka.
AT_ONCE = 4.0


async def test_who_waits_for_brokers_hears_that_it_has_to_stop(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    relay = world.relay(STREAMS_TOPIC__REPLICATION_FACTOR="3")
    log = world.directory / "streams-0.log"
    await eventually(lambda: "brokers are missing, waiting for them" in log.read_text())
    await relay.stop(signal.SIGTERM, grace=AT_ONCE)
    assert relay.returncode == 0, log.read_text()


async def test_who_asks_a_kafka_that_does_not_answer_hears_that_it_has_to_stop(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    with Proxy("tcp://nowhere:1") as kafka_net:
        kafka_net.blackhole()
        relay = world.relay(BROKER_URL=f"{HOST}:{kafka_net.port}")
        await eventually(lambda: kafka_net.connections)
        await relay.stop(signal.SIGTERM, grace=AT_ONCE)
    assert relay.returncode == 0, (world.directory / "streams-0.log").read_text()


async def test_who_stands_by_hears_that_it_has_to_stop_while_the_database_is_silent(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    leader = world.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(lambda: "relay leads" in (world.directory / "streams-0.log").read_text())
    with Proxy(world.url) as network:
        relay = world.relay(STREAMS_RELAY__MODE="cdc", DATABASE_URL=network.url("postgres"))
        log = world.directory / "streams-1.log"
        await eventually(lambda: "relay stands by" in log.read_text())
        network.blackhole()
        await relay.stop(signal.SIGTERM, grace=20)
    assert relay.returncode == 0, log.read_text()
    assert leader.running
