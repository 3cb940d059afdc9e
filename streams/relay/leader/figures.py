"""What only a leader can tell of a deployment, written down every other second.

Rows that came and rows that were relayed, counted from ids between the old and the new floor:
producers are other programs that roll back, and a relay that starts again reads rows twice. What
the primary alone knows (slot, log, who holds the floor), what Kafka alone knows (ends, what is
deleted, how far the workers are), gauges over time; and processes' counts, made one row for all.
Everything on the connection that the leader's maintenance has anyway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import psycopg
from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from psycopg import errors

from streams.broker import kafka, topics
from streams.database import query
from streams.database.refusals import refusal
from streams.errors import ServiceUnreachable
from streams.figures import rollup
from streams.settings import Settings
from streams.tasks import apart

logger = logging.getLogger("streams.relay")

LOOK_SECONDS = 2.0
GAUGE_SECONDS = 10.0
MERGE_SECONDS = 10.0
FORGET_SECONDS = 60.0
TOPICS_SECONDS = 60.0
REFUSED_SECONDS = 60.0
KAFKA_SECONDS = 5.0
PIN_SECONDS = 60.0
IDS = 200_000
"""Rows counted in one transaction; what is more waits for the next."""


class LeaderFigures:
    """The figures that one leader writes.

    Each step commits by itself; one that fails holds up no other, and is tried again in a minute.
    """

    def __init__(
        self,
        settings: Settings,
        names: Iterable[str] = (),
        unsent: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._settings, self._topics, self._unsent = settings, tuple(names), unsent
        self._due: dict[str, float] = {}
        self._refused: set[str] = set()
        self._ids = IDS
        self._settled = 0
        self._oldest: datetime | None = None
        self._retention: dict[str, float | None] = {}
        self._offsets: asyncio.Future[list[dict[str, Any]]] | None = None
        self._kafka: GroupOffsets | None = None
        self._relays: list[dict[str, Any]] = []
        self._pins: list[tuple[Any, ...]] = []
        self._standbys = 0
        self._seen = False  # or what it was is no gauge's value now

    async def write(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Whatever is due; psycopg.Error when the connection is lost."""
        if not self._is_due("look", LOOK_SECONDS):
            return
        for name, seconds, step in (
            ("count", 0.0, self._count),
            ("see", 0.0, self._see),
            ("lag", 0.0, self._note_lag),
            ("gauges", GAUGE_SECONDS, self._gauge),
            ("merge", MERGE_SECONDS, self._merge),
            ("forget", FORGET_SECONDS, self._forget),
        ):
            if not self._is_due(name, seconds):
                continue
            try:
                await step(connection)
            except psycopg.Error as error:
                if connection.broken or connection.closed:
                    raise
                self._due[name] = time.monotonic() + REFUSED_SECONDS
                if name not in self._refused:
                    about = {"step": name, "error": refusal(error)}
                    logger.warning("figures not written", extra=about)
                self._refused.add(name)
            else:
                self._refused.discard(name)

    def _is_due(self, name: str, seconds: float) -> bool:
        now = time.monotonic()
        if now < self._due.get(name, 0.0):
            return False
        self._due[name] = now + seconds
        return True

    async def _count(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Count rows up to the floor and move the mark up to there, in one transaction."""
        async with connection.transaction():
            [(counted,)] = await _rows(connection, "counted_rows")
            [(floor,)] = await _rows(connection, "relay_floor", relay=self._settings.relay.name)
            until = min(floor, counted + self._ids)
            if until <= counted:
                return
            try:
                counts = await _rows(connection, "count_rows", after=counted, until=until)
            except errors.QueryCanceled:  # somebody's statement_timeout: fewer of them next time
                self._ids = max(1, self._ids // 2)
                raise
            await _rows(connection, "rows_counted", until=until)
            if counts:
                await _rows(connection, "figures_add", rows=_json(rollup.now_rows(counts)))
        self._ids = min(IDS, self._ids * 2)
        if until < floor:
            self._due["look"] = 0.0

    async def _merge(self, connection: psycopg.AsyncConnection[Any]) -> None:
        async with connection.transaction():
            taken = await _rows(connection, "figures_take")
            if taken:
                await _rows(connection, "figures_add", rows=_json(rollup.merged(taken)))

    async def _forget(self, connection: psycopg.AsyncConnection[Any]) -> None:
        await connection.execute(query("figures_forget"))

    async def _see(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Write down what the primary says of relays, slots and whoever holds the floor."""
        relay = self._settings.relay.name
        self._seen = False
        async with connection.cursor() as cursor:
            await cursor.execute(query("relays_standing"), {"relay": relay})
            names = [column.name for column in cursor.description or ()]
            relays = [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]
        for each in relays:
            bounds = {"floor": each["floor"], "newest": each["newest"]}
            oldest = await _rows(connection, "oldest_above", **bounds)
            each["lag_seconds"] = oldest[0][0] if oldest else 0.0
        sharing = await _rows(connection, "relay_sharing", relay=relay)
        attendance = await _rows(connection, "relay_attendance", relay=relay)
        pins = await _rows(connection, "outbox_pins", seconds=PIN_SECONDS)
        floor = next((row["floor"] for row in relays if row["name"] == relay), 0)
        await self._settle(connection, floor)
        seen = {
            "relays": relays,
            "sharing": {relay: sharing},
            "attendance": {relay: [name for (name,) in attendance]},
            "pins": pins,
            "retention": self._retention,
            "settled": self._settled,
            "unsent": self._unsent(),
        }
        await connection.execute(query("primary_note"), {"relay": relay, "seen": _json(seen)})
        self._relays, self._pins, self._standbys = relays, pins, len(attendance) - 1
        self._seen = True

    async def _settle(self, connection: psycopg.AsyncConnection[Any], floor: int) -> None:
        """Go on to the first message without a fate, a bounded way at a time."""
        until = min(floor, self._settled + IDS)
        first = await _rows(connection, "first_fateless", after=self._settled, until=until)
        self._oldest = first[0][1] if first else None
        self._settled = first[0][0] - 1 if first else max(self._settled, until)

    async def _gauge(self, connection: psycopg.AsyncConnection[Any]) -> None:
        group = self._settings.worker.group
        values: list[tuple[str, str, float]] = [
            ("lag", topic, lag)
            for topic, lag in await _rows(connection, "lag_topics", group=group)
            if lag is not None
        ]
        [(waiting,)] = await _rows(connection, "oldest_open")
        values.append(("oldest_waiting", "", waiting or 0.0))
        [(now,)] = await _rows(connection, "moment")
        age = (now - self._oldest).total_seconds() if self._oldest is not None else 0.0
        values.append(("oldest_message", "", max(0.0, age)))
        if self._seen:
            values += self._primary_gauges(now)
        rows = [{"name": name, "label": label, "value": value} for name, label, value in values]
        await connection.execute(query("gauges_note"), {"rows": _json(rows)})

    def _primary_gauges(self, now: datetime) -> Iterator[tuple[str, str, float]]:
        for row in self._relays:
            yield "relay_lag", row["name"], float(row["lag_rows"] or 0)
            if row["held"] is not None:
                yield "wal_held", row["name"], float(row["held"])
        yield "standbys", self._settings.relay.name, float(max(0, self._standbys))
        pinned = max(((now - pin[4]).total_seconds() for pin in self._pins), default=0.0)
        yield "pinned", "", pinned

    async def _note_lag(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """Write down what Kafka said since the last look, and ask it again.

        That is done in a thread: Kafka may not answer.
        """
        if not self._topics or not self._settings.broker.url:
            return
        if self._offsets is not None and self._offsets.done():
            finished, self._offsets = self._offsets, None
            if (rows := finished.result()) and self._kafka is not None:
                self._retention = self._kafka.retention
                parameters = {
                    "group": self._settings.worker.group,
                    "rows": _json(rows),
                    "age": time.monotonic() - self._kafka.looked_at,
                }
                await connection.execute(query("lag_note"), parameters)
        if self._offsets is None:
            self._offsets = asyncio.ensure_future(apart(self._ask))

    def _ask(self) -> list[dict[str, Any]]:
        try:
            if self._kafka is None or self._kafka.untold:
                self._kafka = GroupOffsets(self._settings, self._topics)
            return self._kafka.look()
        except (KafkaException, ServiceUnreachable, OSError, TimeoutError):
            # Whoever publishes says that Kafka is away. Clients that knew of leaders from before a
            # fence name them for ever (FENCED_LEADER_EPOCH): the next look begins with new ones.
            self._kafka = None
            return []


class GroupOffsets:
    """How far the workers' group is in each partition of the consumed topics, asked of Kafka.

    It blocks.

    The consumer never joins the group, it only asks: the admin client's own request for a group's
    offsets takes the process down (confluent-kafka 2.16.1).
    """

    def __init__(self, settings: Settings, names: Iterable[str]) -> None:
        self._settings, self._names = settings, tuple(names)
        options = kafka.client(settings)
        self._admin = AdminClient(options)
        self._consumer = Consumer(
            options | {"group.id": settings.worker.group, "enable.auto.commit": False}
        )
        self._survey = topics.Survey(settings)
        self._known: Mapping[str, topics.Topic] = {}
        self._known_until = 0.0
        self.retention: dict[str, float | None] = {}
        self.looked_at = 0.0
        self.untold = False  # of some partition, that has no leader for one

    def look(self) -> list[dict[str, Any]]:
        """One row a partition of which Kafka tells it, as `lag_note` takes them.

        KafkaException when it tells nothing.
        """
        if time.monotonic() >= self._known_until:
            self._known = self._survey.look(self._names).topics
            self.retention = (
                kafka.retention(self._settings, self._admin, self._known) if self._known else {}
            )
            self._known_until = time.monotonic() + TOPICS_SECONDS
        places = [
            (name, number)
            for name, topic in self._known.items()
            for number in range(topic.partitions)
        ]
        if not places:
            return []
        self.looked_at = time.monotonic()
        ids = {name: topic.id for name, topic in self._known.items()}
        committed = topics.committed(self._consumer, places, ids, timeout=KAFKA_SECONDS)
        spec: Any = OffsetSpec  # untyped
        asked = {place: TopicPartition(*place) for place in places}
        ends, starts = (
            self._admin.list_offsets(
                dict.fromkeys(asked.values(), bound),
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=KAFKA_SECONDS,
            )
            for bound in (spec.latest(), spec.earliest())
        )
        rows: list[dict[str, Any]] = []
        refused = KafkaException()
        for place, partition in asked.items():
            try:
                bounds = [of[partition].result(KAFKA_SECONDS + 1).offset for of in (ends, starts)]
            except KafkaException as error:
                refused = error
                continue
            rows.append(
                {
                    "topic": place[0],
                    "partition": place[1],
                    "topic_id": ids[place[0]],
                    "committed": committed[place],
                    "end_offset": bounds[0],
                    "log_start": bounds[1],
                    "worked": None,
                }
            )
        if not rows:
            raise refused
        self.untold = len(rows) < len(asked)
        return rows


async def _rows(
    connection: psycopg.AsyncConnection[Any], name: str, **parameters: Any
) -> list[tuple[Any, ...]]:
    cursor = await connection.execute(query(name), parameters)
    return await cursor.fetchall() if cursor.description else []


def _json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()
