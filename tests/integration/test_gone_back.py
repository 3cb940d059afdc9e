"""A database that went back has the identity of the one it was.

The beat that Kafka keeps tells them apart.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import orjson
import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy.pool import NullPool

from streams.broker import beat, consumers, kafka, topics
from streams.database import sync_engine
from streams.dev.postgres import PostgresServer
from streams.dev.process import Process
from streams.operate import relay_adopt
from streams.testing.services import UNSAFE
from tests.conftest import Eventually, World
from tests.fixtures.command import streams
from tests.fixtures.copies import Copies
from tests.fixtures.publish import enqueue, payload


@pytest.fixture
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PostgresServer]:
    """A PostgreSQL server that a test may stop and set back."""
    async with PostgresServer(
        tmp_path_factory.mktemp("own"), settings=UNSAFE, trusting=True
    ) as found:
        yield found


@pytest.fixture
async def own(world: World, server: PostgresServer) -> World:
    """A world with a server of its own."""
    world.environ["DATABASE_URL"] = server.url
    world.migrate()
    return world


class Copy:
    """The data directory as it was at some moment."""

    def __init__(self, server: PostgresServer, directory: Path) -> None:
        self._server, self._copy = server, directory / "copy"
        self._data = server.directory / "data"

    async def take(self) -> None:
        """As a volume snapshot of a stopped server."""
        await self._server.stop()
        await asyncio.to_thread(shutil.copytree, self._data, self._copy)
        await self._server.restart()

    async def restore(self) -> None:
        """Put it back under whoever is connected."""
        await self._server.stop()
        await asyncio.to_thread(shutil.rmtree, self._data)
        await asyncio.to_thread(shutil.copytree, self._copy, self._data)
        await self._server.restart()


def persisted(world: World, ids: list[int]) -> Callable[[], bool]:
    """Whether all of these are consumed."""
    statement = (
        "SELECT count(*) FROM outbox_state WHERE status = 'consumed' AND outbox_id = ANY(%s)"
    )
    return lambda: world.query(statement, ids) == [(len(ids),)]


def said(world: World, process: Process) -> str:
    """All that this process wrote."""
    return process.log.read_text()


def messages(world: World, key: str) -> list[int]:
    """Commit ten messages of one conversation."""
    return enqueue(world.url, world.topic, [payload(n, key) for n in range(10)])


async def test_a_database_set_back_is_refused_by_relay_and_worker_until_it_is_adopted(
    own: World, server: PostgresServer, tmp_path: Path, eventually: Eventually
) -> None:
    relay, worker = own.relay(), own.worker()
    await eventually(persisted(own, messages(own, "before")), 60)
    copy = Copy(server, tmp_path)
    await copy.take()
    await eventually(persisted(own, messages(own, "lost")), 60)
    [(counted,)] = own.query("SELECT beat FROM relay_position")
    await eventually(
        lambda: own.query("SELECT beat > %s FROM relay_position", counted + 1) == [(True,)]
    )

    await copy.restore()
    await eventually(lambda: relay.returncode is not None and worker.returncode is not None, 60)
    assert (relay.returncode, worker.returncode) == (2, 70)
    assert "the database went back" in said(own, relay)
    assert "the database went back" in said(own, worker)
    relay, worker = own.relay(), own.worker()
    await eventually(lambda: relay.returncode is not None and worker.returncode is not None, 60)
    assert (relay.returncode, worker.returncode) == (2, 2)
    line = said(own, worker).splitlines()[-1]
    assert re.search(r"relay \S+ had counted to \d+, here to \d+, .* `streams relay adopt`", line)
    status = await streams(own, "relay", "status")
    assert (status.code, "the database went back" in status.error) == (1, True)
    assert "the database went back" in (await streams(own, "status")).out

    done = await streams(own, "relay", "adopt", "--yes", "--why", "a drill")
    assert done.code == 0, done.error
    assert "nothing to adopt" in (await streams(own, "relay", "adopt", "--yes")).out
    own.relay(), own.worker()
    await eventually(persisted(own, messages(own, "after")), 60)


def count_to(world: World, url: str, count: int, *, in_kafka: bool = True) -> str:
    """What a leader does in this database, and after its commit in Kafka; the identity."""
    name = world.settings.relay.name
    with psycopg.connect(url) as connection:
        connection.execute(
            "INSERT INTO relay_position (name, mode, beat) VALUES (%s, 'poll', %s)"
            " ON CONFLICT (name) DO UPDATE SET beat = excluded.beat",
            [name, count],
        )
        [(identity,)] = connection.execute("SELECT outbox_identity()").fetchall()
    if in_kafka:
        writer = beat.BeatWriter(world.settings)
        writer.write(name, beat.Beat(identity, count))
        writer.flush(10)
    return str(identity)


def looked(world: World, url: str) -> str:
    """Why this database is refused, if it is."""
    with sync_engine(url, poolclass=NullPool).connect() as connection:
        return beat.looked(world.settings, connection) or ""


def test_two_deployments_with_the_same_names_hide_no_database_that_went_back(
    world: World, copies: Copies
) -> None:
    """They share a broker, and with it the topic of beats."""
    beat.prepare_topic(world.settings)
    with copies.take() as other:
        for count in range(1, 4):
            count_to(world, world.url, count + 4)
            count_to(world, other, count)
        assert (looked(world, world.url), looked(world, other)) == ("", "")
        count_to(world, world.url, 6, in_kafka=False)
        assert "had counted to 7, here to 6" in looked(world, world.url)
        assert looked(world, other) == ""
        with sync_engine(world.url, poolclass=NullPool).connect() as connection:
            adoption = relay_adopt.plan(connection, world.settings, skip=1000)
        assert adoption is not None
        assert adoption.beat == 8


def test_beats_of_a_release_before_are_believed_and_written_for_it(world: World) -> None:
    """It knows them by the relay's name alone: the newest one, whichever database it is of."""
    settings = world.settings
    beat.prepare_topic(settings)
    identity = count_to(world, world.url, 7)
    topic, name = beat.topic(settings), settings.relay.name.encode()
    reader = Consumer(kafka.client(settings, group_id="none", enable_auto_commit=False))
    reader.assign([TopicPartition(topic, 0, 0)])
    records = {record.key(): record.value() for record in reader.consume(2, 10)}
    reader.close()
    assert set(records) == {name, name + b"/" + identity.encode()}
    assert [orjson.loads(value or b"") for value in records.values()] == [
        {"beat": 7, "identity": identity}
    ] * 2
    producer = Producer(kafka.client(settings))
    for other in ("1/2/3", identity):
        producer.produce(topic, key=name, value=orjson.dumps({"beat": 8, "identity": other}))
        producer.flush(10)
        refused = "had counted to 8, here to 7" in looked(world, world.url)
        assert refused == (other == identity)


