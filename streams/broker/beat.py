"""The beat: how relay and workers tell a database that went back from the one they know.

A copy of the data directory, a volume snapshot or a standby that lacked the end has the identity of
the database it comes from. So a leader counts `relay_position.beat`, about once a second, and when
that is committed it writes the count to a compacted topic, keyed by the relay's name and the
identity of its database. Kafka's count is never ahead of the database's, unless the database went
back.

Deployments that share a broker share the topic, and perhaps the name: a key without the database
would keep the newest beat of whichever counted last, and hide that the other one went back. A
release before this knows no other key, so the beat is written under both.

Whoever compares reads Kafka first, the database second: meanwhile the database's count can only
grow. A beat that Kafka lost proves nothing, and is written again. One of another database (a
broker that two deployments share, a dump restored elsewhere) is not compared: `outbox_identity()`
tells those apart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from sqlalchemy import Connection

from streams.broker import kafka
from streams.database import query
from streams.errors import ServiceUnreachable, UsageError
from streams.settings import Settings

NAME = "outbox-beat"
READ_SECONDS = 10.0
WRITE_MS = 5000
# Small segments: all but the last one are compacted, and whoever starts reads what is left.
TOPIC: Mapping[str, str] = {
    "cleanup.policy": "compact",
    "segment.bytes": "1048576",
    "min.cleanable.dirty.ratio": "0.01",
}


# As the query `beats` gives it: a relay's name, its beat, and the identity of the database.
Row = tuple[Any, ...]
# Kafka's newest count of each (relay, identity of its database).
Beats = Mapping[tuple[str, str], int]


@dataclass(frozen=True, slots=True)
class Beat:
    """How often a leader has counted, and in which database."""

    identity: str
    count: int


def topic(settings: Settings) -> str:
    """The topic that holds the newest beat of each relay."""
    return settings.broker.topic_prefix + NAME


def prepare_topic(settings: Settings, *, patient: bool = True) -> None:
    """The topic is there; ServiceUnreachable or UsageError; blocking, longer if `patient`."""
    kafka.prepare_topic(settings, topic(settings), partitions=1, config=TOPIC, patient=patient)


def read(settings: Settings, *, patience: float = READ_SECONDS) -> Beats:
    """Kafka's newest beat of each relay of each database, none when it lost them; it blocks.

    ServiceUnreachable when Kafka does not answer.
    """
    options = kafka.client(
        settings,
        group_id="outbox-streams-beat",
        enable_auto_commit=False,
        enable_partition_eof=True,
        isolation_level="read_committed",
    )
    deadline = time.monotonic() + patience

    def ask() -> Beats:
        consumer = Consumer(options)
        try:
            return _read(settings, consumer, deadline)
        finally:
            consumer.close()

    return kafka.answer(settings, ask, seconds=patience)


def gone_back(beats: Beats, rows: Sequence[Row], relay: str) -> str | None:
    """Why the database is refused, which has counted less than Kafka knows of it.

    None when it has not.

    A relay that the database does not know was removed by an operator, unless it is our own.
    """
    identity = rows[0][2]
    counts = {name: count or 0 for name, count, _ in rows if name is not None}
    for (name, database), beat in sorted(beats.items()):
        if database != identity or (name not in counts and name != relay):
            continue
        if counts.get(name, 0) < beat:
            return (
                f"the database went back: relay {name} had counted to {beat},"
                f" here to {counts.get(name, 0)}, so what was committed last is lost (a copy was"
                " restored, or a failover lost the end); if it is to go on from here,"
                " run `streams relay adopt`, see docs/failover.md"
            )
    return None


def refuse_gone_back(beats: Beats, rows: Sequence[Row], relay: str) -> None:
    """UsageError when the database has counted less than Kafka knows of it."""
    if reason := gone_back(beats, rows, relay):
        raise UsageError(reason)


def looked(settings: Settings, connection: Connection) -> str | None:
    """Why the database is refused, for a person who asks; None also while Kafka does not say.

    It blocks while it asks Kafka.
    """
    try:
        beats = read(settings, patience=3.0)
    except ServiceUnreachable:
        return None
    rows = [tuple(row) for row in connection.exec_driver_sql(query("beats"))]
    return gone_back(beats, rows, settings.relay.name)


class BeatWriter:
    """Writes beats to Kafka without waiting for it.

    What cannot be written now is followed by a newer one.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = topic(settings)
        # One request at a time: a beat that is sent again never comes after a newer one.
        self._producer = Producer(
            kafka.client(
                settings,
                acks="all",
                message_timeout_ms=WRITE_MS,
                max_in_flight_requests_per_connection=1,
            )
        )
        self.topic_missing = False

    def write(self, relay: str, beat: Beat) -> None:
        """Send this beat, which is committed."""
        value = orjson.dumps({"beat": beat.count, "identity": beat.identity})
        for key in (relay, f"{relay}/{beat.identity}"):
            self._producer.produce(
                self._topic, key=key.encode(), value=value, on_delivery=self._delivered
            )
        self._producer.poll(0)

    def make_topic(self) -> None:
        """Make the topic again that was deleted; blocking, ServiceUnreachable or UsageError."""
        prepare_topic(self._settings, patient=False)  # a leader's heartbeat waits for it
        self.topic_missing = False

    def flush(self, seconds: float) -> None:
        """Wait for what was written, no longer than this; blocking."""
        self._producer.flush(seconds)

    def _delivered(self, error: KafkaError | None, message: Any) -> None:
        # An outage too: making a topic that is there costs nothing.
        self.topic_missing = error is not None


