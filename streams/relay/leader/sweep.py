"""Send again what was published and got no fate, or should have moved long ago.

A message is lost only when the workers are past everything that its own partition held when it was
already published, and PostgreSQL still knows no fate of it. What merely lags is left alone. An
example: the floor is 700 while partition 3 ends at offset 90. Once the workers have committed 90,
or Kafka has deleted everything before 90, each message of partition 3 with an id up to 700 was read
or is lost.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from streams.broker import kafka, topics
from streams.broker.partitioner import partition_of
from streams.database import connect, partitions, query
from streams.database.refusals import refusal, sqlstate, words
from streams.errors import ServiceUnreachable
from streams.registry import Registry
from streams.settings import Settings
from streams.tasks import apart

logger = logging.getLogger("streams.relay")

# Seconds an open message may be overdue: workers compare their schedule every half minute
PATIENCE = 120.0
IDS = 500_000  # ids looked at in one step
MOST = 1000  # messages read, and sent again, in one step
MOST_SENT = 20_000  # messages of one topic sent again in one round
MOST_READ = 100_000  # messages of one topic without a fate read in one round
TIMEOUT = 10.0
# Seconds after which it is asked again what was refused, and said again what cannot be done.
REFUSED_SECONDS = 600.0
# Classes of SQLSTATEs that may be about one row: a value, a constraint, a view's check, a limit, a
# trigger of the user's own.
OF_A_ROW = ("22", "23", "44", "54", "57014", "P0")

ANY = "(any)"
"""Where what is done for all topics at once is told of as if it were one."""

Offsets = Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic as it is now.

    uuid: its id, another one for a topic that was deleted and made again.
    starts, ends: by partition, the first offset that Kafka still has and the one behind the last.
    committed: by partition, up to where the workers committed; -1 where they never did.
    """

    uuid: str
    starts: Offsets
    ends: Offsets
    committed: Offsets

    def reached(self, partition: int) -> int:
        """The offset before which nothing of this partition will be read any more."""
        committed = self.committed.get(partition, -1)
        if committed > self.ends[partition]:
            committed = -1  # of a log that is gone
        return max(committed, self.starts[partition])


@dataclass(slots=True)
class Progress:
    """Up to which outbox id each partition of one topic was passed by its workers."""

    uuid: str = ""
    partitions: int = 0
    marks: dict[int, tuple[int, int]] = field(default_factory=dict)
    passed: dict[int, int] = field(default_factory=dict)

    def note(self, topic: Topic, floor: int) -> None:
        """Take in the topic as it is now.

        `floor` was read before: all up to it was published then.
        """
        if (topic.uuid, len(topic.ends)) != (self.uuid, self.partitions):
            self.uuid, self.partitions = topic.uuid, len(topic.ends)
            self.marks, self.passed = {}, {}
        for partition, end in topic.ends.items():
            mark = self.marks.get(partition)
            if mark is not None:
                marked, marked_end = mark
                if end >= marked_end:
                    if topic.reached(partition) < marked_end:
                        continue
                    self.passed[partition] = marked
                # Else the log lost its tail: nobody will reach the end that was marked.
            self.marks[partition] = (floor, end)

    def lost(self, rows: Iterable[tuple[int, str, int]], passed: Mapping[int, int]) -> list[int]:
        """Those of (id, key, id it was last sent under) whose record was passed."""
        return [
            outbox_id
            for outbox_id, key, sent_as in rows
            if sent_as <= passed.get(partition_of(key, self.partitions), 0)
        ]


class Reach(NamedTuple):
    """Up to where everything was published, and the newest id that was drawn."""

    floor: int
    newest: int


class Overdue(NamedTuple):
    """An open message that should have moved, with the id of its last record."""

    outbox_id: int
    topic: str
    key: str
    sent_as: int


@dataclass(slots=True)
class Pass:
    """One way through a topic's messages without a fate, of one or several rounds.

    What counts as passed stays as it was at the beginning: if it grew on the way, a later message
    of a conversation could be sent again before an earlier one.
    """

    uuid: str
    passed: Mapping[int, int]
    after: int
    held: set[str] = field(default_factory=set)
    """Conversations of which a message is refused: a later one must not go past it."""


@dataclass(slots=True)
class Watch:
    """One way through a topic's overdue messages, of one or several rounds; it goes on at `after`.

    `seen` has the floor when each was first seen, of those that this way has come to so far, and
    `before` of those of the last one.
    """

    after: int = 0
    seen: dict[int, int] = field(default_factory=dict)
    before: dict[int, int] = field(default_factory=dict)

    def note(self, ids: Iterable[int], floor: int, last: int | None) -> None:
        """Take in what a look found; `last` is where the next one goes on, None at the end."""
        self.seen.update({each: self.before.get(each, floor) for each in ids})
        self.after = last or 0
        if last is None:
            self.before, self.seen = self.seen, {}

    def first_seen(self, outbox_id: int) -> int:
        """The floor when this message was first seen overdue."""
        return self.seen[outbox_id] if outbox_id in self.seen else self.before[outbox_id]

    def forget(self, ids: Iterable[int]) -> None:
        """They were sent again: from now on other records move them."""
        for outbox_id in ids:
            self.seen.pop(outbox_id, None)
            self.before.pop(outbox_id, None)


