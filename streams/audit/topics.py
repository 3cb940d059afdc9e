"""What Kafka says: how long each partition is, what is committed, and which topic it is."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from streams.broker import kafka, topics
from streams.broker.consumers import ConsumerGroup, consumer_group
from streams.message_id import outbox_number
from streams.settings import Settings

Place = tuple[str, int]

LOCATE_SECONDS = 60.0
FIRST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition: its records from `start` to before `end`, and the committed offset.

    That is the group's; None where it has none.
    """

    start: int
    end: int
    committed: int | None

    @property
    def worked(self) -> bool:
        """Whether the workers have committed past every record there was."""
        return self.end == self.start or (self.committed is not None and self.committed >= self.end)


class Topics:
    """The consumed topics, as a member of no group; close it."""

    def __init__(self, settings: Settings, names: Iterable[str]) -> None:
        self._settings, self._names = settings, sorted(set(names))
        options = {
            "group.id": settings.worker.group,
            "enable.auto.commit": False,
            # What an open or aborted transaction wrote is nothing that a worker reads.
            "isolation.level": "read_committed",
        }
        self._consumer = Consumer(kafka.client(settings) | options)
        self._survey = topics.Survey(settings)
        self._ids: dict[str, str] | None = None

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def partitions(self) -> dict[Place, Partition]:
        """Every partition now; ServiceUnreachable without a broker.

        The ends are asked for first, so that what is committed is not older.
        """
        return kafka.answer(self._settings, self._partitions)

    def _partitions(self) -> dict[Place, Partition]:
        listed = self._consumer.list_topics(timeout=kafka.TIMEOUT).topics
        places = [
            (name, number)
            for name in self._names
            if name in listed
            for number in listed[name].partitions
        ]
        bounds = {place: self._bounds(place) for place in places}
        committed = topics.committed(self._consumer, places, self.ids(), timeout=kafka.TIMEOUT)
        return {place: Partition(*bounds[place], committed[place]) for place in places}

    def ids(self) -> dict[str, str]:
        """Each topic's identity when it was first asked for.

        A topic that was deleted and made again has another.
        """
        if self._ids is None:
            self._ids = {
                name: topic.id for name, topic in self._survey.look(self._names).topics.items()
            }
        return self._ids

    def group(self) -> ConsumerGroup:
        """The workers' group now."""
        return consumer_group(self._settings, self._names)

    def unread_since(
        self, places: Iterable[Place], now: Mapping[Place, Partition]
    ) -> dict[Place, float]:
        """For how many seconds each partition's first unread record has waited."""
        starts = {place: max(now[place].committed or 0, now[place].start) for place in places}
        left = {place for place, start in starts.items() if start < now[place].end}
        waited: dict[Place, float] = {}
        try:
            self._consumer.assign([TopicPartition(*place, starts[place]) for place in sorted(left)])
            deadline = time.monotonic() + FIRST_SECONDS
            while left and time.monotonic() < deadline:
                for message in self._consumer.consume(100, timeout=1.0):
                    place = str(message.topic()), int(message.partition() or 0)
                    if place in left:
                        left.remove(place)
                        waited[place] = time.time() - message.timestamp()[1] / 1000
        except KafkaException as error:
            raise kafka.unreachable(self._settings, error) from None
        finally:
            self._consumer.unassign()
        return waited

    def values(
        self, bounds: Mapping[Place, tuple[int, int]], seconds: float
    ) -> Iterator[tuple[Place, int, bytes | None]]:
        """The records (partition, offset, value) in these bounds, the second one not included.

        It ends after that time at the latest.
        """
        left = {place: end for place, (start, end) in bounds.items() if start < end}
        deadline = time.monotonic() + seconds
        try:
            self._consumer.assign(
                [TopicPartition(*place, bounds[place][0]) for place in sorted(left)]
            )
            while left and time.monotonic() < deadline:
                for message in self._consumer.consume(1000, timeout=1.0):
                    place, offset = (
                        (str(message.topic()), int(message.partition() or 0)),
                        int(message.offset() or 0),
                    )
                    if offset < bounds[place][1]:
                        value = message.value()
                        yield place, offset, value.encode() if isinstance(value, str) else value
                    if offset + 1 >= left.get(place, 0):
                        left.pop(place, None)
                self._drop_finished(left)
        except KafkaException as error:
            raise kafka.unreachable(self._settings, error) from None
        finally:
            self._consumer.unassign()

    def locate(
        self, wanted: Mapping[Place, Mapping[int, int]], until: Mapping[Place, Partition]
    ) -> dict[int, int]:
        """Offsets of those outbox ids whose records are still on the topic.

        They are asked for as {place: {id: milliseconds}}.
        """
        starts = [
            TopicPartition(*place, max(0, min(ids.values()))) for place, ids in wanted.items()
        ]
        offsets: dict[int, int] = {}
        # Records carry the time of their enqueueing: none of these is before the first one that
        # late.
        begin = kafka.answer(
            self._settings,
            lambda: self._consumer.offsets_for_times(starts, timeout=kafka.TIMEOUT),
        )
        try:
            left = {
                (each.topic, each.partition): until[each.topic, each.partition].end
                for each in begin
                if each.offset >= 0
            }
            self._consumer.assign([each for each in begin if each.offset >= 0])
            deadline = time.monotonic() + LOCATE_SECONDS
            while left and time.monotonic() < deadline:
                for message in self._consumer.consume(1000, timeout=1.0):
                    place, offset = (
                        (str(message.topic()), int(message.partition() or 0)),
                        int(message.offset() or 0),
                    )
                    if (outbox_id := _root(kafka.headers(message))) in wanted[place]:
                        offsets.setdefault(outbox_id, offset)
                    if offset + 1 >= left.get(place, 0):
                        left.pop(place, None)
                self._drop_finished(left)
        except KafkaException as error:
            raise kafka.unreachable(self._settings, error) from None
        finally:
            self._consumer.unassign()
        return offsets

    def _drop_finished(self, left: dict[Place, int]) -> None:
        """The last offset may be no record: the position says that it is behind us."""
        for each in self._consumer.position([TopicPartition(*place) for place in left]):
            if each.offset >= left[each.topic, each.partition]:
                del left[each.topic, each.partition]

    def _bounds(self, place: Place) -> tuple[int, int]:
        start, end = self._consumer.get_watermark_offsets(
            TopicPartition(*place), timeout=kafka.TIMEOUT
        )
        return start, end


def _root(headers: Mapping[str, Any]) -> int:
    """The message that a record is about; 0 when nobody can say, whatever the headers hold."""
    return outbox_number(headers.get("resend_of") or headers.get("id")) or 0
