"""What Kafka answers when a topic is made or deleted: over by itself, or for a person to change."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

from streams.broker import kafka
from streams.errors import ServiceUnreachable, UsageError
from streams.settings import load

SETTINGS = load(environ={"BROKER_URL": "127.0.0.1:1"})


class Answering:
    """An AdminClient whose answer to everything is this error."""

    def __init__(self, code: int) -> None:
        self._answer: Future[None] = Future()
        self._answer.set_exception(KafkaException(KafkaError(code)))

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


@pytest.mark.parametrize(
    "code", [KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.INVALID_REPLICATION_FACTOR]
)
def test_what_a_person_has_to_change_is_said(code: int) -> None:
    admin: Any = Answering(code)
    with pytest.raises(UsageError, match="'t' cannot be created with 1 partitions"):
        kafka._create(SETTINGS, admin, [NewTopic("t", 1, 1)])
