"""Topics with a wrong number of partitions.

They are replaced where PostgreSQL has all they held, else a person is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from streams.broker import kafka, topics
from streams.errors import ServiceUnreachable, UsageError
from tests.conftest import World


@pytest.fixture
def admin(world: World) -> AdminClient:
    world.environ |= {"STREAMS_RELAY__MODE": "poll", "STREAMS_TOPIC__PARTITIONS": "3"}
    world.migrate()
    return AdminClient(kafka.client(world.settings))


def make(admin: AdminClient, name: str, partitions: int) -> None:
    admin.create_topics([NewTopic(name, partitions, 1)])[name].result(30)
    until(lambda: count(admin, name) == partitions)


def until(condition: Callable[[], bool]) -> None:
    """Whoever asks the broker sees it: it learns what the controller did a moment later."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def count(admin: AdminClient, name: str) -> int | None:
    """How many partitions the topic has; None when there is none."""
    topic = admin.list_topics(timeout=10).topics.get(name)
    return None if topic is None else len(topic.partitions)


def delete(admin: AdminClient, name: str) -> None:
    admin.delete_topics([name])[name].result(30)
    until(lambda: count(admin, name) is None)


def prepare(world: World) -> dict[str, int]:
    """How many partitions each topic has then."""
    names = [world.topic, f"{world.topic}-retry"]
    survey = topics.Survey(world.settings)
    cluster = topics.prepare(
        world.settings, survey, names, {f"{world.topic}-changelog": world.topic}
    )
    return {name: topic.partitions for name, topic in cluster.topics.items()}


def test_retry_and_changelog_topics_are_replaced_once_the_topic_itself_is_right(
    world: World, admin: AdminClient
) -> None:
    right = prepare(world)
    assert right == dict.fromkeys(
        (world.topic, f"{world.topic}-retry", f"{world.topic}-changelog"), 3
    )
    for name in (f"{world.topic}-retry", f"{world.topic}-changelog"):
        delete(admin, name)
        make(admin, name, 1)
    world.environ["STREAMS_TOPIC__PARTITIONS"] = "4"
    with pytest.raises(
        UsageError,
        match=f"topic '{world.topic}' has 3 partitions, faust.yml says 4: set topics.chat",
    ):
        prepare(world)
    assert count(admin, f"{world.topic}-retry") == 1
    world.environ["STREAMS_TOPIC__PARTITIONS"] = "3"
    assert prepare(world) == right


def test_a_topic_that_took_the_place_of_ours_is_replaced(world: World, admin: AdminClient) -> None:
    right = prepare(world)
    delete(admin, world.topic)
    make(admin, world.topic, 1)
    assert prepare(world) == right
    assert world.query(
        "SELECT count(*), min(partitions) FROM outbox_topics WHERE topic = %s", world.topic
    ) == [(2, 3)]


def test_a_topic_with_more_partitions_or_one_that_nobody_knew_is_a_persons(
    world: World, admin: AdminClient
) -> None:
    make(admin, world.topic, 1)
    with pytest.raises(
        UsageError, match=r"has 1 partitions, faust\.yml says 3: .* or delete the topic"
    ):
        prepare(world)
    delete(admin, world.topic)
    prepare(world)
    delete(admin, world.topic)
    make(admin, world.topic, 5)
    with pytest.raises(UsageError, match=r"has 5 partitions, faust\.yml says 3"):
        prepare(world)


def test_a_topic_of_another_cluster_is_a_persons(world: World, admin: AdminClient) -> None:
    """A database that was copied and meets another Kafka.

    That topic may be another deployment's.
    """
    prepare(world)
    delete(admin, world.topic)
    make(admin, world.topic, 1)
    world.query("UPDATE outbox_topics SET cluster_id = 'another'")
    with pytest.raises(UsageError, match=r"has 1 partitions, faust\.yml says 3"):
        prepare(world)
    assert count(admin, world.topic) == 1


def test_envelopes_are_never_deleted(world: World, admin: AdminClient) -> None:
    folder = world.directory / "faust.yml"
    folder.write_text("topics: {seed: {partitions: 3, format: envelope}}\n")
    world.environ["STREAMS_CONFIG"] = str(folder)
    name = world.settings.broker.topic_prefix + "seed"
    survey = topics.Survey(world.settings)
    topics.prepare(world.settings, survey, [name])
    delete(admin, name)
    make(admin, name, 1)
    with pytest.raises(UsageError, match=r"has 1 partitions, faust\.yml says 3"):
        topics.prepare(world.settings, survey, [name])


def test_without_the_right_to_note_it_goes_on(
    world: World, admin: AdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    world.query("ALTER TABLE outbox_topics RENAME TO elsewhere")
    assert len(prepare(world)) == 3
    assert "topic ids are not noted" in caplog.text


def test_a_kafka_that_is_too_old_is_refused_in_one_line(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before 3.6 it does not know the setting.

    Here it is asked for one that it does not know either.
    """
    unknown = {"message.timestamp.after.max.millis": "1"}
    monkeypatch.setattr(kafka, "_messages_config", lambda settings: unknown)
    with pytest.raises(
        UsageError, match=r"is older than 3\.6, which knows .*: expected 3\.6 or newer, upgrade it"
    ):
        kafka.make_topic(
            world.settings, world.topic, partitions=1, replication_factor=1, retention_hours=1
        )


def test_more_replicas_than_brokers_is_an_outage_that_says_both_numbers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster whose brokers are still starting answers so too."""
    world.environ |= {"STREAMS_TOPIC__REPLICATION_FACTOR": "3"}
    monkeypatch.setattr(kafka, "REGISTER_SECONDS", 0.1)
    with pytest.raises(ServiceUnreachable, match=r"factor 3: 1 of 3 brokers .*expected 3 or more"):
        kafka.prepare_topics(world.settings, [f"{world.topic}-three"])
