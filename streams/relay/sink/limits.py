"""Which rows Kafka can take: known topics, valid names, records of a size it allows."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from streams.broker import kafka
from streams.relay.sink.new_topics import NewTopics
from streams.relay.source.rows import Row
from streams.settings import Settings
from streams.tasks import apart

# A topic that was just created takes a moment until every broker knows it; a missing one is not
# waited for again soon.
PATIENCE_SECONDS = 5.0
FORGET_SECONDS = 30.0

_NAME = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")
# Around a record: the batch's header, lengths, attributes; measured 61 + 21 at most, header names
# included below.
_FRAME = 256


class RecordLimits:
    """What is known of the topics.

    `roomy` maps a topic to the payload size that fits without a closer look.
    """

    def __init__(
        self, settings: Settings, refused: dict[int, str], new_topics: NewTopics | None = None
    ) -> None:
        self.largest = max(kafka.record_limit(settings), 1_000_000)
        self.smallest = self.largest
        self.safe_payload: dict[str, int] = {}
        self._settings = settings
        self._new_topics = new_topics or NewTopics(settings)
        self._refused = refused
        self._limits: dict[str, int] = {}
        self._missing: dict[str, float] = {}

    async def learn(self, topics: Iterable[str], *, patience: float = 0.0) -> None:
        """Ask the broker about these topics; ServiceUnreachable when it does not answer."""
        limits = await apart(kafka.topic_limits, self._settings, list(topics), patience=patience)
        for topic, limit in limits.items():
            self._limits[topic] = min(limit, self.largest)
            self.smallest = min(self.smallest, limit)
            if not self._refused:
                self.safe_payload[topic] = self._limits[topic] - kafka.OVERHEAD

    def refuse(self, row: Row, reason: str) -> None:
        """The broker did not take this row, and never will."""
        self._refused[row.id] = reason

    async def fault(self, row: Row) -> str | None:
        """Why no record can carry this row, without a word of its payload; None when one can."""
        if row.id in self._refused:
            return self._refused[row.id]
        if row.timestamp is None:
            return (
                "created_at is not a time a Kafka record can carry (before 1970,"
                " after 9999 or infinite)"
            )
        if not _NAME.fullmatch(row.topic):
            return (
                f"topic {row.topic[:249]!r} is not a valid name: expected letters, digits, '.',"
                " '_' and '-'"
            )
        if row.topic not in self._limits and not await self._exists(row.topic):
            return (
                f"topic {row.topic!r} does not exist on the broker, and no biz_type is registered"
                " for it"
            )
        size = (
            _FRAME
            + len(row.key)
            + len(row.value)
            + sum(len(value or b"") for _, value in row.headers)
        )
        if size > self._limits[row.topic]:
            return (
                f"the record has {size} bytes, topic {row.topic!r} takes at most"
                f" {self._limits[row.topic]}"
            )
        return None

    async def _exists(self, topic: str) -> bool:
        fresh = time.monotonic() - self._missing.get(topic, -FORGET_SECONDS) < FORGET_SECONDS
        await self.learn([topic])
        if topic not in self._limits and (await self._new_topics.made(topic) or not fresh):
            await self.learn([topic], patience=PATIENCE_SECONDS)
        if topic in self._limits:
            self._missing.pop(topic, None)
            return True
        if not fresh:
            self._missing[topic] = time.monotonic()
        return False
