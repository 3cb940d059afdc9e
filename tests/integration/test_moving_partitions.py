"""A broker that says for a moment that it does not lead, or coordinate, what it is asked about.

It says so of a topic that was made a moment before, and after another broker has started or ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from streams.audit import topics
from streams.broker import beat, consumers, kafka
from streams.errors import ServiceUnreachable
from tests.conftest import World


class Moving(Consumer):
    """Kafka's client, whose answers are this error until it was said that often."""

    code: int = KafkaError.NOT_LEADER_FOR_PARTITION
    left: dict[str, int]

    def committed(self, *of: Any, **options: Any) -> list[TopicPartition]:
        self._say("committed")
        return super().committed(*of, **options)

    def get_watermark_offsets(self, *of: Any, **options: Any) -> tuple[int, int]:
        self._say("get_watermark_offsets")
        return super().get_watermark_offsets(*of, **options)

    def offsets_for_times(self, *of: Any, **options: Any) -> list[TopicPartition]:
        self._say("offsets_for_times")
        return super().offsets_for_times(*of, **options)

    def _say(self, asked: str) -> None:
        if self.left.get(asked):
            self.left[asked] -= 1
            raise KafkaException(KafkaError(self.code))


def read_beat(world: World) -> Any:
    return beat.read(world.settings)


def read_unread(world: World) -> Any:
    return consumers.unread(world.settings, [world.topic])


def read_partitions(world: World) -> Any:
    with topics.Topics(world.settings, [world.topic]) as consumed:
        return consumed.partitions()


def read_offsets(world: World) -> Any:
    place = (world.topic, 0)
    until = {place: topics.Partition(0, 1, None)}
    with topics.Topics(world.settings, [world.topic]) as consumed:
        return consumed.locate({place: {7: 0}}, until)


BOUNDS, COMMITTED, TIMES = "get_watermark_offsets", "committed", "offsets_for_times"
Ask = tuple[ModuleType, Callable[[World], Any], str]
# Who asks Kafka, how, and for what: each with the client of its module.
ASKS: list[Ask] = [
    (beat, read_beat, BOUNDS),
    (consumers, read_unread, BOUNDS),
    (consumers, read_unread, COMMITTED),
    (topics, read_partitions, BOUNDS),
    (topics, read_partitions, COMMITTED),
    (topics, read_offsets, TIMES),
]


@pytest.fixture
def made(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world with its topics, and one record on partition 0 of them."""
    kafka.prepare_topics(world.settings, [world.topic])
    beat.prepare_topic(world.settings)
    producer = Producer({"bootstrap.servers": world.settings.broker_url})
    producer.produce(world.topic, b"{}", partition=0, headers=[("id", b"7")])
    assert producer.flush(30) == 0
    monkeypatch.setattr(kafka, "AGAIN_SECONDS", 0.01)
    return world


def test_a_broker_that_moves_a_partition_is_asked_again(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker ended with 3 that asked for the beat right after it had made the topic."""
    expected = [read(made) for _, read, _ in ASKS]
    for (module, read, asked), answer in zip(ASKS, expected, strict=True):
        for code in (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.NOT_COORDINATOR):
            with monkeypatch.context() as patched:
                left = moving(patched, module, {asked: 2}, code)
                assert (read(made), left) == (answer, {asked: 0})


def test_one_that_goes_on_moving_it_is_an_outage(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, read, asked in ASKS:
        with monkeypatch.context() as patched:
            left = moving(patched, module, {asked: 10**6})
            passed = iter(range(10**6))
            patched.setattr(time, "monotonic", lambda passed=passed: float(next(passed)))
            with pytest.raises(ServiceUnreachable, match="cannot be reached") as ended:
                read(made)
            assert ended.value.exit_code == 3
            assert 10**6 - left[asked] > 2


def test_what_a_person_has_to_change_is_said_at_once(
    made: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = KafkaError.TOPIC_AUTHORIZATION_FAILED
    for module, read, asked in ASKS:
        with monkeypatch.context() as patched:
            left = moving(patched, module, {asked: 1}, code)
            with pytest.raises(ServiceUnreachable, match=KafkaError(code).str()):
                read(made)
            assert left == {asked: 0}


def moving(
    patched: pytest.MonkeyPatch,
    module: ModuleType,
    left: dict[str, int],
    code: int = Moving.code,
) -> dict[str, int]:
    """How often this module's client will still answer so; it counts down."""
    patched.setattr(module, "Consumer", Moving)
    patched.setattr(Moving, "code", code)
    patched.setattr(Moving, "left", left, raising=False)
    return left