async def test_a_worker_ends_when_another_database_answers_at_its_address(
    world: World, eventually: Eventually
) -> None:
    """A dump was restored, or the server upgraded; its name in the consumer group was the old."""
    world.migrate()
    worker = world.worker()
    others = partial(consumers.others, world.settings, "1/2/3", [world.topic])
    await eventually(others, 60)
    world.query(
        "CREATE OR REPLACE FUNCTION outbox_identity() RETURNS text LANGUAGE sql STABLE"
        " RETURN '4/5/6'"
    )
    world.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name = 'outbox-streams worker'"
    )
    await eventually(lambda: worker.returncode, 60)
    assert worker.returncode == 70
    assert "another database answers and the worker stops" in said(world, worker)


@pytest.mark.long
async def test_a_beat_that_kafka_lost_refuses_nobody_and_is_written_anew(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    relay = world.relay()
    await eventually(lambda: beat.read(world.settings), 60)
    topic, survey = beat.topic(world.settings), topics.Survey(world.settings)
    lost = survey.look([topic]).topics[topic].id
    admin = AdminClient(kafka.client(world.settings))
    admin.delete_topics([topic])[topic].result(30)

    def another() -> bool:
        """Whether there is another topic of that name: perhaps nobody saw that there was none."""
        made = survey.look([topic]).topics.get(topic)
        return made is not None and made.id != lost

    await eventually(another, 60)
    await eventually(lambda: beat.read(world.settings), 60)
    assert relay.running


@pytest.mark.long
async def test_kafka_never_counts_ahead_of_the_database(
    world: World, eventually: Eventually
) -> None:
    world.migrate()
    world.relay()
    await eventually(lambda: beat.read(world.settings), 60)
    for _ in range(10):
        [((_, known_as), known)] = beat.read(world.settings).items()
        [(counted, identity)] = world.query("SELECT beat, identity FROM relay_position")
        assert known_as == identity
        assert known <= counted
    await eventually(
        lambda: world.query("SELECT beat > %s FROM relay_position", counted) == [(True,)]
    )
