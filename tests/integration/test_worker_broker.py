"""A worker and a broker that falls silent, wants a login, or has lost the end of a log."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions  # type: ignore[attr-defined]

from streams.broker import kafka
from streams.dev.kafka import KafkaBroker
from streams.dev.ports import HOST, free_port
from tests.conftest import Eventually, World
from tests.fixtures.load import offsets
from tests.fixtures.notes import Notes
from tests.fixtures.publish import commit


@pytest.fixture
def apart(world: World, broker: KafkaBroker) -> KafkaBroker:
    """A broker that this world has for itself."""
    world.environ["BROKER_URL"] = broker.url
    return broker


@contextmanager
def silent(broker: KafkaBroker) -> Iterator[None]:
    """Within this the broker keeps its connections and says nothing."""
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(broker.pid, signal.SIGCONT)


@pytest.mark.long
async def test_sigterm_while_the_broker_says_nothing_ends_it_soon(
    world: World, apart: KafkaBroker, tmp_path: Path, eventually: Eventually
) -> None:
    """There is something to commit, and nobody to take it."""
    world.environ["STREAMS_WORKER__COMMIT_INTERVAL"] = "60"
    notes = Notes(world, tmp_path)
    worker = world.worker()
    ids = notes.send("a", *[f"a{n}" for n in range(50)])
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    with silent(apart):
        await worker.stop(signal.SIGTERM, grace=20)
        assert worker.returncode == 0
    world.worker()
    ids += notes.send("a", "a50")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == [f"a{n}" for n in range(51)]


@pytest.mark.long
async def test_a_broker_that_says_nothing_for_long_ends_nothing(
    world: World, apart: KafkaBroker, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path)
    worker = world.worker()
    ids = notes.send("a", *[f"a{n}" for n in range(50)])
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    with silent(apart):
        await eventually(lambda: world.health()[0]["reasons"] == ["Kafka does not answer"], 30)
        await asyncio.sleep(35)
        assert worker.running
    ids += notes.send("a", "a50")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert worker.running


class Guarded(KafkaBroker):
    """A broker with a second listener, which wants a login."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, settings={"sasl.enabled.mechanisms": "PLAIN"})
        self.login = f"{HOST}:{free_port()}"

    def _properties(self, data: Path) -> Path:
        file = super()._properties(data)
        lines = dict(line.split("=", 1) for line in file.read_text().splitlines())
        for name in ("listeners", "advertised.listeners"):
            lines[name] += f",LOGIN://{self.login}"
        lines["listener.security.protocol.map"] += ",LOGIN:SASL_PLAINTEXT"
        lines["listener.name.login.plain.sasl.jaas.config"] = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required"
            ' user_app="secret-canary";'
        )
        file.write_text("".join(f"{name}={value}\n" for name, value in lines.items()))
        return file


