"""Relay, worker and audit at work on a database of LATIN1, and behind a pooler in session mode.

What a session of ours holds there, `test_sessions.py` and `test_pooler.py` have.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from streams.dev.postgres import PostgresServer
from streams.testing import services
from tests.conftest import Eventually, World
from tests.fixtures import pooler
from tests.fixtures.load import unsettled
from tests.fixtures.programs import program
from tests.fixtures.publish import enqueue, payload

MESSAGES = [
    payload(number, f"c{number % 3}", message=f"Ärger für {number}: ½ £ ñ ß") for number in range(9)
]
PERSISTED = "SELECT message_content FROM chat_histories ORDER BY outbox_id"


@pytest.fixture
def latin(world: World, postgres: PostgresServer, name: str) -> Iterator[World]:
    """A deployment on a new database that is encoded in LATIN1."""
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(
            sql.SQL(
                "CREATE DATABASE {} ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C'"
                " TEMPLATE template0"
            ).format(sql.Identifier(f"latin_{name}"))
        )
        url = postgres.url.rpartition("/")[0] + f"/latin_{name}"
    yield replace(world, environ={**world.environ, "DATABASE_URL": url})
    for process in world.processes:
        process.kill()
    services._drop(postgres, f"latin_{name}")


@pytest.fixture
def pooled(world: World, tmp_path: Path) -> Iterator[str]:
    """The URL of the world's database behind PgBouncer in session mode."""
    program("pgbouncer", "pgbouncer", "/usr/sbin/pgbouncer")
    with pooler.pgbouncer(world.url, "session", tmp_path) as url:
        yield url


async def clean(world: World, eventually: Eventually) -> None:
    """The audit, run in the same environment, finds nothing."""
    audit = world.start("streams", "audit")
    await eventually(lambda: not audit.running, 60)
    assert audit.returncode == 0, audit.log.read_text()


@pytest.mark.long
async def test_latin1_keeps_what_it_can_write_and_enqueue_refuses_the_rest(
    latin: World, eventually: Eventually
) -> None:
    latin.migrate()
    relay = latin.relay()
    latin.worker()
    ids = enqueue(latin.url, latin.topic, MESSAGES)
    await eventually(lambda: unsettled(latin.query) == 0, 60)
    await relay.stop()
    latin.relay(STREAMS_RELAY__MODE="poll")
    ids += enqueue(latin.url, latin.topic, MESSAGES)
    await eventually(lambda: len(latin.query(PERSISTED)) == len(ids), 60)
    assert latin.query(PERSISTED) == [(message["message"],) for message in [*MESSAGES, *MESSAGES]]
    # The business learns of it, in its own transaction.
    with pytest.raises(psycopg.errors.UntranslatableCharacter):
        enqueue(f"{latin.url}?client_encoding=utf8", latin.topic, [payload(1, "c1", message="€")])
    await clean(latin, eventually)


async def test_behind_a_pooler_relay_and_worker_do_their_work(
    world: World, pooled: str, eventually: Eventually
) -> None:
    behind = replace(world, environ={**world.environ, "DATABASE_URL": pooled})
    behind.migrate()
    asked = behind.relay(STREAMS_RELAY__MODE="cdc")
    await eventually(lambda: not asked.running, 60)
    assert asked.returncode == 2
    assert "give the relay the URL of the server itself" in asked.last_words()
    relay = behind.relay()
    behind.worker()
    enqueue(pooled, world.topic, MESSAGES)
    await eventually(lambda: unsettled(world.query) == 0, 60)
    assert world.query(PERSISTED) == [(message["message"],) for message in MESSAGES]
    await clean(behind, eventually)
    assert "give the relay the URL of the server itself" in relay.log.read_text()
