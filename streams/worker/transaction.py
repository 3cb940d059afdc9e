"""The one transaction of a group of runs: lock the partitions, claim, park, call the handlers; the caller commits.

Statements go straight to psycopg; handlers get the SQLAlchemy connection around the same transaction.  A transaction never
takes a second connection, so the pool cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.codec import Unreadable
from streams.events import Message
from streams.registry import Registry
from streams.worker.decode import Incoming, Rejected
from streams.worker.fate import describe
from streams.worker.handlers import Care, apply
from streams.worker.isolation import Guilty, Memory
from streams.worker.origin import Origin, Outbox
from streams.worker.policy import TERMINAL, Decision, Fact, decide
from streams.worker.silence import answering
from streams.worker.spans import Attempt


class Invisible(Exception):
    """Records whose outbox rows are committed, perhaps, and not visible yet: the run has to be tried again soon."""


@dataclass(frozen=True, slots=True)
class Aside:
    """One message set aside: `status` is retrying, parked or dead; `due` is epoch seconds, None when nobody waits."""

    outbox_id: int
    partition: int
    key: str
    status: str
    attempts: int = 0
    code: str | None = None
    due: float | None = None


@dataclass(slots=True)
class Outcome:
    """What a transaction decided, true once it committed; `woken` conversations may have a next message to work."""

    consumed: int = 0
    skipped: int = 0
    asides: list[Aside] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    woken: set[tuple[int, str]] = field(default_factory=set)

    def add(self, other: Outcome) -> None:
        """Count another one in."""
        self.consumed += other.consumed
        self.skipped += other.skipped
        self.asides += other.asides
        self.rejected += other.rejected
        self.woken |= other.woken


class Transaction:
    """One attempt at some records of one topic, on one connection."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: psycopg.AsyncConnection[Any],
        registry: Registry,
        topic: str,
        *,
        care: Care,
        seconds: float,
        memory: Memory,
        origin: Origin | None = None,
    ) -> None:
        self._connection, self._driver, self._registry, self._topic = connection, driver, registry, topic
        self._care, self._seconds, self._memory = care, seconds, memory
        self.origin: Origin = origin or Outbox(registry)
        self._retaken: set[int] = set()
        self.outcome = Outcome()
        self.spans = Attempt(topic, self.outcome.asides)

    async def lock(self, partitions: Iterable[int]) -> None:
        """Keep every other owner, past or future, of these partitions out until the commit."""
        await self.execute("lock_partitions", topic=self._topic, partitions=sorted(partitions))

    async def records(self, found: Sequence[Incoming], rejected: Sequence[Rejected], partitions: Iterable[int]) -> None:
        """Decide every record of these partitions."""
        odd = [one for one in found if one.fault is not None or one.resend]
        claimed = await self._lock_and_claim(partitions, _apart(found, odd))
        turns = [one for one in found if one.outbox_id in claimed] if claimed else []
        if len(turns) < len(found):
            turns = await self._decide(found, odd, claimed)
        await self._reject(rejected)
        await self.apply(turns)

    async def apply(self, turns: Sequence[Incoming]) -> None:
        """Call the handlers with messages that this transaction has claimed; set aside those that fail or make no sense."""
        ready, guilty = self._readable(turns)
        messages = [cast("Message[Any]", one.message) for one in ready]
        kinds = [one.biz_type for one in ready]
        async with self.spans.handling(turns, self.execute):
            guilty += await apply(
                self._connection, messages, kinds, self._registry.agents, self._care, self._seconds, self._memory
            )
        self.outcome.consumed += len(turns) - len(guilty)
        fates = {one.outbox_id: one for one in guilty}
        # `arrived` is drawn in this order: it has to be the order of the records.
        await self.set_aside([(one, fates[one.outbox_id]) for one in turns if one.outbox_id in fates])

    async def set_aside(self, guilty: Sequence[tuple[Incoming, Guilty]]) -> None:
        """Give messages that have a state row another status than consumed."""
        if not guilty:
            return
        rows = [
            {
                "outbox_id": one.outbox_id,
                "status": one.status,
                "open": one.open,
                "key": one.key,
                "partition": place.partition,
                "offset": place.offset,
                "attempts": one.attempts,
                "error_code": one.code,
                "error": one.error,
                "delay": one.delay,
                **self.origin.kept(place),
            }
            for place, one in guilty
        ]
        due = dict(await self.execute("set_aside", topic=self._topic, messages=orjson.dumps(rows).decode()))
        self.outcome.asides += [
            Aside(one.outbox_id, place.partition, one.key, one.status, one.attempts, one.code, due[one.outbox_id])
            for place, one in guilty
        ]

    async def reclaim(self, turns: Sequence[tuple[Incoming, str]]) -> set[int]:
        """Take open messages, given with the status they have; returns the ids of those that still had it."""
        rows = [
            {"outbox_id": one.outbox_id, "status": status, "partition": one.partition, "offset": one.offset}
            for one, status in turns
        ]
        taken = {row[0] for row in await self.execute("reclaim", messages=orjson.dumps(rows).decode())}
        self._retaken |= taken
        return taken

    async def settle(self) -> None:
        """Before the commit: forget what was kept of messages that are settled now."""
        if self.origin.settle is not None and self._retaken:
            await self.execute(self.origin.settle, ids=list(self._retaken))

    async def execute(self, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query."""
        with answering(self._driver, self._seconds):
            async with self._driver.cursor() as cursor:
                await cursor.execute(self.origin.statement(name), parameters | {"source": self.origin.source})
                return await cursor.fetchall() if cursor.description else []

    async def _lock_and_claim(self, partitions: Iterable[int], plain: Sequence[Incoming]) -> set[int]:
        """One round trip in the usual case: nothing of the topic is open, and everything is new."""
        where = {"topic": self._topic, "partitions": sorted(partitions)}
        with answering(self._driver, self._seconds):
            async with self._driver.cursor() as lock, self._driver.cursor() as claim:
                async with self._driver.pipeline():
                    await lock.execute(self.origin.statement("lock_partitions"), where)
                    await claim.execute(self.origin.statement("claim"), self._claim(plain, checked=False))
                # Left first: while the server waits for the rest of a pipeline, no timeout of its own frees the lock.
                return {outbox_id for (outbox_id,) in await claim.fetchall()}

    def _claim(self, plain: Sequence[Incoming], *, checked: bool) -> dict[str, Any]:
        return {
            "topic": self._topic,
            "source": self.origin.source,
            "checked": checked,
            **self.origin.claim(plain),
        }

    async def _decide(self, found: Sequence[Incoming], odd: Sequence[Incoming], claimed: set[int]) -> list[Incoming]:
        """Everything that is not simply new; returns what this transaction has claimed, in record order."""
        facts = await self._facts(odd)
        left = [one for one in found if one.outbox_id not in claimed]
        keys = orjson.dumps(list({one.key for one in left})).decode()
        blocked = {row[0] for row in await self.execute("open_keys", topic=self._topic, keys=keys)}
        if free := [one for one in _apart(left, odd) if one.key not in blocked]:
            claimed |= {row[0] for row in await self.execute("claim", **self._claim(free, checked=True))}
            left = [one for one in left if one.outbox_id not in claimed]
        facts |= await self._facts([one for one in left if one.outbox_id not in facts])
        unknown = [one for one, fact in facts.items() if not fact.known]
        if resends := list({one.record_id for one in left if one.resend}):
            # A replay changes the state in the transaction that writes the row to send again: not seen before that row is.
            unknown += [row[0] for row in await self.execute("facts", ids=resends) if not row[1]]
        await self._wait_for_visibility(unknown)
        decided = [
            (one, decide(one.record_id, one.outbox_id, facts[one.outbox_id], blocked=one.key in blocked))
            for one in left
        ]
        await self._open([one for one, what in decided if what is Decision.PARK])
        fresh = [one for one, what in decided if what is Decision.NEW]
        if fresh:
            claimed |= {row[0] for row in await self.execute("claim", **self._claim(fresh, checked=True))}
        again = await self._again([(one, facts[one.outbox_id]) for one, what in decided if what is Decision.AGAIN])
        queued = [one for one, what in decided if what is Decision.QUEUE]
        await self.set_aside([(one, Guilty(one.outbox_id, one.key, "parked")) for one in queued])
        lost = [one for one, what in decided if what is Decision.REJECT]
        await self._reject([Rejected(one.partition, one.offset, "no outbox row has this id") for one in lost])
        idle = {id(one) for one, what in decided if what not in (Decision.NEW, Decision.AGAIN)}
        turns: dict[int, Incoming] = {}
        taken = claimed | again
        for one in found:
            if one.outbox_id in taken and id(one) not in idle:
                turns.setdefault(one.outbox_id, one)
        self.outcome.skipped += len(found) - len(turns) - len(lost) - len(self.outcome.asides)
        return list(turns.values())

    async def _wait_for_visibility(self, unknown: Sequence[int]) -> None:
        """A commit is in the log, and so with a relay, before other sessions see it: raises Invisible while that may be so.

        Whoever could still write such a row holds a lock until it is visible.  Only what is missing in a snapshot taken
        after all of them had ended has no row.
        """
        waiting = self._memory.invisible
        undecided = [one for one in unknown if waiting.get(one) != frozenset()]
        if undecided:
            writers = frozenset(row[0] for row in await self.execute("outbox_writers"))
            for one in undecided:
                waiting[one] = waiting.get(one, writers) & writers
            raise Invisible(f"{len(undecided)} outbox rows are not visible, {len(writers)} transactions are open")
        for one in unknown:
            del waiting[one]

    async def _facts(self, some: Sequence[Incoming]) -> dict[int, Fact]:
        """What is known of these messages; those that may move are read anew from their outbox rows."""
        if not some:
            return {}
        ids = list({one.outbox_id for one in some})
        facts = {row[0]: Fact(*row[1:]) for row in await self.execute("facts", ids=ids)}
        movable = [one for one in some if _may_move(one, facts[one.outbox_id])]
        if movable:
            ids = list({one.outbox_id for one in movable})
            rows = {row[0]: row for row in await self.execute("payloads", ids=ids)}
            for one in movable:
                # Of a message without an outbox row nothing is stored before it is set aside: the record is all there is.
                if row := rows.get(one.outbox_id):
                    self.origin.fill(one, row, facts[one.outbox_id].attempts or 0)
        return facts

    async def _again(self, turns: Sequence[tuple[Incoming, Fact]]) -> set[int]:
        """Open messages whose turn it is."""
        if not turns:
            return set()
        taken = await self.reclaim([(one, cast("str", fact.status)) for one, fact in turns])
        self.outcome.woken |= {(one.partition, one.key) for one, _ in turns if one.outbox_id in taken}
        return taken

    def _readable(self, turns: Sequence[Incoming]) -> tuple[list[Incoming], list[Guilty]]:
        """What can be handed to handlers, and what cannot be read, with those that it holds up."""
        ready: list[Incoming] = []
        guilty: list[Guilty] = []
        held: set[str] = set()
        for one in turns:
            if one.message is None:
                guilty.append(fate := self._unreadable(one))
                if fate.open:
                    held.add(one.key)
            elif one.key in held:
                guilty.append(Guilty(one.outbox_id, one.key, "parked", one.message.attempts))
            else:
                ready.append(one)
        return ready, guilty

    def _unreadable(self, one: Incoming) -> Guilty:
        """The fate of a message that cannot be parsed or validated."""
        fault = cast("Unreadable", one.fault)
        agent = self._registry.agents.get(one.biz_type)
        held = agent is not None and agent.on_dead == "hold" and bool(one.key)
        return Guilty(one.outbox_id, one.key, "dead", 0, *describe(fault), open=held)

    async def _open(self, new: Sequence[Incoming]) -> None:
        """New messages behind an open one: parked, or dead on arrival."""
        rows = []
        for one in new:
            row = {"outbox_id": one.outbox_id, "partition": one.partition, "offset": one.offset, "key": one.key}
            row |= self.origin.kept(one)
            if one.fault is None:
                rows.append({**row, "status": "parked", "open": True})
            else:
                dead = self._unreadable(one)
                rows.append({**row, "status": "dead", "open": dead.open, "error_code": dead.code, "error": dead.error})
        if not rows:
            return
        opened = {row[0] for row in await self.execute("open", topic=self._topic, messages=orjson.dumps(rows).decode())}
        self.outcome.asides += [
            Aside(one.outbox_id, one.partition, one.key, "parked" if one.fault is None else "dead", code=_code(one))
            for one in new
            if one.outbox_id in opened
        ]

    async def _reject(self, lost: Sequence[Rejected]) -> None:
        if lost:
            rows = [{"partition": one.partition, "offset": one.offset, "reason": one.reason} for one in lost]
            await self.execute("reject", topic=self._topic, rejects=orjson.dumps(rows).decode())
            self.outcome.rejected += lost


def _apart(some: Sequence[Incoming], odd: Sequence[Incoming]) -> list[Incoming]:
    """Those whose conversations have no odd record: they can be claimed by themselves, in any order to the odd ones."""
    if not odd:
        return list(some)
    keys = {one.key for one in odd}
    # A record without a key may be of any conversation.
    return [] if "" in keys else [one for one in some if one.key not in keys]


def _may_move(one: Incoming, fact: Fact) -> bool:
    """Whether the outbox rows count, not the record: it is broken or resent, or its message is open."""
    return (
        fact.known and fact.status not in TERMINAL and (one.fault is not None or one.resend or fact.status is not None)
    )


def _code(one: Incoming) -> str | None:
    return one.fault.code if one.fault is not None else None
