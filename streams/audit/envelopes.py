"""Records of envelope topics below the committed offset: each has to have a state or a rejection.

Another system's outbox is its own, so that only the topic says what was sent. What workers had
passed before they began here (the topic was taken over) is not theirs: the audit begins where the
first record is that they know.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streams import envelope
from streams.audit.report import Report
from streams.audit.session import Session
from streams.audit.topics import Partition, Place, Topics
from streams.envelope import NoEnvelope
from streams.message_id import name_of
from streams.registry import Registry

BATCH = 10_000
# An audit that is not a full one goes on where the last one stopped.
SECONDS = 60.0
FOREVER = 24 * 3600.0


class Envelopes:
    """The check of every envelope topic; `ids` are the topics' identities."""

    def __init__(
        self, session: Session, topics: Topics, registry: Registry, report: Report, *, full: bool
    ) -> None:
        self._session, self._topics, self._registry = session, topics, registry
        self._report, self._full = report, full
        self._ids: Mapping[str, str] = {}

    def look(self, positions: Mapping[Place, Partition], ids: Mapping[str, str]) -> None:
        """Read the topics up to what was committed at the beginning.

        It begins where the last audit stopped, else at the first record known.
        """
        self._ids = ids
        bounds = self._bounds(positions, ids)
        reached = {place: start for place, (start, _) in bounds.items()}
        batch: list[tuple[Place, int, bytes | None]] = []
        for place, offset, value in self._topics.values(bounds, FOREVER if self._full else SECONDS):
            batch.append((place, offset, value))
            reached[place] = offset + 1
            if len(batch) == BATCH:
                self._judge(batch)
                batch = []
        self._judge(batch)
        for (topic, partition), offset in sorted(reached.items()):
            known = self._report.envelopes.setdefault(topic, {"id": ids.get(topic), "offsets": {}})
            known["offsets"][str(partition)] = offset

    def _bounds(
        self, positions: Mapping[Place, Partition], ids: Mapping[str, str]
    ) -> dict[Place, tuple[int, int]]:
        rows = [] if self._full else self._session.rows("audit_envelopes")
        last: dict[str, Any] = (rows[0][0] if rows else None) or {}
        bounds: dict[Place, tuple[int, int]] = {}
        for place, partition in positions.items():
            topic, number = place
            if topic not in self._registry.envelopes or partition.committed is None:
                continue
            known = last.get(topic, {})
            same = known.get("id") == ids.get(topic)
            start = known.get("offsets", {}).get(str(number)) if same else None
            if start is None:
                [(start,)] = self._session.rows(
                    "foreign_first_offset",
                    topic=topic,
                    partition=number,
                    topic_id=ids.get(topic),
                )
            if start is not None:
                begin, end = max(start, partition.start), min(partition.committed, partition.end)
                bounds[place] = begin, max(begin, end)
        return bounds

    def _judge(self, batch: list[tuple[Place, int, bytes | None]]) -> None:
        messages: dict[str, dict[int, tuple[Place, int]]] = {}
        others: dict[Place, list[int]] = {}
        for place, offset, value in batch:
            try:
                outbox_id, _, _ = envelope.opened(value)
            except NoEnvelope:
                others.setdefault(place, []).append(offset)
            else:
                messages.setdefault(self._registry.envelopes[place[0]], {}).setdefault(
                    outbox_id, (place, offset)
                )
        for source, where in messages.items():
            for (outbox_id,) in self._session.rows(
                "foreign_stateless", source=source, ids=sorted(where)
            ):
                name = name_of(source, outbox_id)
                # What has an effect is not lost: that was said already.
                if not self._report.says("unclaimed_effect", name):
                    # No envelope is rejected: a range of those between which it stands may say so.
                    place, offset = where[outbox_id]
                    self._report.add(
                        "skipped", name, topic=place[0], partition=place[1], offset=offset
                    )
        for place, offsets in others.items():
            for offset in self._unrejected(place, offsets):
                self._report.add("skipped", None, topic=place[0], partition=place[1], offset=offset)

    def _unrejected(self, place: Place, offsets: list[int]) -> list[int]:
        parameters = {
            "topic": place[0],
            "partition": place[1],
            "offsets": offsets,
            "topic_id": self._ids.get(place[0]),
        }
        return [row[0] for row in self._session.rows("audit_unrejected", **parameters)]
