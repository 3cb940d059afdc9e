"""Work that waits although it is old: not published, not read, and nobody there who would do it.

Each is looked for twice, at the beginning and at the end of an audit: a transaction that took long,
or a relay that had just come back, is no fault.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

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


class Unread(NamedTuple):
    """Where a message waits, and which row of it, where that is a replay."""

    partition: int | None
    replay: int | None


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
        self._unread: dict[str, dict[int, Unread]] = {}
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

    def is_unread(
        self, outbox_id: int, topic: str, place: Place | None, *, replay: int | None = None
    ) -> bool:
        """Keep a message that nobody has read to be told of; False when its topic has too many.

        `replay` is the row that was sent, of one that was replayed.
        """
        unread = self._unread.setdefault(topic, {})
        if outbox_id not in unread and len(unread) >= MOST_UNREAD:
            return False
        unread[outbox_id] = Unread(place[1] if place else None, replay)
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
            (at, topic, outbox_id)
            for topic, unread in self._unread.items()
            for at, outbox_id in enumerate(self._still(unread))
        ]
        # The first of each topic, then the second of each: many of one hide none of another.
        for _, topic, outbox_id in sorted(left):
            one = self._unread[topic][outbox_id]
            source = {} if one.replay is None else {"source": one.replay}
            report.add("unread", outbox_id, topic=topic, partition=one.partition, **source)
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

    def _still(self, unread: Mapping[int, Unread]) -> list[int]:
        """Those that nobody has read yet, in the order of their ids."""
        replays = {each: row.replay for each, row in unread.items() if row.replay is not None}
        given = {"ids": list(replays), "sources": list(replays.values())}
        first = sorted(unread.keys() - replays.keys())
        rows = self._session.rows("audit_stateless", ids=first)
        rows += self._session.rows("audit_still_replaying", **given)
        return sorted(row[0] for row in rows)

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
