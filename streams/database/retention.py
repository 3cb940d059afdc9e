"""Old messages go: a range of ids is emptied in place, and dropped when nothing is left in it.

DELETE would write as much again and leave the space to vacuum; DETACH hides rows at once, then
waits for every snapshot of the database, and outbox and outbox_state cannot be detached together.
So nobody ever sees one table without the other:

    proof   every message of the range is published, has a fate, and is old; that cannot become
            untrue
    empty   in one transaction both partitions are locked (nobody is waited for), counted once more,
            what is unsettled is set aside, TRUNCATE, and it is put back
    drop    a range with nothing left: DETACH CONCURRENTLY, which may take days, FINALIZE when it
            was given up, DROP

What is left are messages that are not settled (dead ones, while their own period lasts) and the
rows that send one again, wherever the message is: an edited payload stands in a younger partition
than its message.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import orjson
import psycopg
from psycopg import errors, sql

from streams.database import locks
from streams.database.queries import query
from streams.database.refusals import refusal
from streams.errors import StreamsError
from streams.settings import Settings

if TYPE_CHECKING:
    from streams.archive.parts import Part
    from streams.archive.write import Writer

DAY = 86_400.0
PART = 1000  # ids given to one statement
MOST = 10_000  # rows that one statement deletes
LEFT_MOST = 0.1  # of the rows of a range: above that it is not worth emptying
LOCK_SECONDS = 5.0
AGAIN_SECONDS = 0.1
PROOF_SECONDS = 600.0  # until a range that was not ready is read again
DETACH_TIMEOUT = "2s"
CLOCKS_SECONDS = 3600.0  # by which two clocks may differ: ages are days
CHANGED = "it changed while it was archived: it is archived once more"
AGELESS = "no row says when it was written: created_at is infinite, or of a time to come"
WRITTEN = "rows came into it after it was emptied: somebody wrote them by hand"
LACKS_ARCHIVE = (
    "what went before is in an archive, and outbox.archive is not set here: set it, or run"
    " `streams retention --without-archive`"
)
CONTRADICTION = "states contradict their rows or outbox_open: run `streams audit --full`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Periods:
    """For how many days each thing is kept; None: for ever.

    messages: settled ones, in outbox and outbox_state; dead: dead letters, until they are
    discarded; foreign: settled messages of other systems; rejects, actions, audits: what arrived
    and was no message, what operators did, and what audits found.
    """

    messages: float | None = None
    dead: float | None = None
    foreign: float | None = None
    rejects: float | None = None
    actions: float | None = None
    audits: float | None = None

    @property
    def endless(self) -> bool:
        """Whether everything is kept for ever."""
        return all(getattr(self, each.name) is None for each in fields(self))


class Range(NamedTuple):
    """A range of ids whose rows are in two partitions.

    `kept` rows are left in it, None when it was never emptied.
    """

    first: int
    last: int
    schema: str
    tables: list[str]
    bytes: int
    messages: int | None
    kept: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """What was done or would be done with a range of ids: `act` is empty, drop or wait.

    `reason` says why it waits.

    `left` rows of unsettled messages stay in it; in `days` it is old enough.
    """

    first: int
    last: int
    act: str
    bytes: int = 0
    left: int = 0
    days: float | None = None
    reason: str | None = None


class Leaf(NamedTuple):
    """One partition of a range in which nothing is left; without a schema it is gone."""

    parent: str
    name: str
    schema: str | None
    attached: bool
    pending: bool

    @property
    def identifier(self) -> sql.Identifier:
        """Its name, quoted."""
        return sql.Identifier(self.schema or "", self.name)


class Busy(Exception):
    """Somebody holds what is needed, or another process is at it; it names who."""


class ClocksDiffer(Busy):
    """PostgreSQL's clock and this machine's are hours apart."""


class NotAllowed(Busy):
    """This role may not do it; it says what to run."""


class Proof(NamedTuple):
    """What is in a range of ids, as seen `at` a moment; the same for ever once `fault` is None.

    Its youngest row was `age` seconds old then, None when no row says so.
    """

    at: float
    rows: int
    messages: int
    fault: str | None
    age: float | None = None

    @property
    def proved(self) -> bool:
        """Whether it can be emptied once it is old, and it is known when that is."""
        return self.fault is None and (self.age is not None or not self.rows)


class Retention:
    """One pass after another over the ranges of ids, on a connection of its own in autocommit mode.

    Use it within `holding`.  `dry` says what would be done.  With an `archive` nothing goes that is
    not in it; without one nothing goes while what went last is in one, unless `unarchived`.
    """

    def __init__(
        self,
        connection: psycopg.AsyncConnection[Any],
        periods: Periods,
        *,
        dry: bool = False,
        proofs: dict[int, Proof] | None = None,
        archive: Writer | None = None,
        unarchived: bool = False,
    ) -> None:
        self._connection, self._periods, self._dry = connection, periods, dry
        self._archive, self._unarchived = archive, unarchived
        # By the first id: each reads a whole range, so the next pass takes them over.
        self._proofs = {} if proofs is None else proofs

    async def steps(self) -> AsyncIterator[Step]:
        """What is done with each range, oldest first, as it is done.

        Psycopg.Error when the database goes away.
        """
        async for step in self._emptied():
            yield step
        async for step in self._dropped():
            yield step

    async def expire(self) -> list[str]:
        """Give up what is dead for too long, and delete what else is older than its period.

        What fails of it is told, and holds up nothing else. psycopg.Error when the connection is
        lost.
        """
        failed = []
        periods: Mapping[LiteralString, float | None] = {
            "expire_foreign": self._periods.foreign,
            "expire_rejects": self._periods.rejects,
            "expire_actions": self._periods.actions,
            "expire_operation_items": self._periods.actions,
            "expire_operations": self._periods.actions,
            "expire_audits": self._periods.audits,
            "expire_crashes": self._periods.messages,
            "expire_run_crashes": self._periods.messages,
            "expire_direct": 0.0,  # by ranges that were emptied
            "expire_audit_ranges": 0.0,
        }
        steps: dict[str, Callable[[], Awaitable[None]]] = {}
        if self._periods.dead is not None:
            for each in await self._ranges():
                name = f"discard of what is dead too long among {each.first} to {each.last}"
                steps[name] = partial(self._discard, each)
            name = "discard of other systems' messages that are dead too long"
            steps[name] = self._discard_foreign
        steps |= {
            f"{name} of what is too old": partial(self._older, name, days)
            for name, days in periods.items()
        }
        for name, step in steps.items():
            try:
                await step()
            except psycopg.Error as error:
                if self._connection.closed:
                    raise
                failed.append(f"{name}: {refusal(error)}")
        return failed

    async def overdue(self) -> list[str]:
        """Tables of which something should have gone by now; of rejects, actions and audits."""
        kept = {name: getattr(self._periods, name) for name in ("rejects", "actions", "audits")}
        return [row[0] for row in await self._rows("expired_waiting", **kept)]

    # Emptying.

    async def _emptied(self) -> AsyncIterator[Step]:
        if self._periods.messages is None:
            return
        for each in await self._ranges():
            if each.kept == 0:
                continue
            step = await self._done(each)
            if step.act != "kept":
                yield step
            if step.days is not None:
                return  # what comes after it is younger
        async for step in self._held():
            yield step

    async def _held(self) -> AsyncIterator[Step]:
        """Ranges that are old enough, and that a relay has not come to the end of."""
        assert self._periods.messages is not None
        slowest = await self._rows("slowest_relay")
        name, floor = slowest[0] if slowest else (None, 0)
        reason = "no relay has published it"
        if name is not None:
            reason = f"it is above the floor {floor} of relay {name}"
        for each in await self._ranges(above=True):
            rows = await self._rows("range_written", first=each.first, last=each.last)
            age, outbox_id = rows[0] if rows else (None, 0)
            if age is not None and age < self._periods.messages * DAY:
                return
            # A range that is not full yet is held up by nobody once its rows are published.
            if age is not None and outbox_id > floor and each.kept is None:
                yield Step(each.first, each.last, "wait", each.bytes, reason=reason)

    async def _ranges(self, *, above: bool = False) -> list[Range]:
        """Ranges at or below the floor of every relay, or `above` the lowest of them."""
        return [Range(*row) for row in await self._rows("retention_ranges", above=above)]

    async def _done(self, each: Range) -> Step:
        """What is done with the range; what fails there holds up no other range."""
        left = 0
        try:
            step = await self._ready(each)
            left = step.left
            if step.act == "empty" and await self._lacks_archive():
                raise Busy(LACKS_ARCHIVE)
            if step.act == "empty" and not self._dry:
                step = await self._empty(each, step)
        except (Busy, StreamsError) as error:
            reason = str(error)
        except psycopg.DataError as error:  # its message quotes what it does not like
            reason = f"a value of one of its rows cannot be read (SQLSTATE {error.sqlstate or '-'})"
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            reason = refusal(error)
        else:
            return step
        return Step(each.first, each.last, "wait", each.bytes, left, reason=reason)

    async def _lacks_archive(self) -> bool:
        """Whether this outbox has an archive, and this process knows of none."""
        if self._archive is not None or self._unarchived:
            return False
        return bool(await self._value("archived_so_far"))

    async def _ready(self, each: Range) -> Step:
        """Whether the range may be emptied, proved without a lock."""
        assert self._periods.messages is not None
        period = self._periods.messages * DAY

        def wait(reason: str, left: int = 0) -> Step:
            return Step(each.first, each.last, "wait", each.bytes, left, reason=reason)

        def young(age: float) -> Step:
            days = (period - age) / DAY
            return Step(each.first, each.last, "wait", each.bytes, days=days)

        if each.kept is not None:  # once more, when some of what was left is settled
            left = len(await self._needed(each))
            return Step(
                each.first, each.last, "kept" if left >= each.kept else "empty", each.bytes, left
            )
        # The last row spares reading the rest; what it says is believed only if all of them do.
        written = await self._value("range_written", first=each.first, last=each.last)
        if written is not None and written < period:
            return young(written)
        proof = await self._proof(each)
        if proof.age is not None and proof.age + time.monotonic() - proof.at < period:
            return young(proof.age + time.monotonic() - proof.at)
        if proof.fault is not None:
            return wait(proof.fault)
        if not proof.proved:
            return wait(AGELESS)
        left = len(await self._left(each))
        if left > proof.rows * LEFT_MOST:
            reason = (
                f"{left} of {proof.rows} rows are of messages that are not settled: replay or"
                " discard them"
            )
            return wait(reason, left)
        return Step(each.first, each.last, "empty", each.bytes, left)

    async def _proof(self, each: Range) -> Proof:
        known, now = self._proofs.get(each.first), time.monotonic()
        if known is not None and (known.proved or now - known.at < PROOF_SECONDS):
            return known
        proof = self._proofs[each.first] = await self._prove(each)
        return proof

    async def _prove(self, each: Range) -> Proof:
        rows, messages, fateless, strange, age = (
            await self._rows("range_proof", first=each.first, last=each.last)
        )[0]
        fault = None
        if fateless:
            fault = f"{fateless} messages have no fate yet: the sweep sends them again"
        elif strange:
            fault = f"{strange} states contradict their rows: run `streams audit --full`"
        return Proof(time.monotonic(), rows, messages, fault, age)

    async def _left(self, each: Range) -> list[int]:
        return [
            row[0] for row in await self._rows("range_unsettled", first=each.first, last=each.last)
        ]

    async def _unsettled_roots(self, each: Range) -> list[int]:
        """Messages that are not settled, and that rows of this range send again."""
        roots = [
            row[0] for row in await self._rows("range_roots", first=each.first, last=each.last)
        ]
        parts = [roots[start : start + PART] for start in range(0, len(roots), PART)]
        return [row[0] for part in parts for row in await self._rows("unsettled", ids=part)]

    async def _needed(self, each: Range) -> list[int]:
        """Rows of a range that was emptied before, that somebody may still need."""
        given = {"ids": await self._left(each), "roots": await self._unsettled_roots(each)}
        return [
            row[0]
            for row in await self._rows("range_needed", first=each.first, last=each.last, **given)
        ]

    async def _empty(self, each: Range, ready: Step) -> Step:
        """Empty it in one transaction.

        Busy when its partitions cannot be locked for some seconds.
        """
        archived = None
        if self._archive is not None:
            archived = await self._archive.archive(
                self._connection, each.first, each.last, whole=each.kept is None
            )
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return await self._empty_now(each, archived)
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                if time.monotonic() > deadline:
                    raise Busy(await self._who("holders", tables=self._named(each))) from None
            await asyncio.sleep(AGAIN_SECONDS)

    async def _empty_now(self, each: Range, archived: Part | None) -> Step:
        """Do it now or not at all.

        LockNotAvailable when somebody is there, Busy when it is not as it was proved.
        """
        bounds: Mapping[str, Any] = {"first": each.first, "last": each.last}
        leaves = [sql.Identifier(each.schema, name) for name in each.tables]
        both = sql.SQL(", ").join(sql.SQL("ONLY {}").format(leaf) for leaf in leaves)
        async with self._connection.transaction():
            await self._connection.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(both)
            )
            if not await self._value("emptying_lock"):
                raise Busy("an audit runs")
            before, messages = await self._proved_still(each)
            ids = await self._still_open(each)
            if archived is not None and self._archive is not None:
                still = await self._archive.unchanged(
                    self._connection,
                    archived,
                    rows=before.rows,
                    states=before.messages,
                    unsettled=ids,
                )
                if not still:
                    raise Busy(CHANGED)
            await self._rows(
                "retain_rows", **bounds, ids=ids, roots=await self._unsettled_roots(each)
            )
            await self._rows("retain_states", **bounds, ids=ids)
            [(rows, states)] = await self._rows("retained")
            if states != len(ids):
                raise Busy(CONTRADICTION)
            about = {"messages": messages, "kept": rows, "tables": each.tables}
            about["archived"] = "" if archived is None else archived.name
            await self._rows("note_retired", **bounds, **about)
            await self._connection.execute(sql.SQL("TRUNCATE {}").format(both))
            await self._rows("forget_letters", **bounds, ids=ids)
            for name, count in (("restore_rows", rows), ("restore_states", states)):
                restored = await self._connection.execute(query(name)) if count else None
                if restored is not None and restored.rowcount != count:
                    raise Busy(f"{restored.rowcount} of {count} were put back: a trigger of yours?")
        return Step(each.first, each.last, "empty", each.bytes, rows)

    async def _proved_still(self, each: Range) -> tuple[Proof, int]:
        """What is in the range now that nobody writes there, and how many messages it had once.

        Busy if it is not as it was proved.
        """
        if each.messages is not None:
            proof = await self._prove(each)  # of the few rows that are left
            if proof.fault is not None or proof.rows != each.kept:
                raise Busy(proof.fault or CONTRADICTION)
            return proof, each.messages
        proof = self._proofs[each.first]
        counts = (await self._rows("range_counts", first=each.first, last=each.last))[0]
        if counts != (proof.rows, proof.messages):
            # A row that was committed and not visible yet, or written by hand.
            del self._proofs[each.first]
            raise Busy("rows came into it: it is read once more")
        return proof, proof.messages

    async def _still_open(self, each: Range) -> list[int]:
        """Messages of the range that are not settled, by their states alone.

        Busy if outbox_open says that one more is.
        """
        rows = await self._rows("range_open", first=each.first, last=each.last)
        if any(contradicts for _, contradicts in rows):
            raise Busy(CONTRADICTION)
        return [outbox_id for outbox_id, _ in rows]

    # Dropping.

    async def _dropped(self) -> AsyncIterator[Step]:
        ranges: dict[tuple[int, int], list[Leaf]] = {}
        for first, last, *about in await self._rows("to_drop"):
            ranges.setdefault((first, last), []).append(Leaf(*about))
        pending = None  # one detach at a time may be: the rest waits for it
        for (first, last), leaves in ranges.items():
            reason = pending
            try:
                if reason is None and not self._dry:
                    reason = pending = await self._detach(leaves)
                    if reason == WRITTEN:
                        pending = None
                    if reason is None:
                        reason = await self._drop(first, leaves)
            except psycopg.Error as error:
                if self._connection.closed:
                    raise
                reason = refusal(error)
            yield Step(first, last, "drop" if reason is None else "wait", reason=reason)

    async def _detach(self, leaves: Sequence[Leaf]) -> str | None:
        """Detach the partitions of an empty range; why not, when that cannot be now."""
        for leaf in leaves:
            if leaf.schema is not None and await self._any_row(leaf.identifier):
                return WRITTEN
        for leaf in leaves:
            if not leaf.attached:
                continue
            detach = "ALTER TABLE {parent} DETACH PARTITION {leaf} " + (
                "FINALIZE" if leaf.pending else "CONCURRENTLY"
            )
            names = {
                "parent": sql.Identifier(leaf.schema or "", leaf.parent),
                "leaf": leaf.identifier,
            }
            try:
                await self._connection.execute(sql.SQL(detach).format(**names))
            except (
                errors.LockNotAvailable,
                errors.ObjectInUse,
                errors.ObjectNotInPrerequisiteState,
            ):
                return await self._who("detach_holders")
        return None

    async def _drop(self, first: int, leaves: Sequence[Leaf]) -> str | None:
        """Drop the two tables, which are no partitions any more; why not, when that cannot be."""
        tables = [leaf.identifier for leaf in leaves if leaf.schema is not None]
        try:
            async with self._connection.transaction():
                for table in tables:
                    await self._connection.execute(
                        sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE NOWAIT").format(table)
                    )
                    if await self._any_row(table):
                        return WRITTEN
                for table in tables:
                    await self._connection.execute(sql.SQL("DROP TABLE {}").format(table))
                await self._rows("note_dropped", first=first)
        except errors.LockNotAvailable:
            return await self._who("holders", tables=[table.as_string() for table in tables])
        return None

    async def _any_row(self, table: sql.Identifier) -> bool:
        cursor = await self._connection.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(table))
        return await cursor.fetchone() is not None

    # What else grows.

    async def _discard(self, each: Range) -> None:
        """Dead letters of a range whose period is over are given up, act noted."""
        assert self._periods.dead is not None
        seconds, after = self._periods.dead * DAY, each.first - 1
        while True:
            bounds = {"first": after + 1, "last": each.last, "seconds": seconds, "most": PART}
            ids = [row[0] for row in await self._rows("dead_for_long", **bounds)]
            if not ids:
                return
            await self._transacted(partial(self._discard_some, ids))
            after = ids[-1]  # whatever a trigger of somebody's keeps as it is

    async def _discard_foreign(self) -> None:
        """The same of other systems' dead letters."""
        assert self._periods.dead is not None
        asked = {"seconds": self._periods.dead * DAY, "most": PART}
        after = ("", -1)
        while rows := await self._rows(
            "foreign_dead_for_long", source=after[0], after=after[1], **asked
        ):
            await self._transacted(partial(self._discard_some_foreign, rows))
            after = rows[-1][0], rows[-1][1]

    async def _discard_some(self, ids: Sequence[int]) -> None:
        dead = [row[0] for row in await self._rows("dead_lock", ids=ids)]
        await self._rows("dead_discard", ids=dead)
        await self._note(dead, [str(one) for one in dead])

    async def _discard_some_foreign(self, rows: Sequence[Sequence[Any]]) -> None:
        # An operator may have replayed some of them meanwhile.
        locked = await self._rows("foreign_lock", **_foreign(rows))
        await self._rows("foreign_discard", **_foreign(locked))
        await self._note([], [f"{source}:{one}" for source, one, *_ in locked])

    async def _transacted(self, step: Callable[[], Awaitable[None]]) -> None:
        """The step in a transaction, again for some seconds where somebody is in its way."""
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                async with self._connection.transaction():
                    return await step()
            except (errors.LockNotAvailable, errors.DeadlockDetected):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(AGAIN_SECONDS)

    async def _note(self, ids: Sequence[int], names: Sequence[str]) -> None:
        if not names:
            return
        what: dict[str, Any] = {"count": len(names), "ids": list(ids) or list(names)}
        why = f"dead for more than {self._periods.dead or 0:g} days"
        note = {
            "who": "retention",
            "act": "discard",
            "outbox_id": ids[0] if len(ids) == 1 else None,
            "why": why,
        }
        await self._rows("note_action", **note, what=orjson.dumps(what).decode())

    async def _older(self, name: LiteralString, days: float | None) -> None:
        """Delete what is older than so many days by this query, a part at a time."""
        if days is None:
            return
        given = {"seconds": days * DAY, "most": MOST}
        while (await self._connection.execute(query(name), given)).rowcount == MOST:
            pass

    # Asking.

    async def _rows(self, name: str, /, **parameters: Any) -> list[tuple[Any, ...]]:
        cursor = await self._connection.execute(query(name), parameters)
        return await cursor.fetchall() if cursor.description else []

    async def _value(self, name: str, /, **parameters: Any) -> Any:
        rows = await self._rows(name, **parameters)
        return rows[0][0] if rows else None

    async def _who(self, name: str, /, **parameters: Any) -> str:
        rows = await self._rows(name, **parameters)
        named = [
            ("the snapshot of " if snapshot else "")
            + (f"pid {pid} ({', '.join(filter(None, (who, state)))})" if pid else who)
            for pid, who, state, snapshot in rows
        ]
        return ", ".join(named) or "a transaction that is open"

    def _named(self, each: Range) -> list[str]:
        return [sql.Identifier(each.schema, name).as_string() for name in each.tables]