@pytest.mark.long
async def test_relay_and_worker_log_in(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    world.migrate()
    guarded = Guarded(tmp_path / "broker")
    async with guarded:
        world.environ |= {
            "BROKER_URL": guarded.login,
            "STREAMS_BROKER__SECURITY_PROTOCOL": "SASL_PLAINTEXT",
            "STREAMS_BROKER__SASL_MECHANISM": "PLAIN",
            "STREAMS_BROKER__SASL_USERNAME": "app",
            "STREAMS_BROKER__SASL_PASSWORD": "secret-canary",
        }
        notes = Notes(world, tmp_path)
        world.relay()
        world.worker()
        ids = notes.enqueue("a", "a0", "a1")
        await eventually(lambda: notes.all(ids, "consumed"), 60)
        for log in world.directory.glob("*.log"):
            assert "canary" not in log.read_text()


async def test_a_log_that_lost_its_end_is_read_again(
    world: World, apart: KafkaBroker, tmp_path: Path, eventually: Eventually
) -> None:
    """What was committed is beyond the end, as after an unclean election.

    Records behind the end would never be read.
    """
    notes = Notes(world, tmp_path)
    ids = notes.send("a", "a0") + notes.send("b", "b0")
    commit(apart.url, world.settings.worker.group, notes.topic, {0: 1000, 1: 1000})
    worker = world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    ids += notes.send("a", "a1") + notes.send("b", "b1")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    await worker.stop(signal.SIGTERM, grace=20)
    assert "Kafka lost the end of a partition" in (world.directory / "faust-0.log").read_text()
    # From then on what is committed is where it is.
    world.worker()
    ids += notes.send("a", "a2")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert "lost the end" not in (world.directory / "faust-1.log").read_text()
    assert (notes.saved("a"), notes.saved("b")) == (["a0", "a1", "a2"], ["b0", "b1"])


@pytest.mark.long
async def test_a_log_that_loses_its_end_under_a_running_worker_is_read_again(
    world: World, apart: KafkaBroker, tmp_path: Path, eventually: Eventually
) -> None:
    """A broker comes back with less than it had.

    What was committed, and where the worker reads, is beyond its end.
    """
    notes = Notes(world, tmp_path, partitions=1)
    world.worker()
    ids = notes.send("a", "a0", "a1")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    await apart.stop()
    log = next((apart.directory / "data").glob(f"{notes.topic}-0"))
    shutil.copytree(log, tmp_path / "earlier")
    await apart.start()
    ids += notes.send("a", *[f"a{n}" for n in range(2, 10)])
    group = world.settings.worker.group
    await eventually(lambda: offsets(apart.url, group, notes.topic, 1) == ({0: 10}, {0: 10}), 60)
    await apart.stop()
    shutil.rmtree(log)
    shutil.move(tmp_path / "earlier", log)
    await apart.start()
    ids += notes.send("a", "a10", "a11", "a12")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert "Kafka lost the end of a partition" in (world.directory / "faust-0.log").read_text()
    # From then on what is committed is where the log ends.
    await eventually(lambda: offsets(apart.url, group, notes.topic, 1) == ({0: 5}, {0: 5}), 60)
    assert notes.saved("a") == [f"a{n}" for n in range(13)]


async def test_offsets_committed_in_a_deleted_topic_pass_over_nothing_in_the_new_one(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    """A worker commits once more before it notices.

    The new topic is longer than that when the next worker comes.
    """
    notes = Notes(world, tmp_path, partitions=1)
    broker, group = world.settings.broker_url, world.settings.worker.group
    worker = world.worker()
    ids = notes.send("a", "a0", "a1", "a2")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    await eventually(lambda: offsets(broker, group, notes.topic, 1) == ({0: 3}, {0: 3}), 30)
    await worker.stop(signal.SIGTERM, grace=20)
    consumer = Consumer({"bootstrap.servers": broker, "group.id": group})
    try:
        [committed] = consumer.committed([TopicPartition(notes.topic, 0)], timeout=10)
        admin = AdminClient(kafka.client(world.settings))
        admin.delete_topics([notes.topic])[notes.topic].result(10)
        await eventually(lambda: notes.topic not in admin.list_topics(timeout=10).topics)
        kafka.prepare_topics(world.settings, [notes.topic])
        ids = notes.send("a", "a3", "a4", "a5", "a6", "a7")
        consumer.commit(offsets=[committed], asynchronous=False)
    finally:
        consumer.close()
    world.worker()
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert notes.saved("a") == [f"a{n}" for n in range(8)]
    assert (
        "the topic was made anew: it is read from its beginning"
        in (world.directory / "faust-1.log").read_text()
    )
    await eventually(lambda: offsets(broker, group, notes.topic, 1) == ({0: 5}, {0: 5}), 30)


async def test_a_log_that_is_trimmed_under_a_worker_is_read_from_where_it_begins(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path, partitions=1)
    worker = world.worker()
    ids = notes.send("a", "a0", "a1")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    os.kill(worker.pid or 0, signal.SIGSTOP)
    try:
        notes.send("a", "a2", "a3")
        admin = AdminClient(kafka.client(world.settings))
        for future in admin.delete_records([TopicPartition(notes.topic, 0, 4)]).values():
            future.result(10)
        ids += notes.send("a", "a4", "a5")
    finally:
        os.kill(worker.pid or 0, signal.SIGCONT)
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    assert worker.running
    broker, group = world.settings.broker_url, world.settings.worker.group
    await eventually(lambda: offsets(broker, group, notes.topic, 1) == ({0: 6}, {0: 6}), 30)


async def test_partitions_that_somebody_adds_end_a_worker_and_its_next_start_says_what_to_do(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    """Later messages of a conversation would be in another partition, and overtake."""
    notes = Notes(world, tmp_path, partitions=1)
    worker = world.worker()
    ids = notes.send("a", "a0")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    admin = AdminClient(kafka.client(world.settings))
    [future] = admin.create_partitions([NewPartitions(notes.topic, 2)]).values()
    future.result(10)
    await eventually(lambda: worker.returncode is not None, 30)
    assert worker.returncode == 70
    assert f"topic '{notes.topic}' has 2 partitions, before 1" in worker.log.read_text()
    again = world.worker()
    await eventually(lambda: again.returncode is not None, 30)
    last = again.log.read_text().splitlines()[-1]
    assert (
        again.returncode,
        "has 2 partitions, faust.yml says 1: set topics.notes.partitions to 2" in last,
    ) == (
        2,
        True,
    )


async def test_a_group_that_was_deleted_begins_anew_without_a_second_effect(
    world: World, tmp_path: Path, eventually: Eventually
) -> None:
    notes = Notes(world, tmp_path, partitions=1)
    broker, group = world.settings.broker_url, world.settings.worker.group
    worker = world.worker()
    ids = notes.send("a", "a0", "a1")
    await eventually(lambda: notes.all(ids, "consumed"), 60)
    await worker.stop(signal.SIGTERM, grace=20)
    admin = AdminClient(kafka.client(world.settings))
    admin.delete_consumer_groups([group])[group].result(10)
    ids += notes.send("a", "a2")
    world.worker()
    await eventually(lambda: offsets(broker, group, notes.topic, 1) == ({0: 3}, {0: 3}), 60)
    assert notes.all(ids, "consumed")
    assert notes.saved("a") == ["a0", "a1", "a2"]
