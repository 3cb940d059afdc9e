"""One transaction: lock partitions, claim, park, call the handlers, set aside; the caller commits.

Statements go straight to psycopg; handlers get the SQLAlchemy connection around the same transaction.  A transaction never
takes a second connection, so the pool cannot deadlock.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.codec import Unreadable
from streams.events import Message
from streams.registry import Registry
from streams.worker.database.response_deadline import response_deadline
from streams.worker.failure.classify import TransactionEnded, describe, storable
from streams.worker.failure.handler_call import HandlerCaller
from streams.worker.failure.handlers import Strategy, apply
from streams.worker.failure.isolate import FailureHistory, Guilty
from streams.worker.failure.savepoint import Savepoint
from streams.worker.run.decide import Range, rejected_range
from streams.worker.run.decode import Incoming, Rejected, by_reason
from streams.worker.run.origin import Origin, Outbox
from streams.worker.run.spans import Attempt
from streams.worker.run.suspects import Trial

logger = logging.getLogger(__name__)

# How long a message of a biz_type that nobody registered waits for a worker that knows it.
UNREGISTERED_SECONDS = 600.0

Query = tuple[str, dict[str, Any]]  # a named query and its parameters
# What pg_stat_activity calls a worker's session while it holds the locks of partitions.
IN_A_RUN = "outbox-streams worker, in a run"
BOTH = "another transaction decided one of these messages in this moment"


@dataclass(frozen=True, slots=True)
class Aside:
    """One message set aside: `status` is retrying, parked or dead; `due` is epoch seconds, None when nobody waits.

    `code` and `reason` say why.
    """

    outbox_id: int
    partition: int
    key: str
    status: str
    attempts: int = 0
    code: str | None = None
    due: float | None = None
    reason: str | None = None


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


class NotYetVisible(Exception):
    """What others committed, perhaps, is not visible yet: the run has to be tried again soon."""


class Transaction:
    """One attempt at some records of one topic, on one connection."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: psycopg.AsyncConnection[Any],
        registry: Registry,
        topic: str,
        *,
        care: Strategy,
        seconds: float,
        memory: FailureHistory,
        origin: Origin | None = None,
        unknown_days: float = 1.0,
        progressed: Callable[[], None] = lambda: None,
        trial: Trial | None = None,
    ) -> None:
        self._trial = trial
        self._connection, self._driver, self._registry, self.topic = connection, driver, registry, topic
        self._care, self._seconds, self.memory = care, seconds, memory
        self._caller = HandlerCaller(connection, driver, seconds, progressed)
        self.origin: Origin = origin or Outbox(registry)
        self._unknown_seconds = unknown_days * 86_400
        self._retaken: set[int] = set()
        self.outcome = Outcome()
        self.spans = Attempt(topic, self.outcome.asides)

    @property
    def spoiled(self) -> bool:
        """Whether a handler has left something in the session: its connection is not to be used again."""
        return self._caller.spoiled

    async def lock(self, partitions: Iterable[int]) -> None:
        """Keep every other owner, past or future, of these partitions out until the commit."""
        name, parameters = _locking(partitions)
        await self.execute(name, **parameters)

    async def apply(self, turns: Sequence[Incoming]) -> list[Guilty]:
        """Call the handlers with messages that this transaction has claimed; those that fail or make no sense are set aside."""
        ready, guilty = self._readable(turns, await self._patience(turns))
        if ready and self._trial is not None:
            await self._trial.begin(ready, self.memory.known_failures)
        messages = [cast("Message[Any]", one.message) for one in ready]
        kinds = [one.biz_type for one in ready]
        try:
            async with self.spans.handling(turns, self.execute):
                guilty += await apply(
                    self._caller,
                    Savepoint(self._driver, self._seconds),
                    messages,
                    kinds,
                    self._registry.agents,
                    self._care,
                    self._seconds,
                    self.memory,
                )
        except TransactionEnded as error:
            # What was claimed is committed, and no delivery will ask for it again; who has an effect nobody can tell.
            logger.critical("a handler ended the transaction of its run, the messages in it are dead", exc_info=error)
            await self.lock({one.partition for one in turns})
            guilty = [Guilty(one.outbox_id, one.key, "dead", 0, *describe(error), open=False) for one in turns]
        if any(one.attempts == 1 and one.code is not None for one in guilty):
            self.memory.failed[self.topic] = time.monotonic()
        self.outcome.consumed += len(turns) - len(guilty)
        # `arrived` is drawn in this order: it has to be the order of the records.
        set_aside = _in_line(turns, {one.outbox_id: one for one in guilty})
        await self.set_aside(set_aside)
        return [fate for _, fate in set_aside]

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
        due = dict(await self.execute("set_aside", messages=orjson.dumps(rows).decode()))
        self.outcome.asides += [
            Aside(
                one.outbox_id,
                place.partition,
                one.key,
                one.status,
                one.attempts,
                one.code,
                due[one.outbox_id],
                one.error,
            )
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

    async def lock_and_claim(self, partitions: Iterable[int], some: Sequence[Incoming]) -> set[int]:
        """Claim all that is new, in the round trip that locks; nothing while something of the topic is open."""
        claimed, _ = await self._claimed(some, checked=False, before=_locking(partitions))
        return claimed

    async def lock_and_look(self, partitions: Iterable[int], some: Sequence[Incoming]) -> set[str]:
        """Which of these messages' conversations wait behind an open message, in the round trip that locks."""
        _, (_, keys) = await self._together(_locking(partitions), ("open_keys", _keys(some)))
        return {key for (key,) in keys}

    async def claim(self, some: Sequence[Incoming]) -> set[int]:
        """The ids of those of these messages that are new; that their conversations wait for nothing is known.

        That the records are their outbox rows' is known too.
        """
        if not some:
            return set()
        try:
            return {row[0] for row in await self._claim_each(some, checked=True, known=True)}
        except psycopg.errors.UniqueViolation as error:
            raise NotYetVisible(BOTH) from error

    async def claim_and_open(
        self, free: Sequence[Incoming], behind: Sequence[Incoming], *, known: bool = False
    ) -> tuple[set[int], set[int]]:
        """Claim messages whose conversations wait for nothing, and `open` others; the ids of those of each that are new.

        With `known` the records of the others are known to be their outbox rows'.
        """
        opening = None
        if behind:
            opening = ("open", {"messages": orjson.dumps([self._opened(one, known) for one in behind]).decode()})
        claimed, rows = await self._claimed(free, checked=True, before=opening)
        opened = {row[0] for row in rows}
        self.outcome.asides += [
            Aside(one.outbox_id, one.partition, one.key, _set_aside_as(one), code=_code(one))
            for one in behind
            if one.outbox_id in opened
        ]
        return claimed, opened

    async def open_keys(self, some: Sequence[Incoming]) -> set[str]:
        """Which of these messages' conversations wait behind an open message."""
        return {row[0] for row in await self.execute("open_keys", **_keys(some))} if some else set()

    async def open(self, new: Sequence[Incoming]) -> set[int]:
        """Messages without a fate behind an open one, parked, or dead on arrival; the ids of those that had none."""
        return (await self.claim_and_open([], new, known=True))[1]

    async def reject(self, lost: Sequence[Rejected]) -> None:
        """Note records that are no outbox row's, as ranges: a topic may be full of them."""
        if not lost:
            return
        offsets = by_reason(lost)
        given = [
            {"partition": partition, "reason": reason, "first": some[0]}
            for (partition, reason), some in offsets.items()
        ]
        rows = await self.execute("rejected_before", given=orjson.dumps(given).decode())
        before = {(row[0], row[4]): Range(*row) for row in rows}
        ranges = [
            rejected_range(partition, reason, some, before.get((partition, reason)))
            for (partition, reason), some in offsets.items()
        ]
        new = [one._asdict() for one in ranges if one is not None]
        await self.execute("reject", rejects=orjson.dumps(new).decode())
        self.outcome.rejected += lost

    async def settle(self) -> None:
        """Before the commit: forget what was kept of messages that are settled now."""
        if self.origin.settle is not None and self._retaken:
            await self.execute(self.origin.settle, ids=list(self._retaken))
        if self._trial is not None:
            await self._trial.settle(self.execute)

    async def execute(self, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query."""
        with response_deadline(self._driver, self._seconds):
            async with self._driver.cursor() as cursor:
                await cursor.execute(self.origin.statement(name), self._complete(parameters))
                return await cursor.fetchall() if cursor.description else []

    async def _claimed(
        self, some: Sequence[Incoming], *, checked: bool, before: Query | None = None
    ) -> tuple[set[int], list[tuple[Any, ...]]]:
        """The ids of those of these messages that are claimed now; and the rows of the query that goes before it."""
        parameters = {"checked": checked, **self.origin.claim(some)} if some else {}
        what = [before] if before else []
        if some:
            what += _by_index("claim_all", parameters)
        try:
            answers = await self._together(*what) if what else []
            rows = answers[0][1] if before else []
            if some and answers[-2][0] == len(some):
                return {one.outbox_id for one in some}, rows
            claimed = await self._claim_each(some, checked=checked, known=False) if some else []
        except psycopg.errors.UniqueViolation as error:
            raise NotYetVisible(BOTH) from error
        return {row[0] for row in claimed}, rows

    async def _claim_each(self, some: Sequence[Incoming], *, checked: bool, known: bool) -> list[tuple[Any, ...]]:
        parameters = {"checked": checked, **self.origin.claim_each(some, known)}
        return (await self._together(*_by_index("claim", parameters)))[1][1]

    async def _together(self, *what: Query) -> list[tuple[int, list[tuple[Any, ...]]]]:
        """How many rows each of several named queries found or wrote, and which it gave back, all in one round trip."""
        with response_deadline(self._driver, self._seconds):
            async with AsyncExitStack() as stack:
                cursors = [await stack.enter_async_context(self._driver.cursor()) for _ in what]
                async with self._driver.pipeline():
                    for cursor, (name, parameters) in zip(cursors, what, strict=True):
                        await cursor.execute(self.origin.statement(name), self._complete(parameters))
                # Left first: while the server waits for the rest of a pipeline, no timeout of its own frees the lock.
                return [(cursor.rowcount, await cursor.fetchall() if cursor.description else []) for cursor in cursors]

    def _complete(self, parameters: dict[str, Any]) -> dict[str, Any]:
        return {"topic": self.topic, "source": self.origin.source, **parameters}

    def _opened(self, one: Incoming, known: bool) -> dict[str, Any]:
        """A message that is set aside on arrival, as `open` takes it."""
        row = {"outbox_id": one.outbox_id, "partition": one.partition, "offset": one.offset, "key": one.key}
        row |= {"ms": one.time, "known": known, **self.origin.kept(one)}
        if _set_aside_as(one) == "parked":
            return {**row, "status": "parked", "open": True}
        dead = self._unreadable(one)
        return {**row, "status": "dead", "open": dead.open, "error_code": dead.code, "error": dead.error}

    async def _patience(self, turns: Sequence[Incoming]) -> dict[str, float]:
        """For how many seconds messages of each unknown biz_type wait for somebody who knows it; 0.0 when it is retired."""
        unknown = {one.biz_type for one in turns if one.unknown}
        if not unknown:
            return {}
        names = {storable(biz_type): biz_type for biz_type in unknown}
        registered = dict(await self.execute("biz_types_registered", biz_types=list(names)))
        longest = UNREGISTERED_SECONDS if self.origin.source else self._unknown_seconds
        patience = dict.fromkeys(unknown, min(UNREGISTERED_SECONDS, self._unknown_seconds))
        return patience | {names[name]: 0.0 if retired else longest for name, retired in registered.items()}

    def _readable(
        self, turns: Sequence[Incoming], patience: Mapping[str, float]
    ) -> tuple[list[Incoming], list[Guilty]]:
        """What can be handed to handlers, and what cannot be read, with those that it holds up."""
        ready: list[Incoming] = []
        guilty: list[Guilty] = []
        held: set[str] = set()
        for one in turns:
            if one.key in held and (one.message is not None or one.unknown):
                guilty.append(Guilty(one.outbox_id, one.key, "parked", one.attempts))
            elif one.message is None:
                guilty.append(fate := self._unreadable(one, patience.get(one.biz_type, 0.0) - one.waited))
                if fate.open:
                    held.add(one.key)
            else:
                ready.append(one)
        return ready, guilty

    def _unreadable(self, one: Incoming, patience: float = 0.0) -> Guilty:
        """The fate of a message that cannot be parsed or validated; it waits so long for somebody who knows its biz_type."""
        fault = cast("Unreadable", one.fault)
        if one.unknown and patience > 0:
            # It was not tried: a worker of another version may know it, and it keeps the attempts that it has.
            return Guilty(one.outbox_id, one.key, "retrying", one.attempts, *describe(fault), delay=patience)
        agent = self._registry.agents.get(one.biz_type)
        held = agent is not None and agent.on_dead == "hold" and bool(one.key)
        return Guilty(one.outbox_id, one.key, "dead", 0, *describe(fault), open=held)


def _in_line(turns: Sequence[Incoming], fates: Mapping[int, Guilty]) -> list[tuple[Incoming, Guilty]]:
    """Each message that is set aside, in the order of the turns; one that waits for nobody but its turn is parked.

    What nobody here knows was set aside before any handler was called: an earlier message of its conversation may have
    failed since.
    """
    line: list[tuple[Incoming, Guilty]] = []
    held: set[str] = set()
    for one in turns:
        if (fate := fates.get(one.outbox_id)) is None:
            continue
        if one.unknown and fate.status == "retrying" and fate.key in held:
            fate = Guilty(fate.outbox_id, fate.key, "parked", fate.attempts)
        if fate.open:
            held.add(fate.key)
        line.append((one, fate))
    return line


def _set_aside_as(one: Incoming) -> str:
    """The status of a message that arrives behind an open one."""
    return "parked" if one.fault is None or one.unknown else "dead"


def _locking(partitions: Iterable[int]) -> Query:
    return "lock_partitions", {"partitions": sorted(partitions), "session": IN_A_RUN}


def _by_index(name: str, parameters: dict[str, Any]) -> list[Query]:
    return [("by_index", {}), (name, parameters), ("as_planned", {})]


def _keys(some: Sequence[Incoming]) -> dict[str, Any]:
    return {"keys": orjson.dumps(list({one.key for one in some})).decode()}


def _code(one: Incoming) -> str | None:
    return one.fault.code if one.fault is not None and not one.unknown else None
