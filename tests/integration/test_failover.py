"""Two real nodes: what a failover keeps, relay and worker go on with; what it lost is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from streams.dev.postgres import PostgresServer
from streams.dev.wheels import postgres_bin
from streams.testing.services import UNSAFE
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import on_topic
from tests.fixtures.publish import enqueue, payload
from tests.integration.test_gone_back import persisted, said


@dataclass
class Nodes:
    """A primary, and a standby that follows it and its failover slots."""

    primary: PostgresServer
    standby: PostgresServer

    @property
    def url(self) -> str:
        """Both: whoever connects is given the one that takes writes."""
        return f"postgresql://postgres@127.0.0.1:{self.primary.port},127.0.0.1:{self.standby.port}/streams"


def ask(url: str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """One statement on this node."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        cursor = connection.execute(statement.encode(), parameters)
        return cursor.fetchall() if cursor.description else []


@pytest.fixture
async def nodes(world: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Nodes]:
    """Both running, and the database migrated."""
    directory = tmp_path_factory.mktemp("nodes")
    primary = PostgresServer(
        directory / "one", settings={**UNSAFE, "synchronized_standby_slots": "two"}, trusting=True
    )
    async with primary:
        ask(primary.url, "SELECT pg_create_physical_replication_slot('two', true)")
        standby = await follow(primary, directory / "two")
        async with standby:
            found = Nodes(primary, standby)
            world.environ["DATABASE_URL"] = primary.url
            world.migrate()
            world.environ["DATABASE_URL"] = found.url
            yield found


async def follow(primary: PostgresServer, directory: Path) -> PostgresServer:
    """A standby of this primary, to be started."""
    directory.mkdir()
    command = [
        postgres_bin() / "pg_basebackup",
        "-D",
        directory / "data",
        "-h",
        "127.0.0.1",
        "-p",
        primary.port,
    ]
    process = await asyncio.create_subprocess_exec(
        *map(str, [*command, "-U", "postgres", "-c", "fast", "--no-sync"])
    )
    assert await process.wait() == 0
    (directory / "data" / "standby.signal").touch()
    where = make_conninfo(host="127.0.0.1", port=primary.port, user="postgres", dbname="streams")
    settings = {
        "primary_conninfo": where,
        "primary_slot_name": "two",
        "sync_replication_slots": "on",
        **UNSAFE,
        "hot_standby_feedback": "on",
        "wal_receiver_status_interval": "1s",
    }
    return PostgresServer(directory, settings=settings, trusting=True)


def messages(nodes: Nodes, world: World, key: str) -> list[int]:
    """Commit ten messages of one conversation on the primary."""
    return enqueue(nodes.primary.url, world.topic, [payload(n, key) for n in range(10)])


@pytest.mark.long
async def test_a_failover_that_lost_nothing_goes_on_by_itself(
    nodes: Nodes, world: World, eventually: Eventually
) -> None:
    relay, worker = world.relay(STREAMS_RELAY__MODE="cdc"), world.worker()
    first = messages(nodes, world, "first")
    await eventually(persisted(world, first), 60)
    slot = world.settings.relay.name
    assert ask(
        nodes.primary.url, "SELECT failover FROM pg_replication_slots WHERE slot_name = %s", slot
    ) == [(True,)]
    ready = "SELECT synced AND NOT temporary FROM pg_replication_slots WHERE slot_name = %s"

    def followed() -> bool:
        """Whether the standby keeps the slot: it waits for a snapshot newer than its own."""
        ask(nodes.primary.url, "SELECT pg_log_standby_snapshot()")
        return ask(nodes.standby.url, ready, slot) == [(True,)]

    await eventually(followed, 120, every=0.5)

    last = messages(nodes, world, "last")
    await eventually(persisted(world, last), 60)
    newest = ask(nodes.primary.url, "SELECT pg_current_wal_insert_lsn()")[0][0]
    caught_up = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
    await eventually(lambda: ask(nodes.standby.url, caught_up, newest) == [(True,)])
    nodes.primary.kill()
    ask(nodes.standby.url, "SELECT pg_promote()")

    after = enqueue(nodes.standby.url, world.topic, [payload(n, "after") for n in range(10)])
    await eventually(persisted(world, after), 90)
    assert relay.running
    assert worker.running
    assert world.query(
        "SELECT count(*), count(DISTINCT outbox_id) FROM outbox_state WHERE status = 'consumed'"
    ) == [(30, 30)]
    assert world.query("SELECT count(*) FROM chat_histories") == [(30,)]
    assert {record.id for record in on_topic(world)} == {*first, *last, *after}


async def test_nothing_is_published_that_the_standby_lacks(
    nodes: Nodes, world: World, eventually: Eventually
) -> None:
    world.relay(STREAMS_RELAY__MODE="cdc")
    first = messages(nodes, world, "first")
    await eventually(lambda: {record.id for record in on_topic(world)} == set(first), 60)
    await nodes.standby.stop()
    kept = messages(nodes, world, "kept")
    moved = "SELECT heartbeat FROM relay_position"
    [(before,)] = ask(nodes.primary.url, moved)
    later = "SELECT heartbeat > %s::timestamptz + interval '3 seconds' FROM relay_position"
    await eventually(lambda: ask(nodes.primary.url, later, before) == [(True,)])
    assert {record.id for record in on_topic(world)} == set(first)
    await nodes.standby.start()
    await eventually(lambda: {record.id for record in on_topic(world)} == {*first, *kept}, 60)


async def test_a_failover_that_lost_the_last_second_is_refused(
    nodes: Nodes, world: World, eventually: Eventually
) -> None:
    # Polling reads what is committed, whatever the standby has.
    relay, worker = world.relay(STREAMS_RELAY__MODE="poll"), world.worker()
    await eventually(persisted(world, messages(nodes, world, "first")), 60)
    await nodes.standby.stop()
    await eventually(persisted(world, messages(nodes, world, "lost")), 60)
    [(counted,)] = ask(nodes.primary.url, "SELECT beat FROM relay_position")
    later = "SELECT beat > %s FROM relay_position"
    await eventually(lambda: ask(nodes.primary.url, later, counted + 1) == [(True,)])
    nodes.primary.kill()
    await nodes.standby.start()
    ask(nodes.standby.url, "SELECT pg_promote()")
    await eventually(lambda: relay.returncode is not None and worker.returncode is not None, 60)
    assert (relay.returncode, worker.returncode) == (2, 70)
    assert "the database went back" in said(world, relay)
    assert "the database went back" in said(world, worker)


async def test_a_slot_from_before_goes_along_once_a_relay_streams(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    slot = world.settings.relay.name
    world.query("SELECT pg_drop_replication_slot(%s)", slot)
    world.query("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", slot)
    world.relay(STREAMS_RELAY__MODE="cdc")
    failover = "SELECT failover FROM pg_replication_slots WHERE slot_name = %s"
    await eventually(lambda: world.query(failover, slot) == [(True,)], 60)
