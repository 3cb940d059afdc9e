"""What a leader asks Kafka for its figures."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from streams.relay.leader import figures
from streams.settings import Settings


def test_offsets_that_could_not_be_told_are_asked_with_new_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Behind a fence librdkafka names the leaders of before, and no lag was told any more."""
    made: list[Any] = []

    class Offsets:
        untold = False

        def __init__(self, *_: object) -> None:
            made.append(self)

        def look(self) -> list[dict[str, Any]]:
            if self is made[0]:
                raise KafkaException(KafkaError(KafkaError.FENCED_LEADER_EPOCH))
            return [{"topic": "t"}]

    monkeypatch.setattr(figures, "GroupOffsets", Offsets)
    leader = figures.LeaderFigures(Settings(), ["t"])
    assert [leader._ask() for _ in range(3)] == [[], [{"topic": "t"}], [{"topic": "t"}]]
    assert len(made) == 2
