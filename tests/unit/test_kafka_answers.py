"""What Kafka answers when a topic is made or deleted: over by itself, or for a person to change."""

from __future__ import annotations

import asyncio
import logging
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from streams.broker import beat, kafka
from streams.errors import ServiceUnreachable, UsageError
from streams.relay.sink.new_topics import NewTopics, TopicShape
from streams.settings import load

SETTINGS = load(environ={"BROKER_URL": "127.0.0.1:1"})


class Answering:
    """An AdminClient of two brokers whose answer to everything is this error."""

    def __init__(self, code: int) -> None:
        self._answer: Future[None] = Future()
        self._answer.set_exception(KafkaException(KafkaError(code)))

    def list_topics(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(brokers={1: "one", 2: "two"}, topics={})

    def create_topics(self, topics: list[NewTopic], **_: Any) -> dict[str, Future[None]]:
        return {each.topic: self._answer for each in topics}

    def delete_topics(self, names: list[str], **_: Any) -> dict[str, Future[None]]:
        return dict.fromkeys(names, self._answer)


@pytest.mark.parametrize("code", kafka.AWAY)
def test_a_broker_that_is_only_starting_is_waited_for(code: int) -> None:
    admin: Any = Answering(code)
    with pytest.raises(ServiceUnreachable):
        kafka._create(SETTINGS, admin, [NewTopic("t", 1, 1)])
    with pytest.raises(ServiceUnreachable):
        kafka._delete(SETTINGS, admin, {"t": 3})


def test_what_a_person_has_to_change_is_said() -> None:
    admin: Any = Answering(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(UsageError, match="'t' cannot be created with 1 partitions"):
        kafka._create(SETTINGS, admin, [NewTopic("t", 1, 1)])


class Starting(Answering):
    """A cluster whose third broker has registered once it was asked three times."""

    def __init__(self, asked: int = 3) -> None:
        super().__init__(KafkaError.INVALID_REPLICATION_FACTOR)
        self._asked = asked

    def create_topics(self, topics: list[NewTopic], **_: Any) -> dict[str, Future[None]]:
        self._asked -= 1
        if self._asked == 0:
            self._answer = Future()
            self._answer.set_result(None)
        return super().create_topics(topics)


def test_brokers_that_have_not_registered_yet_are_waited_for_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    admin: Any = Starting()
    with caplog.at_level(logging.WARNING):
        kafka._create_patiently(SETTINGS, admin, [NewTopic("t", 1, 3)])
    [record] = caplog.records
    assert "2 of 3 brokers have registered" in record.__dict__["reason"]


def test_a_cluster_that_stays_too_small_is_an_outage_that_names_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka, "REGISTER_SECONDS", 0.0)
    admin: Any = Answering(KafkaError.INVALID_REPLICATION_FACTOR)
    monkeypatch.setattr(kafka, "AdminClient", lambda options: admin)
    expected = "'chat-history' .* replication factor 1: 2 of 1 brokers .* expected 1 or more"
    with pytest.raises(ServiceUnreachable, match=expected) as ended:
        kafka.prepare_topics(SETTINGS, ["chat-history"])
    assert ended.value.exit_code == 3
    with pytest.raises(ServiceUnreachable, match="2 of 1 brokers"):
        kafka.prepare_topic(SETTINGS, "beat", partitions=1)
    # Who tries again by itself, and may be told to stop, hears it at once.
    monkeypatch.setattr(kafka, "REGISTER_SECONDS", 60.0)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    with pytest.raises(ServiceUnreachable, match="2 of 1 brokers"):
        kafka.prepare_topics(SETTINGS, ["chat-history"], patient=False)
    with pytest.raises(ServiceUnreachable, match="2 of 1 brokers"):
        beat.prepare_topic(SETTINGS, patient=False)


def test_a_broker_that_does_not_answer_in_time_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kafka, "TIMEOUT", -5.0)
    admin: Any = Answering(KafkaError.NO_ERROR)
    admin._answer = Future()
    with pytest.raises(ServiceUnreachable, match="does not answer in time"):
        kafka._create(SETTINGS, admin, [NewTopic("t", 1, 1)])
    with pytest.raises(ServiceUnreachable, match="does not answer in time"):
        kafka._delete(SETTINGS, admin, {"t": 3})


def test_one_biz_types_replication_factor_is_that_topics_wait_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No ServiceUnreachable, which would end the relay's plan; and it is said at once."""
    admin: Any = Answering(KafkaError.INVALID_REPLICATION_FACTOR)
    monkeypatch.setattr(kafka, "AdminClient", lambda options: admin)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waited"))
    make = NewTopics(SETTINGS)._make("likes", TopicShape("likes", 3, 7, 24))
    with pytest.raises(UsageError, match=r"2 of 7 brokers .*`streams biz-types retire likes`"):
        asyncio.run(make)