def _foreign(rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Other systems' messages, each (source, id, ...), as the parameters of a named query."""
    parts = [row[:2] for row in rows]
    return {"sources": [source for source, _ in parts], "ids": [one for _, one in parts]}


def periods(settings: Settings, topics: Iterable[str], envelopes: Iterable[str] = ()) -> Periods:
    """As the settings say; messages stay at least as long as the records of any of these topics.

    Those of other systems, whose topics are `envelopes`, stay longer than their records: what is
    forgotten of them is persisted once more when its record is read again, and Kafka keeps a record
    for up to a segment's week longer.
    """
    kept = settings.outbox
    records, theirs = (
        max((settings.topic_settings(name).retention_hours / 24 for name in names), default=0)
        for names in (topics, envelopes)
    )
    theirs = max(records, theirs)
    return Periods(
        messages=None if kept.retention_days is None else max(kept.retention_days, records),
        dead=kept.dead_days,
        foreign=None if kept.foreign_days is None else max(kept.foreign_days, 2 * theirs + 7),
        rejects=kept.rejects_days,
        actions=kept.actions_days,
        audits=kept.audits_days,
    )


async def owner_for(connection: psycopg.AsyncConnection[Any]) -> str:
    """The role as which retention is done here.

    NotAllowed when this role is no member of it, ClocksDiffer when nobody can say what is old.
    """
    [(owner, member, role, clock)] = await (
        await connection.execute(query("retention_right"))
    ).fetchall()
    if not member:
        raise NotAllowed(
            f"role {role} may not drop partitions: run `streams retention` as {owner},"
            f" or GRANT {owner} TO {role}"
        )
    if abs(apart := clock - time.time()) > CLOCKS_SECONDS:
        raise ClocksDiffer(
            f"the clock of PostgreSQL is {abs(apart) / 3600:,.1f} hours"
            f" {'ahead of' if apart > 0 else 'behind'} this machine's: nothing is taken away while"
            " nobody can say how old it is (mend the one that is wrong)"
        )
    return str(owner)


@asynccontextmanager
async def holding(connection: psycopg.AsyncConnection[Any]) -> AsyncIterator[None]:
    """Nobody else does retention within this, and this session acts as the owner of the tables.

    Busy when another process is at it; NotAllowed and ClocksDiffer as `owner_for` has them.
    """
    owner = await owner_for(connection)
    lock = {"lock": locks.RETENTION}
    [(taken,)] = await (await connection.execute(query("lock_alone"), lock)).fetchall()
    if not taken:
        holder = await (await connection.execute(query("lock_holder"), lock)).fetchone()
        who = " (pid {}, {!r})".format(*holder) if holder else ""
        raise Busy(f"another process is at it{who}")
    try:
        await connection.execute(query("retention_role"), {"role": owner})
        yield
    finally:
        if not connection.closed:
            await connection.execute(query("retention_role"), {"role": "none"})
            await connection.execute(query("lock_give"), lock)
