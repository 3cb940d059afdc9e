"""Which topics stand behind the names we use, and when they are others than before.

A name says little: a topic may be deleted and made again, by a person, by a broker that makes what
it is asked for or that came back with an empty disk, and a bootstrap name may lead to another
cluster. Kafka gives each topic an id and each cluster an id, so whoever works with them notes both
at its start and compares. The ids are noted in PostgreSQL too (`outbox_topics`), so that the audit
never compares offsets of two topics of one name; and workers commit each offset together with the
id of the topic it was read from, so that nobody takes it for one of the topic that came after.

    worker        committed  p0: 5000, topic 'A'
    somebody      deletes the topic and makes it again: its id is 'B'
    worker        commits once more, before it notices:  p0: 5040, topic 'A'
    next worker   reads the committed offset of another topic, and begins at the first record of 'B'
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.broker import kafka
from streams.database import migrate, query
from streams.errors import ServiceUnreachable, UsageError
from streams.settings import Settings

logger = logging.getLogger(__name__)

Place = tuple[str, int]

_NONE: Mapping[str, str] = MappingProxyType({})
_NAMES = "topic-id="


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: Kafka's id of it, and how many partitions it has."""

    id: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster says of itself: its id, its brokers as `host:port`, its topics.

    Of the topics it holds those that were asked for and exist.
    """

    id: str
    brokers: frozenset[str]
    topics: Mapping[str, Topic]


class Survey:
    """Looks at a cluster again and again with one client; blocking."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._admin = AdminClient(kafka.client(settings))

    def look(self, names: Iterable[str]) -> Cluster:
        """The cluster and those of these topics that exist, as they are now; ServiceUnreachable."""
        try:
            return self._look(sorted(set(names)))
        except ServiceUnreachable:
            # A client that was told of no broker does not ask those again that it began with.
            self._admin = AdminClient(kafka.client(self._settings))
            raise

    def _look(self, wanted: list[str]) -> Cluster:
        try:
            # Neither makes a topic that is asked for. `describe_cluster` would say the same, but
            # librdkafka 2.16 ends the process in it when a broker names no brokers.
            cluster = self._admin.list_topics(*wanted[:1], timeout=kafka.TIMEOUT)
            if not cluster.brokers:
                raise ServiceUnreachable(
                    f"Kafka at {self._settings.broker_url} says that no broker of it lives"
                )
            futures = (
                self._admin.describe_topics(TopicCollection(wanted), request_timeout=kafka.TIMEOUT)
                if wanted
                else {}
            )
            topics = {
                name: topic for name in wanted if (topic := _described(futures[name])) is not None
            }
        except KafkaException as error:
            raise kafka.unreachable(self._settings, error) from None
        except TimeoutError:
            raise ServiceUnreachable(
                f"Kafka at {self._settings.broker_url} does not answer in time"
            ) from None
        return Cluster(
            str(cluster.cluster_id),
            frozenset(f"{node.host}:{node.port}" for node in cluster.brokers.values()),
            topics,
        )


def _described(future: Future[Any]) -> Topic | None:
    try:
        description = future.result(kafka.TIMEOUT + 5)
    except KafkaException as error:
        if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return None
        raise
    return Topic(str(description.topic_id), len(description.partitions))


def prepare(
    settings: Settings,
    survey: Survey,
    names: Iterable[str],
    changelogs: Mapping[str, str] = _NONE,
    *,
    patient: bool = True,
) -> Cluster:
    """Make these topics what they must be, as `kafka.prepare_topics` does, and note which they are.

    It blocks.

    ServiceUnreachable, or UsageError when a person has to change something.
    """
    names = list(names)
    wanted = [*names, *changelogs]
    before = survey.look(wanted)
    # In another cluster a name proves nothing: its topics may be another deployment's.
    known = _noted(settings, before.id)
    strangers = {
        name
        for name, topic in before.topics.items()
        if name in known and topic.id not in known[name]
    }
    kafka.prepare_topics(settings, names, changelogs, strangers, patient=patient)
    cluster = _with_all(settings, survey, wanted)
    _note(settings, cluster)
    return cluster


def _with_all(settings: Settings, survey: Survey, names: list[str]) -> Cluster:
    """The cluster, once the broker that is asked knows all of these topics."""
    deadline = time.monotonic() + kafka.TIMEOUT
    while True:
        cluster = survey.look(names)
        if missing := sorted(set(names) - cluster.topics.keys()):
            if time.monotonic() > deadline:
                raise ServiceUnreachable(
                    f"Kafka at {settings.broker_url} does not know topic {missing[0]!r} yet"
                )
            time.sleep(0.1)
        else:
            return cluster


def change(before: Cluster, now: Cluster) -> str | None:
    """What is not as it was, in a few words.

    None while all the topics of `before` are those they were.
    """
    if now.id != before.id:
        return f"Kafka is another cluster: {now.id}, before {before.id}"
    for name, topic in sorted(before.topics.items()):
        current = now.topics.get(name)
        if current is None:
            return f"topic {name!r} does not exist any more"
        if current.id != topic.id:
            return f"topic {name!r} was deleted and made anew"
        if current.partitions != topic.partitions:
            return f"topic {name!r} has {current.partitions} partitions, before {topic.partitions}"
    return None


def committed(
    consumer: Consumer, places: Iterable[Place], ids: Mapping[str, str], *, timeout: float
) -> dict[Place, int | None]:
    """Up to where the consumer's group committed in the topics of these ids.

    None where it never did; KafkaException.

    An offset that names no topic is believed: another program committed it, or a worker before this
    version.
    """
    places = list(places)
    if not places:
        return {}
    positions = consumer.committed([TopicPartition(*place) for place in places], timeout=timeout)
    return {
        (each.topic, each.partition): each.offset
        if each.offset >= 0 and is_of(each.metadata, ids.get(each.topic))
        else None
        for each in positions
    }


def metadata(topic_id: str) -> str:
    """What is committed with an offset, to say which topic it is of.

    confluent-kafka 2.16 reads metadata up to the first NUL, and beyond its end when there is none.
    """
    return f"{_NAMES}{topic_id}\0"


def is_of(metadata: str | None, topic_id: str | None) -> bool:
    """Whether what was committed with this metadata may be an offset of the topic with this id.

    Metadata of another form is another program's, and says nothing.
    """
    named = (metadata or "").partition("\0")[0]
    return topic_id is None or not named.startswith(_NAMES) or named == _NAMES + topic_id


def _noted(settings: Settings, cluster_id: str) -> dict[str, set[str]]:
    """The ids of every topic of this cluster that was ever seen under each name.

    A name has None when this role may not read them.
    """
    names: dict[str, set[str]] = {}
    with suppress(UsageError), migrate.connection(settings) as connection:
        for name, topic_id, cluster in connection.exec_driver_sql(query("noted_topics")):
            if cluster == cluster_id:
                names.setdefault(name, set()).add(topic_id)
    return names


def _note(settings: Settings, cluster: Cluster) -> None:
    rows = [
        {
            "topic": name,
            "topic_id": topic.id,
            "cluster_id": cluster.id,
            "partitions": topic.partitions,
        }
        for name, topic in cluster.topics.items()
    ]
    try:
        with migrate.connection(settings) as connection:
            connection.exec_driver_sql(
                query("note_topics"), {"topics": orjson.dumps(rows).decode()}
            )
            connection.commit()
    except UsageError as error:
        # Nothing but the audit's certainty is lost.
        logger.warning("topic ids are not noted", extra={"error": str(error)})
