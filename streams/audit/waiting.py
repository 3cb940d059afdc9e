"""Work that waits although it is old: not published, not read, and nobody there who would do it.

Each is looked for twice, at the beginning and at the end of an audit: a transaction that took long,
or a relay that had just come back, is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streams.audit.ranges import WIDTH
from streams.audit.report import Report
from streams.audit.session import Session
from streams.audit.topics import Partition, Place, Topics
from streams.registry import Registry

# A leader writes its heartbeat every other second.
SILENT_SECONDS = 10.0
# So many unpublished rows are counted; where that many wait, the rest does as well.
MOST = 10_000
# So many unread messages of one topic are kept.
MOST_UNREAD = 10_000


class Waiting:
    """What waits longer than `age` seconds."""

    def __init__(
        self, session: Session, topics: Topics, registry: Registry, report: Report, age: float
    ) -> None:
        self._session, self._topics, self._registry, self._report = (
            session,
            topics,
            registry,
            report,
        )
        self.age = age
        self._unread: dict[str, dict[int, Place | None]] = {}
        self._above: dict[tuple[int, int], set[int]] = {}
        self._pending = False

    def look(self) -> None:
        """The first time: what is above the floor now, range by range up to the newest id."""
        left = MOST
        for bounds in self._ranges():
            if ids := {row[0] for row in self._unpublished(bounds, left)}:
                self._above[bounds] = ids
                left -= len(ids)
            if left <= 0:
                break
        [(_, self._pending)] = self._session.rows("audit_relays", floor=self._report.floor)

    def is_unread(self, outbox_id: int, topic: str, place: Place | None) -> bool:
        """Keep a message that nobody has read to be told of; False when its topic has too many."""
        unread = self._unread.setdefault(topic, {})
        if outbox_id not in unread and len(unread) >= MOST_UNREAD:
            return False
        unread[outbox_id] = place
        return True

    def judge(self, positions: Mapping[Place, Partition]) -> None:
        """The second time: what still waits, and who is missing.

        `positions` are those of the beginning.
        """
        _, _, floor = self._session.rows("audit_bounds")[0]
        rows = [
            row
            for (after, until), ids in self._above.items()
            for row in self._unpublished((max(after, floor), until), MOST)
            if row[0] in ids
        ]
        for outbox_id, resend_of, waited in rows:
            self._report.add("unpublished", outbox_id, resend_of=resend_of, waited=waited)
        [(silent, pending)] = self._session.rows("audit_relays", floor=floor)
        never = silent is None and bool(rows)
        if never or (
            self._pending
            and pending
            and silent is not None
            and silent > max(self.age, SILENT_SECONDS)
        ):
            self._report.add(
                "no_sign_of_life", None, who="relay", silent=None if never else round(silent, 1)
            )
        self._judge_workers(positions)

    def _judge_workers(self, positions: Mapping[Place, Partition]) -> None:
        report, latest = self._report, self._topics.partitions()
        left = [
            (at, topic, row[0])
            for topic, places in self._unread.items()
            for at, row in enumerate(self._session.rows("audit_stateless", ids=sorted(places)))
        ]
        # The first of each topic, then the second of each: many of one hide none of another.
        for _, topic, outbox_id in sorted(left):
            place = self._unread[topic][outbox_id]
            report.add("unread", outbox_id, topic=topic, partition=place[1] if place else None)
        lagging = [
            place
            for place, partition in positions.items()
            if place[0] in self._registry.envelopes and not partition.worked and place in latest
        ]
        since = self._topics.unread_since(lagging, latest) if lagging else {}
        for place, waited in since.items():
            if waited > self.age:
                partition = latest[place]
                about: dict[str, Any] = {
                    "committed": partition.committed,
                    "end": partition.end,
                    "waited": round(waited),
                }
                report.add("unread", None, topic=place[0], partition=place[1], **about)
        if ("unread" in report.wrong or "stuck" in report.wrong) and not (
            group := self._topics.group()
        ).members:
            report.add("no_sign_of_life", None, who="workers", group=group.name)

    def _ranges(self) -> Iterator[tuple[int, int]]:
        """(after, until) of what is above the floor, as far as there are rows."""
        _, newest, _ = self._session.rows("audit_bounds")[0]
        after = self._report.floor
        while after < newest:
            [(following,)] = self._session.rows("audit_next", after=after)
            if following is None:
                return
            until = min(following - 1 + WIDTH, newest)
            yield following - 1, until
            after = until

    def _unpublished(self, bounds: tuple[int, int], most: int) -> list[tuple[Any, ...]]:
        after, until = bounds
        return self._session.rows(
            "audit_unpublished", after=after, until=until, age=self.age, most=most
        )