class KnownBeats:
    """The highest beats that this process has seen, for whoever connects again and again.

    It is thread-safe.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._beats: dict[tuple[str, str], int] = {}
        self._identity: str | None = None
        self._read_at = -READ_SECONDS
        self._lock = threading.Lock()

    def from_kafka(self, *, patience: float, fresh: float = 1.0) -> Beats:
        """What is known, once Kafka's beat is read, unless that was done within `fresh` seconds.

        While Kafka is away, what is known counts. It blocks.
        """
        with self._lock:
            if time.monotonic() - self._read_at >= fresh:
                try:
                    self._raise(read(self._settings, patience=patience))
                except ServiceUnreachable:
                    pass
                finally:
                    self._read_at = time.monotonic()
            return dict(self._beats)

    def another(self, rows: Sequence[Row]) -> str | None:
        """Why this is not the database that was there when the process began, if it is not."""
        identity: str = rows[0][2]
        self._identity = self._identity or identity
        if identity == self._identity:
            return None
        return f"its identity is {identity}, it was {self._identity} (a dump, or an upgrade)"

    def gone_back(self, known: Beats, rows: Sequence[Row]) -> str | None:
        """Why this database is refused, if it has counted less than was `known` before it was read.

        What others learn of meanwhile is newer than these rows, and says nothing of them. If it has
        counted more, that is known from now on.
        """
        reason = gone_back(known, rows, self._settings.relay.name)
        if reason is None:
            self._raise(
                {(name, identity): count for name, count, identity in rows if name and count}
            )
        return reason

    def _raise(self, beats: Beats) -> None:
        for key, count in beats.items():
            self._beats[key] = max(count, self._beats.get(key, 0))


def _read(settings: Settings, consumer: Consumer, deadline: float) -> Beats:
    partition = TopicPartition(topic(settings), 0)
    try:
        first, end = consumer.get_watermark_offsets(
            partition, timeout=max(0.1, deadline - time.monotonic())
        )
    except KafkaException as error:
        if error.args[0].code() in (
            KafkaError.UNKNOWN_TOPIC_OR_PART,
            KafkaError._UNKNOWN_PARTITION,
        ):
            return {}
        raise
    beats: dict[tuple[str, str], int] = {}
    if first == end:
        return beats
    partition.offset = first
    consumer.assign([partition])
    while time.monotonic() < deadline:
        for message in consumer.consume(1000, 0.2):
            fault = message.error()
            if fault is None:
                _note(beats, message.key(), message.value())
            elif fault.code() == KafkaError._PARTITION_EOF:
                return beats
            elif fault.code() in (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
                return {}
    raise ServiceUnreachable(
        f"Kafka at {settings.broker_url} does not give topic {topic(settings)!r} in time"
    )


def _note(
    beats: dict[tuple[str, str], int], key: bytes | str | None, value: bytes | str | None
) -> None:
    """What is no beat of ours says nothing."""
    try:
        content = orjson.loads(value or b"")
        name, _, _ = (key.decode() if isinstance(key, bytes) else str(key)).partition("/")
        database = str(content["identity"])
        beats[name, database] = max(int(content["beat"]), beats.get((name, database), 0))
    except (ValueError, TypeError, KeyError):
        return
