"""The audit: read what is new range by range, look again at what was unsettled, say what is wrong.

A message without a state is lost only if nobody can still be about to persist it: the floor says
that it was published, the ends of the partitions are read after the floor, and the workers'
committed offsets have passed those ends.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from streams.audit.effects import UNREADABLE, Effects
from streams.audit.envelopes import Envelopes
from streams.audit.foreign import Foreign
from streams.audit.ranges import WIDTH, Range, extents, stored
from streams.audit.report import Report
from streams.audit.session import Session
from streams.audit.tables import Tables
from streams.audit.tallies import Tallies
from streams.audit.topics import Partition, Place, Topics
from streams.audit.waiting import Waiting
from streams.broker.partitioner import partition_of
from streams.message_id import MessageId
from streams.registry import Registry

# So many messages of one range that are on their way, or wait beyond what is told of, are a
# backlog: the next audit begins with that range again. What is behind it is looked at all the same.
BACKLOG = 1000
LEFT = 20_000
OPEN = 5_000
EVERYTHING = -(2**63) + 1
SECOND_LOOK = 40.0


class Audit:
    """One audit of one database and its topics."""

    def __init__(
        self,
        session: Session,
        topics: Topics,
        registry: Registry,
        *,
        full: bool,
        grace: float,
        patience: float,
        age: float,
        foreign_days: float | None = None,
    ) -> None:
        self._foreign_days = foreign_days
        self._session, self._topics, self._full = session, topics, full
        self._grace, self._patience = grace, patience
        self.report = Report(complete=full)
        self._tables = Tables(session, self.report)
        self._effects = Effects(session, self._tables, registry, self.report)
        self._registry = registry
        self._waiting = Waiting(session, topics, registry, self.report, age)
        self.lost: dict[int, tuple[Place, int]] = {}
        # Those whose effect may be there for all we can read: they are not to be sent again.
        self.doubtful: set[int] = set()
        self.lost_replays: list[int] = []

    def run(self, advance: Callable[[int, int], None] = lambda done, total: None) -> Report:
        """Everything but repair and writing it down; `advance` takes ids done and to do."""
        with self._session.undisturbed():
            return self._run(advance)

    def _run(self, advance: Callable[[int, int], None]) -> Report:
        began = time.monotonic()
        report = self.report
        self._first, _, report.floor = self._session.rows("audit_bounds")[0]
        self._positions = self._topics.partitions()
        self._partitions = Counter(name for name, _ in self._positions)
        heads, looked = self._heads(), time.monotonic()
        self._waiting.look()
        self._wait()
        self._known = [stored(*row) for row in self._session.rows("audited_ranges")]
        self._ids = self._topics.ids()
        others = {
            name
            for name, topic_id, _ in self._session.rows("noted_topics")
            if self._ids.get(name) != topic_id
        }
        self._lenient = [
            name
            for name, topic_id in self._ids.items()
            if name in others
            or any(each.ids.get(name, topic_id) != topic_id for each in self._known)
        ]
        report.notes += [
            f"topic {name} began anew: order across that is judged by id" for name in self._lenient
        ]
        for name in ("audit_rows", "audit_before"):
            self._session.rows(name)
        self._retired = [(row[0], row[1]) for row in self._session.rows("audit_retired")]
        if self._full:
            self._session.rows("audited_anew")
            self._known = []
            for first, last in self._retired:
                # What is left of a range that is gone.
                left = [
                    row[0] for row in self._session.rows("range_unsettled", first=first, last=last)
                ]
                self._session.rows("audit_leave", ids=left)
        else:
            self._known = self._before_a_hole()
            self._known = self._before_what_can_be_read_again()
        self._look_again()
        self._look_at_new(advance)
        self._look_at_open()
        Foreign(self._session, self._tables, self._registry, report, days=self._foreign_days).look()
        if self._registry.envelopes:
            envelopes = Envelopes(
                self._session, self._topics, self._registry, report, full=self._full
            )
            envelopes.look(self._positions, self._ids)
        self._effects.beyond()
        self._ends()
        self._locate()
        self._replays()
        self._stuck(heads, looked)
        self._waiting.judge(self._positions)
        for biz_type, count, since, until in self._session.rows("unknown_biz_types"):
            about = {
                "biz_type": biz_type,
                "messages": count,
                "since": since.isoformat(),
                "until": until.isoformat(),
            }
            report.add("unknown_biz_type", None, **about)
        [(report.left,)] = self._session.rows("audit_left_count")
        report.seconds = time.monotonic() - began
        return report

    def _before_a_hole(self) -> list[Range]:
        """What was looked at, up to the first id that neither was nor is gone.

        What is behind such a hole is forgotten: whoever made it may have forgotten what was left
        there too.
        """
        known = self._known
        if not known:
            return known
        reached = min(self._first - 1, known[0].after)
        covered = [(each.after, each.until) for each in known]
        covered += [(first - 1, last) for first, last in self._retired]
        for after, until in sorted(covered):
            if after > reached:
                break
            reached = max(reached, until)
        kept = [each for each in known if each.until <= reached]
        if len(kept) < len(known):
            self._session.rows("audited_until", until=reached)
            self.report.notes.append(
                f"ids from {reached + 1} on are looked at again: a range was forgotten"
            )
        return kept

    def _before_what_can_be_read_again(self) -> list[Range]:
        """What was looked at, up to the first range with effects that could not be read then.

        Those that still cannot be are left as they are.
        """
        if not any(each.unchecked for each in self._known):
            return self._known
        self._effects.try_all()
        for at, each in enumerate(self._known):
            if readable := each.unchecked - self._effects.unchecked:
                self._session.rows("audited_until", until=each.after)
                self.report.notes.append(
                    f"ids from {each.after + 1} on are looked at again:"
                    f" {', '.join(sorted(readable))} could not be read"
                )
                return self._known[:at]
        return self._known

    def _wait(self) -> None:
        """Give workers a moment to get past what was there at the beginning.

        Most are past it within a second.
        """
        deadline = time.monotonic() + self._patience
        behind = self._behind()
        while behind and time.monotonic() < deadline:
            time.sleep(0.2)
            now = self._topics.partitions()
            for place in behind:
                if place in now:
                    was = self._positions[place]
                    self._positions[place] = Partition(was.start, was.end, now[place].committed)
            behind = self._behind()
        for topic, number in sorted(behind):
            self.report.lagging.setdefault(topic, []).append(number)

    def _behind(self) -> list[Place]:
        return [place for place, position in self._positions.items() if not position.worked]

    def _look_at_open(self) -> None:
        """At all that outbox_open has.

        A row that is left there of what was settled long ago holds a conversation.
        """
        after = EVERYTHING
        while True:
            with self._session.snapshot():
                ids = [
                    row[0] for row in self._session.rows("audit_open_ids", after=after, limit=OPEN)
                ]
                where = {"after": after, "until": max(ids, default=after), "ids": ids}
                rows = self._session.rows("audit_open", **where) if ids else []
            for outbox_id, status in rows:
                self.report.add("wrong_open", outbox_id, status=status)
            if len(ids) < OPEN:
                return
            after = ids[-1]

    def _look_again(self) -> None:
        """At what the last audits left, and at how it now stands to every range it overlaps."""
        after = EVERYTHING
        while ids := [row[0] for row in self._session.rows("audit_left", after=after, limit=LEFT)]:
            after = ids[-1]
            finding, wrong, unsettled = self._look(ids[0] - 1, ids[-1], ids)
            if finding.extents:
                self._session.rows("audit_forget")
                self._session.rows("audit_remember")
                self._compare_with(
                    [each for each in self._known if each.crosses(finding) or finding.crosses(each)]
                )
            # Nothing is settled whose effect may not have been looked at.
            left = set(ids) if self._effects.unchecked else wrong | unsettled
            with self._session.transaction():
                self._session.rows(
                    "audit_settled", ids=[outbox_id for outbox_id in ids if outbox_id not in left]
                )
                self._session.rows("audit_leave", ids=sorted(left))
        self._session.rows("audit_forget")

    def _look_at_new(self, advance: Callable[[int, int], None]) -> None:
        report = self.report
        tallies = Tallies(self._tables, self._registry, report) if self._full else None
        after = self._known[-1].until if self._known else self._first - 1
        report.first, report.until = after + 1, after
        if tallies:
            tallies.count(EVERYTHING, after)
        settles = True
        while after < report.floor:
            if gone := next(
                (last for first, last in self._retired if first <= after + 1 <= last), None
            ):
                if tallies:
                    tallies.count(after, gone)
                after = gone
                if settles:
                    report.until = gone
                continue
            ends = [first - 1 for first, _ in self._retired if first > after + 1]
            until = min(after + WIDTH, report.floor, *ends)
            [(following,)] = self._session.rows("audit_next", after=after)
            if following is None or following > until:
                until = (
                    min(report.floor, following - 1, *ends)
                    if following
                    else min(report.floor, *ends)
                )
            finding, wrong, unsettled = self._look(after, until, None)
            if self._backlog > BACKLOG and settles:
                settles = False
                report.notes.append(
                    f"messages after {after} are looked at again next time: the workers are behind"
                )
            others = self._order(finding)
            self._keep(finding, wrong | unsettled if settles else None)
            self._compare_with(others)
            if tallies:
                tallies.count(after, until)
            advance(until - after, report.floor - report.first + 1)
            after = until
            if settles:
                report.until = until
        if tallies:
            tallies.compare(after)

    def _order(self, finding: Range) -> list[Range]:
        """Check the order within the range, and to the one before it.

        It returns the others that the range has to be compared with.
        """
        before = self._known[-1] if self._known else None
        # `audit_before` holds the range before, unless this is the first of this audit: then that
        # is one of the others.
        near = before is not None and before.until == finding.after and self._remembered is before
        if not near or (before is not None and not before.crosses(finding)):
            self._session.rows("audit_forget")
        self._inversions()
        others = [
            each for each in self._known if each.crosses(finding) and not (near and each is before)
        ]
        self._session.rows("audit_forget")
        self._session.rows("audit_remember")
        return others

    _remembered: Range | None = None

    def _compare_with(self, others: list[Range]) -> None:
        """What `audit_before` holds, with every range of these."""
        for each in others:
            self._session.rows("audit_empty")
            with self._session.snapshot():
                self._read(each.after, each.until, None)
            self._inversions()

    def _inversions(self) -> None:
        inversions = self._session.rows("audit_order")
        ids = list({each_id for pair in inversions for each_id in pair})
        of = (
            {row[0]: row[1:] for row in self._session.rows("audit_conversations", ids=ids)}
            if inversions
            else {}
        )
        for outbox_id, earlier in inversions:
            if of.get(outbox_id) == of.get(earlier):
                self.report.add("out_of_order", outbox_id, before=earlier)

    def _keep(self, finding: Range, left: set[int] | None) -> None:
        """Remember the range; write it down with what was left of it, unless that is None.

        Short ranges that follow each other become one.
        """
        before = self._known[-1] if self._known else None
        whole = finding
        if (
            before
            and before.until == finding.after
            and finding.until - before.after <= WIDTH
            and before.ids == finding.ids
            and before.unchecked == finding.unchecked
        ):
            whole = before.merged(finding)
            self._known.pop()
        self._known.append(whole)
        # What is remembered is this range alone, not what it was merged with.
        self._remembered = whole if whole is finding else None
        if left is None:
            return
        with self._session.transaction():
            reach = orjson.dumps(whole.plain()).decode()
            self._session.rows("audited", first=whole.after + 1, until=whole.until, reach=reach)
            self._session.rows("audit_leave", ids=sorted(left))

    def _look(
        self, after: int, until: int, ids: list[int] | None
    ) -> tuple[Range, set[int], set[int]]:
        """Make every check that needs no other range, in one snapshot.

        It returns the range's reach, what is wrong in it, and what is unsettled.
        """
        where = {"after": after, "until": until, "ids": ids}
        self._session.rows("audit_empty")
        with self._session.snapshot():
            self._read(after, until, ids)
            wrong, there = self._states(where), self._effects.look(where)
            reach = extents(self._session.rows("audit_reach"))
            [(messages, replayed, overtaken)] = self._session.rows("audit_counts")
            unsettled = {row[0] for row in self._session.rows("audit_unsettled")}
            unclaimed = self._session.rows("audit_unclaimed", limit=100_000, age=self._waiting.age)
        if ids is None:
            self.report.messages += messages
            self.report.late += replayed + overtaken
        # What has an effect is not lost, whatever became of its state: sent again, it would fail.
        self._backlog = self._judge([row for row in unclaimed if row[0] not in there])
        finding = Range(after, until, reach, dict(self._ids), self._effects.unchecked)
        return finding, wrong | there, unsettled

    def _read(self, after: int, until: int, ids: list[int] | None) -> None:
        self._session.rows("audit_read", after=after, until=until, ids=ids, lenient=self._lenient)

    @property
    def _mark(self) -> int:
        """What is at or below this id and has no row is gone."""
        return max((last for _, last in self._retired), default=0)

    def _states(self, where: dict[str, Any]) -> set[int]:
        add, wrong = self.report.add, set[int]()
        for outbox_id, kind, status in self._session.rows("audit_faults", retired=self._mark):
            add(kind, outbox_id, status=status)
            wrong.add(outbox_id)
        for outbox_id, status in self._session.rows("audit_rowless", **where):
            add("rowless_state", outbox_id, status=status)
            wrong.add(outbox_id)
        for outbox_id, status in self._session.rows("audit_open", **where):
            add("wrong_open", outbox_id, status=status)
            wrong.add(outbox_id)
        for outbox_id, root in self._session.rows(
            "audit_resends", **where, first=self._first, retired=self._mark
        ):
            add("bad_resend", outbox_id, resend_of=root)
            wrong.add(outbox_id)
        if where["ids"] is None:
            for outbox_id, field, size in self._keys(where):
                add("key_mismatch", outbox_id, field=field, key_bytes=size)
            for outbox_id, other in self._session.rows("audit_places"):
                add("same_place", outbox_id, other=other)
            for outbox_id, other in self._session.rows("audit_moved"):
                add("moved", outbox_id, other=other)
        return wrong

    def _keys(self, where: dict[str, Any]) -> list[tuple[Any, ...]]:
        bounds = {"after": where["after"], "until": where["until"]}
        try:
            with self._session.transaction():
                return self._session.rows("audit_keys", **bounds)
        except UNREADABLE:
            return self._session.rows("audit_keys_with_care", **bounds)

    def _judge(self, unclaimed: list[tuple[Any, ...]]) -> int:
        """Which messages without a state are lost; returns how many may still be on their way.

        What waits for so long that it is told of as unread is not counted.
        """
        waiting = 0
        for outbox_id, topic, key, resent, created_ms, old, biz_type in unclaimed:
            place = self._place(topic, key)
            if (resent or 0) > self.report.floor:
                waiting += 1
            elif place is None or not self._positions[place].worked:
                told = old and self._waiting.is_unread(outbox_id, topic, place)
                waiting += not told
            else:
                self.lost[outbox_id] = place, created_ms
                if not self._effects.checked(biz_type):
                    self.doubtful.add(outbox_id)
        return waiting

    def _place(self, topic: str, key: str) -> Place | None:
        """The partition of a conversation, if there is such a topic."""
        count = self._partitions[topic]
        return (topic, partition_of(key, count)) if count else None

    def _locate(self) -> None:
        """Look for the records of lost messages on the topic.

        That says who lost them: the way there, or the workers.
        """
        wanted: dict[Place, dict[int, int]] = {}
        for outbox_id, (place, created_ms) in self.lost.items():
            wanted.setdefault(place, {})[outbox_id] = created_ms
        located = self._topics.locate(wanted, self._positions) if wanted else {}
        for outbox_id, ((topic, number), _) in sorted(self.lost.items()):
            kind = "skipped" if outbox_id in located else "missing"
            self.report.add(
                kind, outbox_id, topic=topic, partition=number, offset=located.get(outbox_id)
            )

    def _ends(self) -> None:
        """Offsets behind the end of their partition, committed or written down."""
        latest = self._topics.partitions()
        for place, position in latest.items():
            about = {"topic": place[0], "partition": place[1], "end": position.end}
            was = self._positions.get(place, position)
            if was.committed is not None and was.committed > position.end:
                self.report.add("committed_beyond_end", None, **about, committed=was.committed)
            news = (
                []
                if place[0] in self._lenient
                else [each for each in self._known if each.until >= self.report.first]
            )
            for each in news:
                if place in each.extents and each.extents[place].last_offset >= position.end:
                    where = {"after": each.after, "until": each.until, **about}
                    for (outbox_id,) in self._session.rows("audit_off_the_end", **where):
                        self.report.add("off_the_end", outbox_id, **about)

    def _replays(self) -> None:
        """Replays whose record nobody will see any more, or nobody reads."""
        after, floor, age = EVERYTHING, self.report.floor, self._waiting.age
        while rows := self._session.rows(
            "audit_replays", floor=floor, after=after, age=age, limit=OPEN
        ):
            for outbox_id, topic, key, source, old in rows:
                place = self._place(topic, key)
                if place is not None and self._positions[place].worked:
                    self.lost_replays.append(outbox_id)
                    self.report.add("lost_replay", outbox_id, source=source)
                elif old:
                    self._waiting.is_unread(outbox_id, topic, place, replay=source)
            after = rows[-1][0]

    def _heads(self) -> dict[MessageId, tuple[Any, ...]]:
        rows = [
            row
            for name in ("audit_heads", "foreign_stuck")
            for row in self._session.rows(name, grace=self._grace)
        ]
        return {row[0]: row for row in rows}

    def _stuck(self, heads: dict[MessageId, tuple[Any, ...]], looked: float) -> None:
        """Look twice at parked messages that should have had their turn.

        Its turn comes when the message before it is settled, whenever that was.
        """
        if any(row[1] == "parked" for row in heads.values()):
            time.sleep(max(0.0, looked + min(self._grace, SECOND_LOOK) - time.monotonic()))
        again = self._heads() if heads else {}
        for outbox_id, row in heads.items():
            if (
                outbox_id in again
                and again[outbox_id][1] == row[1]
                and again[outbox_id][5] >= row[5]
            ):
                self.report.add(
                    "stuck", outbox_id, status=row[1], overdue=round(again[outbox_id][5], 1)
                )
