"""Who reads the consumed topics: the workers' consumer group, and what nobody reads."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupState, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.broker import kafka
from streams.errors import UsageError
from streams.settings import Settings

CLIENT = "outbox-streams."
_LOADING = (*kafka.MOVING, KafkaError._TIMED_OUT)
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class ConsumerGroup:
    """The workers' group as Kafka sees it now.

    `members` is how many processes are in it. `settled` is false while partitions are dealt out
    again. `partitions` are those that each consumed topic has, none where it does not exist;
    `assigned` those that a member has.
    """

    name: str
    members: int
    settled: bool
    partitions: Mapping[str, frozenset[int]]
    assigned: Mapping[str, frozenset[int]]

    @property
    def faults(self) -> list[str]:
        """What is missing, one line each; nothing of a group that is being dealt out again."""
        missing = [topic for topic, numbers in self.partitions.items() if not numbers]
        faults = [
            f"consumed topic {topic} does not exist: relay and workers make it when they start"
            for topic in missing
        ]
        if not self.members:
            topics = ", ".join(self.partitions)
            return [
                *faults,
                (
                    f"no worker is in consumer group {self.name}, nobody reads {topics}:"
                    " start a worker"
                ),
            ]
        if not self.settled:
            return faults
        for topic, numbers in self.partitions.items():
            if unread := sorted(numbers - self.assigned.get(topic, frozenset())):
                some = ", ".join(map(str, unread))
                faults.append(
                    f"no worker reads partitions {some} of topic {topic}: {self.members} processes"
                    f" are in consumer group {self.name}, do all of them run this version?"
                )
        return faults


def consumer_group(settings: Settings, topics: Iterable[str]) -> ConsumerGroup:
    """The workers' group, and who of it reads these topics.

    ServiceUnreachable when Kafka does not answer; blocking.
    """
    admin = AdminClient(kafka.client(settings))
    name = settings.worker.group
    try:
        known = admin.list_topics(timeout=kafka.TIMEOUT).topics
        group = _described(admin, name)
    except KafkaException as error:
        raise kafka.unreachable(settings, error) from None
    assigned: dict[str, set[int]] = {}
    members = group.members if group else []
    for member in members:
        for each in member.assignment.topic_partitions if member.assignment else ():
            assigned.setdefault(each.topic, set()).add(each.partition)
    return ConsumerGroup(
        name=name,
        members=len(members),
        settled=group is not None and group.state is ConsumerGroupState.STABLE,
        partitions={
            topic: frozenset(known[topic].partitions if topic in known else ())
            for topic in sorted(set(topics))
        },
        assigned={topic: frozenset(numbers) for topic, numbers in assigned.items()},
    )


def client_id(identity: str) -> str:
    """By what a member of a group says for which database it works.

    `identity` is what `outbox_identity()` gives; its characters may be in the name of a metric.
    """
    return CLIENT + identity.replace("/", ".")


def others(settings: Settings, identity: str, topics: Iterable[str]) -> dict[str, str] | None:
    """Which of these topics the workers' group reads for other databases: topic -> database.

    None while partitions are dealt out to some that work for others: ask again. A worker of a
    release before this does not say for whom it works. It blocks. ServiceUnreachable when Kafka
    does not answer, UsageError when it refuses.
    """
    admin = AdminClient(kafka.client(settings))
    try:
        group = _described(admin, settings.worker.group)
    except KafkaException as error:
        if error.args[0].code() in (*kafka.AWAY, *_LOADING):
            raise kafka.unreachable(settings, error) from None
        raise UsageError(
            f"Kafka at {settings.broker_url} does not describe consumer group"
            f" {settings.worker.group}: {kafka.reason(error)}"
        ) from None
    ours, consumed = client_id(identity), set(topics)
    strangers = [
        member
        for member in (group.members if group else ())
        if str(member.client_id).startswith(CLIENT) and member.client_id != ours
    ]
    if strangers and group.state is not ConsumerGroupState.STABLE:
        return None
    return {
        each.topic: member.client_id.removeprefix(CLIENT).replace(".", "/")
        for member in strangers
        for each in (member.assignment.topic_partitions if member.assignment else ())
        if each.topic in consumed
    }


def unread(settings: Settings, topics: Iterable[str]) -> set[str]:
    """Those of these topics that hold records which the workers' group has not committed past.

    It blocks.

    ServiceUnreachable when Kafka does not answer.
    """
    group = {
        "group.id": settings.worker.group,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    consumer = Consumer(kafka.client(settings) | group)  # it never joins
    names = list(topics)
    try:
        return kafka.answer(settings, lambda: _unread(consumer, names))
    finally:
        consumer.close()


def _unread(consumer: Consumer, topics: list[str]) -> set[str]:
    topics_unread = set()
    known = consumer.list_topics(timeout=kafka.TIMEOUT).topics
    for name in topics:
        asked = (
            [TopicPartition(name, number) for number in known[name].partitions]
            if name in known
            else []
        )
        for position in consumer.committed(asked, timeout=kafka.TIMEOUT) if asked else ():
            first, end = consumer.get_watermark_offsets(position, timeout=kafka.TIMEOUT)
            if max(first, position.offset) < end:
                topics_unread.add(name)
    return topics_unread


def _described(admin: AdminClient, name: str) -> Any:
    """The ConsumerGroupDescription.

    None when nobody was ever in it, or everything of it is gone.
    """
    deadline = time.monotonic() + kafka.TIMEOUT
    while True:
        future = admin.describe_consumer_groups([name], request_timeout=_ANSWER_SECONDS)[name]
        try:
            return future.result(kafka.TIMEOUT)
        except TimeoutError:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT)) from None
        except KafkaException as error:
            code = error.args[0].code()
            if code == KafkaError.GROUP_ID_NOT_FOUND:
                return None
            # A broker that has just started loads its groups first, and the first one of all waits
            # for a topic to be made; librdkafka does not always hear of it when that is done.
            if code not in _LOADING or time.monotonic() > deadline:
                raise
        time.sleep(0.2)
