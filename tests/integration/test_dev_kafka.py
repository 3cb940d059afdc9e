"""Kafka from Maven and a Java wheel: keeps data and port through kill -9, fails in one line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from streams.dev.downloads import CACHE, cache
from streams.dev.kafka import KafkaBroker
from streams.dev.learn import learn
from streams.dev.ports import HOST
from streams.errors import ServiceUnreachable, UsageError

QUIET = {"log_level": 0}


def written(broker: KafkaBroker, value: bytes) -> None:
    """One record in the topic `kept`, acknowledged."""
    producer = Producer({"bootstrap.servers": broker.url, "acks": "all", **QUIET})
    producer.produce("kept", value)
    assert producer.flush(30) == 0


def first(broker: KafkaBroker) -> bytes | None:
    """The first record of the topic `kept`."""
    consumer = Consumer({"bootstrap.servers": broker.url, "group.id": "test", **QUIET})
    try:
        consumer.assign([TopicPartition("kept", 0, 0)])
        record = consumer.poll(30)
        assert record is not None
        assert record.error() is None
        return record.value()
    finally:
        consumer.close()


def session(broker: KafkaBroker) -> float:
    """After how many seconds without a sign of life the broker is fenced."""
    asked = ConfigResource(ResourceType.BROKER, "1")
    admin = AdminClient({"bootstrap.servers": broker.url, **QUIET})
    settings = admin.describe_configs([asked], request_timeout=30)[asked].result(30)
    return int(settings["broker.session.timeout.ms"].value) / 1000


@pytest.mark.long
async def test_after_kill_9_it_is_back_on_its_port_with_its_data(
    kafka: KafkaBroker, tmp_path: Path
) -> None:
    async with KafkaBroker(tmp_path) as broker:
        url = broker.url
        admin = AdminClient({"bootstrap.servers": url, **QUIET})
        admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(30)
        written(broker, b"seven")
        # On a busy machine it says nothing for seconds, and is still the cluster's only broker.
        assert session(broker) >= 30
        # What a log folder begins with was made once; each is another cluster all the same.
        other = AdminClient({"bootstrap.servers": kafka.url, **QUIET})
        ids = {each.list_topics(timeout=10).cluster_id for each in (admin, other)}
        assert len(ids - {None, ""}) == 2
        broker.kill()
        assert broker.pid is None
        await broker.restart()
        assert broker.url == url
        assert first(broker) == b"seven"
        # Nobody waits for the session of the one that was killed.
        assert session(broker) <= 2
        await broker.restart()
        assert session(broker) >= 30


async def test_a_record_of_ten_megabytes_fits(kafka: KafkaBroker) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.url, **QUIET})
    admin.create_topics([NewTopic("large", 1, 1)])["large"].result(30)
    producer = Producer({"bootstrap.servers": kafka.url, "message.max.bytes": 11_000_000, **QUIET})
    errors: list[object] = []
    producer.produce("large", b"x" * 10_000_000, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(30) == 0
    assert errors == [None]


async def test_topics_are_not_made_by_accident(kafka: KafkaBroker) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.url, **QUIET})
    admin.list_topics("never-created", timeout=10)
    assert "never-created" not in admin.list_topics(timeout=10).topics


async def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^Kafka cannot listen on {HOST}:{port}: the port is taken$"
        ):
            await KafkaBroker(tmp_path, port=port).start()


async def test_a_broker_that_does_not_start_is_one_line_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(
        ServiceUnreachable, match=r"log: .*kafka\.log\): .*num\.io\.threads"
    ) as caught:
        await KafkaBroker(tmp_path, settings={"num.io.threads": "many"}).start()
    assert "\n" not in str(caught.value)


@pytest.mark.long
async def test_what_one_broker_learnt_another_takes_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jars = cache() / "maven", cache() / "classpath"
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    for folder in jars:
        (tmp_path / "cache" / folder.name).symlink_to(folder)
    file = await learn()
    assert file is not None and file == await learn()
    async with KafkaBroker(tmp_path / "broker") as broker:
        assert str(file) in Path(f"/proc/{broker.pid}/maps").read_text()
    # A file that is none is no reason not to start.
    file.write_bytes(b"nothing")
    async with KafkaBroker(tmp_path / "broker") as broker:
        assert broker.pid is not None
