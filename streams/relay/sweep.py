"""Find what was published and never got a fate, or should have moved long ago, and send it again; the leader does it.

A message is lost only when its topic's consumers have committed past everything that was there when it was already
published, and PostgreSQL still knows no fate of it.  What merely lags is left alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from db import connect, query
from streams import kafka
from streams.registry import Registry
from streams.settings import Settings

logger = logging.getLogger("streams.relay")

PATIENCE = 120.0  # seconds an open message may be overdue: workers compare their schedule every half minute
IDS = 500_000  # ids looked at in one step
MOST = 1000  # messages sent again in one step
TIMEOUT = 10.0

Offsets = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it is now: its id, the end of each partition, and up to where the workers committed (-1: never)."""

    uuid: str
    ends: Offsets
    committed: Offsets

    def passed(self, mark: Topic) -> bool:
        """Whether the workers have committed past everything that was there at `mark`; another topic id starts anew."""
        return self.uuid == mark.uuid and all(
            end == 0 or self.committed.get(partition, -1) >= end for partition, end in mark.ends.items()
        )


class Suspects:
    """Messages seen without a fate, each with its topic as it was then."""

    def __init__(self) -> None:
        self._marks: dict[int, Topic] = {}

    def guilty(self, seen: Iterable[tuple[int, str]], topics: Mapping[str, Topic]) -> list[int]:
        """Which of those seen now were seen before a point that the workers have committed past by now."""
        marks: dict[int, Topic] = {}
        lost = []
        for outbox_id, name in seen:
            topic = topics.get(name)
            if topic is None:
                continue
            mark = self._marks.get(outbox_id)
            if mark is not None and mark.uuid == topic.uuid:
                marks[outbox_id] = mark
                if topic.passed(mark):
                    lost.append(outbox_id)
            else:
                marks[outbox_id] = topic
        self._marks = marks
        return lost

    def forget(self, ids: Iterable[int]) -> None:
        """These were sent again: they are judged anew once that is published."""
        for outbox_id in ids:
            self._marks.pop(outbox_id, None)


class Sweep:
    """Runs until cancelled; an outage of either side costs a round, nothing else."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._topics = registry.topics
        self._lost, self._overdue = Suspects(), Suspects()
        # By topic: one whose workers lag does not keep another one's lost messages waiting.
        self._swept = dict.fromkeys(self._topics, 0)
        self._kafka: tuple[AdminClient, Consumer] | None = None

    async def run(self) -> None:
        """One round after another."""
        while True:
            try:
                connection = await connect(
                    self._settings.database_url,
                    connect_timeout=self._settings.database.connect_timeout,
                    application_name="outbox-streams relay sweep",
                )
                async with connection:
                    while True:
                        await self.round(connection)
                        await asyncio.sleep(self._settings.relay.sweep_interval)
            except (psycopg.Error, KafkaException, OSError) as error:
                logger.warning("sweep interrupted", extra={"error": type(error).__name__})
            await asyncio.sleep(self._settings.relay.sweep_interval)

    async def round(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Look once; returns how many messages were sent again."""
        [(floor, oldest)] = await _rows(connection, "sweep_reach", relay=self._settings.relay.name)
        lost = [found for topic in self._topics for found in await self._fateless(connection, topic, floor, oldest)]
        overdue = await _rows(connection, "sweep_overdue", patience=PATIENCE, floor=floor, most=MOST)
        if not lost and not overdue:
            return 0
        topics = await asyncio.to_thread(self._look, {topic for _, topic in [*lost, *overdue]})
        guilty = [(self._lost, "lost", self._lost.guilty(lost, topics))]
        guilty.append((self._overdue, "overdue", self._overdue.guilty(overdue, topics)))
        return sum([await self._resend(connection, *found) for found in guilty])

    async def _fateless(
        self, connection: psycopg.AsyncConnection[Any], topic: str, floor: int, oldest: int
    ) -> list[tuple[Any, ...]]:
        """The first of a topic, from where all before have a fate."""
        after = max(self._swept[topic], oldest - 1)
        upto = min(floor, after + IDS)
        found = await _rows(connection, "sweep_lost", topic=topic, after=after, upto=upto, floor=floor, most=MOST)
        self._swept[topic] = found[0][0] - 1 if found else max(self._swept[topic], upto)
        return found

    async def _resend(
        self, connection: psycopg.AsyncConnection[Any], suspects: Suspects, why: str, ids: list[int]
    ) -> int:
        if not ids:
            return 0
        async with connection.transaction():
            sent = await _rows(connection, "sweep_resend", ids=ids)
        suspects.forget(ids)
        example = {"outbox_id": sent[0][1], "resent_as": sent[0][0]} if sent else {}
        logger.warning("messages sent again", extra={"count": len(sent), "reason": why, **example})
        return len(sent)

    def _look(self, names: Iterable[str]) -> dict[str, Topic]:
        """These topics as they are now; blocking.  Committed offsets first: they only grow."""
        admin, consumer = self._clients()
        known = admin.list_topics(timeout=TIMEOUT).topics
        wanted = sorted(name for name in names if name in self._topics and name in known)
        if not wanted:
            return {}
        described = admin.describe_topics(TopicCollection(wanted))
        found = {}
        for name in wanted:
            asked = [TopicPartition(name, number) for number in sorted(known[name].partitions)]
            committed = {tp.partition: tp.offset for tp in consumer.committed(asked, timeout=TIMEOUT)}
            ends = {tp.partition: consumer.get_watermark_offsets(tp, timeout=TIMEOUT)[1] for tp in asked}
            found[name] = Topic(str(described[name].result(TIMEOUT).topic_id), ends, committed)
        return found

    def _clients(self) -> tuple[AdminClient, Consumer]:
        """One of each for all rounds.  The consumer never joins its group, it only asks: the admin client's own request
        for a group's offsets takes the process down (confluent-kafka 2.16.1)."""
        if self._kafka is None:
            options = kafka.client(self._settings)
            self._kafka = (
                AdminClient(options),
                Consumer(options | {"group.id": self._settings.worker.group, "enable.auto.commit": False}),
            )
        return self._kafka


async def _rows(connection: psycopg.AsyncConnection[Any], name: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query(name), parameters)).fetchall()
