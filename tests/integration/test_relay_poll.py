"""A polling relay that ends in the middle of a backlog.

What is with the broker is not sent again.
"""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.testing.services import UNSAFE
from tests.conftest import Eventually, World
from tests.contract.test_relay_contract import on_topic, published
from tests.fixtures.publish import CHAT

ROWS = 150_000


@pytest.fixture
async def backlog(world: World, eventually: Eventually) -> tuple[World, Process]:
    """Many passes of rows, and a relay that has published some of them."""
    world.environ |= {"STREAMS_RELAY__MODE": "poll", "STREAMS_RELAY__FLOOR_INTERVAL": "0.1"}
    world.migrate()
    world.query(
        "INSERT INTO outbox (biz_type, topic, key, payload) SELECT %s, %s, 'c' || n %% 500, '{}'"
        " FROM generate_series(1, %s) AS n",
        *(CHAT, world.topic, ROWS),
    )
    relay = world.relay()
    await eventually(lambda: floor(world) > 0)
    return world, relay


def floor(world: World) -> int:
    return int(world.query("SELECT coalesce(max(floor), 0) FROM relay_position")[0][0])


@pytest.mark.long
async def test_neither_sigterm_nor_kill_9_begins_the_backlog_again(
    backlog: tuple[World, Process], eventually: Eventually
) -> None:
    """After SIGTERM nothing is sent twice; after kill -9 what was sent behind the saved floor."""
    world, relay = backlog
    await relay.stop(signal.SIGTERM, grace=30)
    assert relay.returncode == 0
    assert floor(world) < ROWS, "it was not in the middle"
    # Every id of this table was committed, so the floor counts what is published.
    stopped = floor(world)
    assert len(on_topic(world)) == stopped
    second = world.relay()
    await eventually(lambda: floor(world) > stopped)
    second.kill()
    saved, sent = floor(world), len(on_topic(world))
    assert stopped < saved <= sent < ROWS
    world.relay()
    await eventually(lambda: floor(world) == ROWS, 60)
    # Not by their number: the broker may still have worked what the killed one had sent.
    times = Counter(record.id for record in on_topic(world))
    assert times.keys() == set(range(1, ROWS + 1))
    assert min((each for each, count in times.items() if count > 1), default=ROWS) > saved
    assert max(times.values()) <= 2


@pytest.mark.long
async def test_a_published_row_survives_a_crash_of_the_server(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    """A row is visible before it is durable, for who commits asynchronously.

    Its id would be drawn again for another.
    """
    async with PostgresServer(
        tmp_path / "asynchronous", settings={**UNSAFE, "wal_writer_delay": "10s"}, trusting=True
    ) as server:
        world.environ |= {"DATABASE_URL": server.url, "STREAMS_RELAY__MODE": "poll"}
        world.migrate()
        world.relay()
        await eventually(
            lambda: world.query("SELECT pid FROM relay_position WHERE doing <> 'waiting'")
        )
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            connection.execute("CREATE PUBLICATION others")
            connection.execute("SELECT pg_create_logical_replication_slot('others', 'pgoutput')")
            for _ in range(5):
                insert = (
                    "INSERT INTO outbox (biz_type, topic, key, payload) VALUES (%s, %s, 'c', '{}')"
                    " RETURNING id"
                )
                [[outbox_id]] = connection.execute(insert, [CHAT, world.topic]).fetchall()
                await eventually(published(world, [outbox_id]))
            server.kill()
        await server.start()
        assert world.query("SELECT max(id) FROM outbox") == [(outbox_id,)]
        changes = "pg_logical_slot_get_binary_changes('others', NULL, NULL, 'proto_version', '1',"
        options = "'publication_names', 'others', 'messages', 'true')"
        messages = world.query(
            f"SELECT count(*) FROM {changes} {options} WHERE substring(data FOR 1) = 'M'"
        )
        assert messages == [(0,)], "who else reads this database's log would publish them"
