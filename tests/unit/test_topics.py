"""Topics and clusters that are others than before.

What counts as a change, and when a worker ends because of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from streams.broker.topics import Cluster, Topic, change, is_of, metadata
from streams.errors import ServiceUnreachable
from streams.worker.topic_watch import TopicWatch

BROKERS = frozenset({"kafka:9092"})
BEFORE = Cluster("one", BROKERS, {"a": Topic("A", 8), "b": Topic("B", 2)})


def cluster(
    topics: Mapping[str, Topic], id: str = "one", brokers: frozenset[str] = BROKERS
) -> Cluster:
    return Cluster(id, brokers, {**BEFORE.topics, **topics})


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (BEFORE, None),
        (cluster({"c": Topic("C", 1)}, brokers=frozenset({"other:9092"})), None),
        (Cluster("two", BROKERS, BEFORE.topics), "Kafka is another cluster: two, before one"),
        (Cluster("one", BROKERS, {"a": Topic("A", 8)}), "topic 'b' does not exist any more"),
        (cluster({"a": Topic("X", 8)}), "topic 'a' was deleted and made anew"),
        (cluster({"a": Topic("A", 9)}), "topic 'a' has 9 partitions, before 8"),
        (cluster({"a": Topic("X", 1)}), "topic 'a' was deleted and made anew"),
    ],
)
def test_a_topic_that_is_not_as_it_was_is_named(now: Cluster, reason: str | None) -> None:
    assert change(BEFORE, now) == reason


def test_an_offset_is_believed_unless_it_names_another_topic() -> None:
    assert is_of(metadata("A"), "A")
    assert is_of(metadata("A").rstrip("\0"), "A")
    assert is_of(metadata("A"), None)
    assert not is_of(metadata("A"), "B")
    assert not is_of(metadata("A"), "AB")


@pytest.mark.parametrize("text", ["", None, "A", "checkpoint 7"])
def test_metadata_of_other_programs_says_nothing(text: str | None) -> None:
    assert is_of(text, "B")


class Kafka:
    """What a worker sees of it, one look after another."""

    def __init__(self, *looks: Cluster | None) -> None:
        self._looks = list(looks)

    def look(self, _: Any) -> Cluster:
        seen = self._looks.pop(0)
        if seen is None:
            raise ServiceUnreachable("away")
        return seen


def watching(
    monkeypatch: pytest.MonkeyPatch, *looks: Cluster | None, lost: bool = False
) -> TopicWatch:
    """A worker's watch without its thread."""
    monkeypatch.setattr(
        "streams.worker.topic_watch.threading.Thread",
        lambda **_: type("", (), {"start": lambda _: None})(),
    )
    watch, kafka = TopicWatch(), Kafka(*looks)
    watch.begin(kafka, BEFORE, lambda brokers: lost and brokers == BROKERS)  # type: ignore[arg-type]
    return watch


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Why the process would have ended."""
    reasons: list[str] = []
    monkeypatch.setattr(
        "streams.worker.topic_watch.fail_stop", lambda _, reason: reasons.append(reason)
    )
    return reasons


def test_a_worker_is_not_ready_at_once_and_ends_when_two_looks_agree(
    monkeypatch: pytest.MonkeyPatch, ended: list[str]
) -> None:
    gone = Cluster("one", BROKERS, {})
    watch = watching(monkeypatch, BEFORE, gone, None, gone)
    assert watch.ids == {"a": "A", "b": "B"}
    watch.look()
    assert (watch.change, ended) == (None, [])
    watch.look()
    assert (watch.change, ended) == ("topic 'a' does not exist any more", [])
    watch.look()
    assert ended == [], "an outage proves nothing"
    watch.look()
    assert ended == ["topic 'a' does not exist any more"]


def test_one_broker_that_does_not_know_yet_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, ended: list[str]
) -> None:
    gone = Cluster("one", BROKERS, {})
    watch = watching(monkeypatch, gone, BEFORE, gone)
    for reason in ("topic 'a' does not exist any more", None, "topic 'a' does not exist any more"):
        watch.look()
        assert watch.change == reason
    assert ended == []


def test_brokers_at_other_addresses_end_a_worker_that_has_lost_them(
    monkeypatch: pytest.MonkeyPatch, ended: list[str]
) -> None:
    watch = watching(monkeypatch, BEFORE, BEFORE, lost=True)
    watch.look()
    watch.look()
    assert ended == ["Kafka answers at other addresses: kafka:9092"]