@dataclass(slots=True)
class Refusals:
    """What the database does not let us send again of one topic, and why, until it is tried again.

    By id, each with the time (monotonic) of the next try.
    """

    until: dict[int, float] = field(default_factory=dict)
    reason: str = ""

    def note(self, outbox_id: int, reason: str) -> None:
        """This one was refused now."""
        self.until[outbox_id], self.reason = time.monotonic() + REFUSED_SECONDS, reason

    def current(self) -> frozenset[int]:
        """Those that are not to be tried yet."""
        now = time.monotonic()
        self.until = {each: until for each, until in self.until.items() if until > now}
        return frozenset(self.until)


class Sweep:
    """Runs until cancelled; an outage of either side costs a round, nothing else.

    What is refused of one topic, or of one message, holds up no other one: `waits` tells of it.
    """

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self._settings = settings
        self._topics = registry.topics
        self._progress = {name: Progress() for name in self._topics}
        self._passes: dict[str, Pass] = {}
        # By topic: conversations whose workers are away keep no other one's waiting.
        self._watches = {name: Watch() for name in self._topics}
        # By topic: one whose workers lag does not keep another one's lost messages waiting.
        self._swept = dict.fromkeys(self._topics, 0)
        self._refused = {name: Refusals() for name in self._topics}
        self._failed: dict[str, str] = {}
        # By topic: when it was said last that Kafka does not let it be read.
        self._unreadable: dict[str, float] = {}
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
            except (psycopg.Error, KafkaException, ServiceUnreachable, OSError) as error:
                self._kafka = None
                about = {"error": type(error).__name__, "sqlstate": sqlstate(error)}
                logger.warning("sweep interrupted", extra=about)
            await asyncio.sleep(self._settings.relay.sweep_interval)

    async def round(self, connection: psycopg.AsyncConnection[Any]) -> int:
        """Look once; returns how many messages were sent again."""
        failing: dict[str, str] = {}
        try:
            return await self._round(connection, failing)
        finally:
            self._failed = failing

    async def _round(
        self, connection: psycopg.AsyncConnection[Any], failing: dict[str, str]
    ) -> int:
        # The floor first: what it covers was published before the ends that are asked for next.
        reach = Reach(*(await _rows(connection, "sweep_reach", relay=self._settings.relay.name))[0])
        floor, oldest = reach.floor, await partitions.first(connection)
        with self._alone(connection, ANY, failing):
            await self._make_due(connection)
        waiting = set[str]()
        for name in self._topics:
            with self._alone(connection, name, failing):
                if await self._any_fateless(connection, name, reach, oldest):
                    waiting.add(name)
        overdue = await self._find_overdue(connection, reach)
        wanted = waiting | {topic for _, topic, _, _ in overdue}
        if not wanted:
            return 0
        looked = await apart(self._look, wanted)
        for name, topic in looked.items():
            self._progress[name].note(topic, floor)
        lost, moved = list[tuple[int, int]](), list[tuple[int, int]]()
        for name in sorted(waiting & looked.keys()):
            with self._alone(connection, name, failing):
                lost += await self._send_lost(connection, name, reach, oldest)
        for name in looked:
            heads = [each for each in overdue if each.topic == name]
            with self._alone(connection, name, failing):
                moved += await self._send_overdue(connection, name, heads)
        _report("lost", lost)
        _report("overdue", moved)
        return len(lost) + len(moved)

    @contextmanager
    def _alone(
        self, connection: psycopg.AsyncConnection[Any], name: str, failing: dict[str, str]
    ) -> Iterator[None]:
        """What fails of this topic within this holds up no other one."""
        try:
            yield
        except psycopg.Error as error:
            if connection.closed:
                raise
            failing[name] = refusal(error)
            if self._failed.get(name) != failing[name]:
                extra = {"topic": name, "error": failing[name]}
                logger.warning("topic not swept", extra=extra)

    @property
    def waits(self) -> list[str]:
        """What cannot be sent again, a line for each topic, and why."""
        lines = []
        for name, refused in self._refused.items():
            if ids := refused.current():
                more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
                lines.append(f"message {min(ids)}{more} of topic {name}: {refused.reason}")
        return [*lines, *(f"topic {name}: {reason}" for name, reason in self._failed.items())]

    async def _make_due(self, connection: psycopg.AsyncConnection[Any]) -> None:
        """What was set aside by a server whose clock was ahead, and is right by now."""
        [(ids, foreign)] = await _rows(connection, "sweep_early", most=MOST)
        early = await _rows(connection, "sweep_make_due", ids=ids) if ids else []
        if foreign:
            early += await _rows(connection, "sweep_make_foreign_due", most=MOST)
        if early:
            extra = {"count": len(early), "first": min(row[0] for row in early)}
            logger.warning("messages were to wait for a time far ahead, due now", extra=extra)

    async def _find_overdue(
        self, connection: psycopg.AsyncConnection[Any], reach: Reach
    ) -> list[Overdue]:
        """Open messages that should have moved, unless their last record may be under way.

        Of a topic that has more of them than one look takes, those behind the last look's.
        """
        rows = await _rows(
            connection,
            "sweep_overdue",
            topics=list(self._watches),
            afters=[watch.after for watch in self._watches.values()],
            patience=PATIENCE,
            floor=reach.floor,
            most=MOST,
        )
        resent, by_topic = dict[int, int](), dict[str, list[Overdue]]()
        if ids := [row[0] for row in rows]:
            where = {"ids": ids, "after": min(ids), "newest": reach.newest}
            resent = dict(await _rows(connection, "sweep_resent", **where))
        for outbox_id, topic, key in rows:
            sent_as = resent.get(outbox_id, outbox_id)
            by_topic.setdefault(topic, []).append(Overdue(outbox_id, topic, key, sent_as))
        overdue: list[Overdue] = []
        for name, watch in self._watches.items():
            heads = by_topic.get(name, [])
            published = [
                each
                for each in heads
                if each.sent_as == each.outbox_id or each.sent_as <= reach.floor
            ]
            last = heads[-1].outbox_id if len(heads) == MOST else None
            watch.note((each.outbox_id for each in published), reach.floor, last)
            overdue += published
        return overdue

    async def _any_fateless(
        self, connection: psycopg.AsyncConnection[Any], topic: str, reach: Reach, oldest: int
    ) -> bool:
        """Whether a message of the topic has no fate; remembers from where all before have one."""
        after = max(self._swept[topic], oldest - 1)
        if reach.floor - after > IDS:
            # Every message had its fate where retention went; years of ids may be between two
            # that are left.
            for start, end in await _rows(connection, "retired_after", after=after):
                if start > after + 1:
                    break
                after = end
        upto = max(after, min(reach.floor, after + IDS))
        # As if all were published: what was sent again and is under way may be lost once more.
        where = {"topic": topic, "after": after, "upto": upto, "newest": reach.newest}
        first = await _rows(connection, "sweep_lost", **where, floor=reach.newest, most=1)
        self._swept[topic] = first[0][0] - 1 if first else max(self._swept[topic], upto)
        return bool(first)

    async def _send_lost(
        self, connection: psycopg.AsyncConnection[Any], name: str, reach: Reach, oldest: int
    ) -> list[tuple[int, int]]:
        """Send again what the workers passed, in the order of its ids.

        Gives [(id of the new row, outbox_id)].
        """
        progress = self._progress[name]
        current = self._passes.pop(name, None)
        if current is None or current.uuid != progress.uuid:
            current = Pass(progress.uuid, dict(progress.passed), max(self._swept[name], oldest - 1))
        last = max(current.passed.values(), default=0)
        sent: list[tuple[int, int]] = []
        read = 0
        while current.after < last:
            if len(sent) >= MOST_SENT or read >= MOST_READ:
                self._passes[name] = current
                break
            upto = min(last, current.after + IDS)
            where = {"topic": name, "after": current.after, "upto": upto, **reach._asdict()}
            rows = await _rows(connection, "sweep_lost", **where, most=MOST)
            read += len(rows)
            lost = progress.lost(rows, current.passed)
            keys = {outbox_id: key for outbox_id, key, _ in rows}
            sent += await self._resend(
                connection, name, [(one, keys[one]) for one in lost], current.held
            )
            current.after = rows[-1][0] if len(rows) == MOST else upto
        return sent

    async def _send_overdue(
        self, connection: psycopg.AsyncConnection[Any], name: str, heads: list[Overdue]
    ) -> list[tuple[int, int]]:
        """Send again those of a topic that the workers passed since they were seen overdue.

        Gives [(id of the new row, outbox_id)].
        """
        progress, watch = self._progress[name], self._watches[name]
        # Workers that are away move nothing: they must have gone on since.
        rows = [
            (each.outbox_id, each.key, max(each.sent_as, watch.first_seen(each.outbox_id)))
            for each in heads
        ]
        stuck = progress.lost(rows, progress.passed)
        keys = {each.outbox_id: each.key for each in heads}
        moved = await self._resend(connection, name, [(one, keys[one]) for one in stuck], set())
        watch.forget(outbox_id for _, outbox_id in moved)
        return moved

    async def _resend(
        self,
        connection: psycopg.AsyncConnection[Any],
        name: str,
        messages: Sequence[tuple[int, str]],
        held: set[str],
    ) -> list[tuple[int, int]]:
        """Send these again, each (id, key), in their order, but for what is refused.

        Whatever is of the conversation of one that is refused stays behind it: its key is `held`.
        """
        refused = self._refused[name]
        resting, sent = refused.current(), list[tuple[int, int]]()
        held |= {key for outbox_id, key in messages if outbox_id in resting}
        # Halved where one is refused, down to that one; what comes first of them is sent first.
        left = [list(messages)]
        while left:
            part = [(one, key) for one, key in left.pop() if key not in held]
            try:
                sent += await self._send(connection, [one for one, _ in part])
            except psycopg.Error as error:
                if connection.closed or not sqlstate(error).startswith(OF_A_ROW):
                    raise
                if len(part) == 1:
                    [(outbox_id, key)] = part
                    held.add(key)
                    refused.note(outbox_id, reason := refusal(error))
                    about = {"topic": name, "outbox_id": outbox_id, "error": reason}
                    logger.error("message cannot be sent again", extra=about)
                else:
                    middle = len(part) // 2
                    left += [part[middle:], part[:middle]]
        return sent

    async def _send(
        self, connection: psycopg.AsyncConnection[Any], ids: list[int]
    ) -> list[tuple[int, int]]:
        if not ids:
            return []
        async with connection.transaction():
            bodies = ids + [row[0] for row in await _rows(connection, "sources", ids=ids)]
            return [
                (row[0], row[1])
                for row in await _rows(connection, "sweep_resend", ids=ids, bodies=bodies)
            ]

    def _look(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those of these topics that can be read, as they are now; blocking."""
        admin, consumer = self._clients()
        known = admin.list_topics(timeout=TIMEOUT).topics
        wanted = sorted(name for name in names if name in self._topics and name in known)
        if not wanted:
            return {}
        described = admin.describe_topics(TopicCollection(wanted))
        looked = {}
        for name in wanted:
            asked = [TopicPartition(name, number) for number in sorted(known[name].partitions)]
            try:
                uuid = str(described[name].result(TIMEOUT).topic_id)
                # Committed offsets first: they only grow.
                places = [(name, tp.partition) for tp in asked]
                offsets = topics.committed(consumer, places, {name: uuid}, timeout=TIMEOUT)
                committed = {
                    number: -1 if offset is None else offset
                    for (_, number), offset in offsets.items()
                }
                bounds = {
                    tp.partition: consumer.get_watermark_offsets(tp, timeout=TIMEOUT)
                    for tp in asked
                }
            except (KafkaException, ServiceUnreachable, TimeoutError) as error:
                # A client that knew of leaders from before a fence names them for ever.
                self._kafka = None
                said = self._unreadable.get(name, -REFUSED_SECONDS)
                if time.monotonic() - said >= REFUSED_SECONDS:
                    reason = words(error)
                    if isinstance(error, KafkaException):
                        reason = kafka.reason(error)
                    logger.warning("topic not swept", extra={"topic": name, "error": reason})
                    self._unreadable[name] = time.monotonic()
                continue
            self._unreadable.pop(name, None)
            starts = {partition: start for partition, (start, _) in bounds.items()}
            ends = {partition: end for partition, (_, end) in bounds.items()}
            looked[name] = Topic(uuid, starts, ends, committed)
        return looked

    def _clients(self) -> tuple[AdminClient, Consumer]:
        """One client of each kind for all rounds.

        The consumer never joins its group, it only asks: the admin client's own request for a
        group's offsets takes the process down (confluent-kafka 2.16.1).
        """
        if self._kafka is None:
            options = kafka.client(self._settings)
            group = {"group.id": self._settings.worker.group, "enable.auto.commit": False}
            # What an open or aborted transaction wrote is nothing that a worker reads.
            group["isolation.level"] = "read_committed"
            self._kafka = (AdminClient(options), Consumer(options | group))
        return self._kafka


def _report(reason: str, sent: list[tuple[int, int]]) -> None:
    """One line a round, with an example."""
    if sent:
        example = {"outbox_id": sent[0][1], "resent_as": sent[0][0]}
        logger.warning(
            "messages sent again", extra={"count": len(sent), "reason": reason, **example}
        )


async def _rows(
    connection: psycopg.AsyncConnection[Any], name: str, **parameters: Any
) -> list[tuple[Any, ...]]:
    return await (await connection.execute(query(name), parameters)).fetchall()
