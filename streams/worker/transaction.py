"""The one transaction of a run: lock the partition, park, claim, call the handlers, commit.

Statements go straight to psycopg; handlers get the SQLAlchemy connection around the same transaction.  A run never takes a
second connection, so the pool cannot deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import orjson
import psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from db import query
from streams.codec import Unreadable
from streams.events import Message
from streams.registry import Registry
from streams.worker.decode import Incoming, Rejected, milliseconds, parse
from streams.worker.handlers import Guilty, apply
from streams.worker.ledger import Run


@dataclass(frozen=True, slots=True)
class Aside:
    """One message set aside: `status` is retrying, parked or dead; `due` is epoch seconds, None when nobody waits."""

    outbox_id: int
    key: str
    status: str
    attempts: int = 0
    code: str | None = None
    due: float | None = None


@dataclass(slots=True)
class Outcome:
    """What a run's transaction decided; true once it committed."""

    consumed: int = 0
    skipped: int = 0
    asides: list[Aside] = field(default_factory=list)
    rejected: Sequence[Rejected] = ()


class Transaction:
    """One attempt at one run, on one connection whose commit is the caller's."""

    def __init__(self, connection: AsyncConnection, driver: psycopg.AsyncConnection[Any], run: Run) -> None:
        self._connection, self._driver, self._run = connection, driver, run
        self._where = {"topic": run.topic, "partition": run.partition}

    async def work(
        self,
        found: Sequence[Incoming],
        rejected: Sequence[Rejected],
        registry: Registry,
        *,
        isolate: bool,
        seconds: float,
    ) -> Outcome:
        """Decide every record of the run; with `isolate` failing messages are set aside instead of raising."""
        outcome = Outcome(rejected=list(rejected))
        blocked = await self._lock(found)
        found, lost = await self._resolve(found, registry)
        parked = [one for one in found if one.message is not None and one.key in blocked]
        free = [one for one in found if one.message is not None and one.key not in blocked]
        claimed = await self._claim(free)
        lost += await self._unclaimed([one for one in free if one.outbox_id not in claimed])
        await self._open(outcome, parked, [one for one in found if one.fault is not None])
        await self._reject(outcome, lost)
        messages = [cast("Message[Any]", one.message) for one in free if one.outbox_id in claimed]
        kinds = [one.biz_type for one in free if one.outbox_id in claimed]
        guilty = await apply(self._connection, messages, kinds, registry, isolate=isolate, seconds=seconds)
        await self._set_aside(outcome, guilty)
        outcome.consumed = len(messages) - len(guilty)
        outcome.skipped = len(self._run) - outcome.consumed - len(outcome.asides) - len(outcome.rejected)
        return outcome

    async def _lock(self, found: Sequence[Incoming]) -> set[str]:
        keys = orjson.dumps(list({one.key for one in found})).decode()
        async with self._driver.pipeline(), self._driver.cursor() as lock, self._driver.cursor() as opened:
            await lock.execute(query("lock_partition"), self._where)
            await opened.execute(query("open_keys"), {**self._where, "keys": keys})
            return {key for (key,) in await opened.fetchall()}

    async def _resolve(self, found: Sequence[Incoming], registry: Registry) -> tuple[list[Incoming], list[Rejected]]:
        """Broken and resent records as their outbox rows say; what has no row is lost to us."""
        odd = [one for one in found if one.fault is not None or one.resend]
        if not odd:
            return list(found), []
        rows = {row[0]: row for row in await self._rows(one.outbox_id for one in odd)}
        lost = [Rejected(one.offset, "no outbox row has this id") for one in odd if one.outbox_id not in rows]
        for one in odd:
            if one.outbox_id in rows:
                _judge_by_row(one, rows[one.outbox_id], registry)
        return [one for one in found if not (one.fault is not None or one.resend) or one.outbox_id in rows], lost

    async def _claim(self, free: Sequence[Incoming]) -> set[int]:
        if not free:
            return set()
        # An array of numbers as text: a tenth of the price of binding a list.
        ids = "{" + ",".join([str(one.outbox_id) for one in free]) + "}"
        offsets = "{" + ",".join([str(one.offset) for one in free]) + "}"
        rows = await self._execute("claim", partition=self._run.partition, ids=ids, offsets=offsets)
        return {outbox_id for (outbox_id,) in rows}

    async def _unclaimed(self, left: Sequence[Incoming]) -> list[Rejected]:
        """Forged ids among those that could not be claimed; the others have a fate already and are done."""
        if not left:
            return []
        known = {row[0] for row in await self._rows(one.outbox_id for one in left)}
        return [Rejected(one.offset, "no outbox row has this id") for one in left if one.outbox_id not in known]

    async def _open(self, outcome: Outcome, parked: Sequence[Incoming], broken: Sequence[Incoming]) -> None:
        rows = [
            {"outbox_id": one.outbox_id, "status": "parked", "offset": one.offset, "key": one.key} for one in parked
        ]
        for one in broken:
            fault = cast("Unreadable", one.fault)
            row = {"outbox_id": one.outbox_id, "status": "dead", "offset": one.offset, "key": one.key}
            rows.append({**row, "error_code": fault.code, "error": str(fault)[:2000]})
        if not rows:
            return
        opened = {row[0] for row in await self._execute("open", **self._where, messages=orjson.dumps(rows).decode())}
        outcome.asides += [
            Aside(
                cast("int", row["outbox_id"]),
                str(row["key"]),
                str(row["status"]),
                code=cast("str", row.get("error_code")),
            )
            for row in rows
            if row["outbox_id"] in opened
        ]

    async def _set_aside(self, outcome: Outcome, guilty: Sequence[Guilty]) -> None:
        if not guilty:
            return
        messages = orjson.dumps([one.row() for one in guilty]).decode()
        due = dict(await self._execute("set_aside", topic=self._run.topic, messages=messages))
        outcome.asides += [
            Aside(one.outbox_id, one.key, one.status, one.attempts, one.code, due[one.outbox_id]) for one in guilty
        ]

    async def _reject(self, outcome: Outcome, lost: Sequence[Rejected]) -> None:
        outcome.rejected = [*outcome.rejected, *lost]
        if outcome.rejected:
            rejects = [{"offset": one.offset, "reason": one.reason} for one in outcome.rejected]
            async with self._driver.cursor() as cursor:
                await cursor.execute(query("reject"), {**self._where, "rejects": orjson.dumps(rejects).decode()})

    async def _rows(self, ids: Iterable[int]) -> list[tuple[Any, ...]]:
        return await self._execute("outbox_rows", ids=list(ids))

    async def _execute(self, name: str, **parameters: Any) -> list[tuple[Any, ...]]:
        async with self._driver.cursor() as cursor:
            await cursor.execute(query(name), parameters)
            return await cursor.fetchall()


def _judge_by_row(one: Incoming, row: tuple[Any, ...], registry: Registry) -> None:
    """An id whose value on the topic is broken is judged by its outbox row; a resend has its root's time and key."""
    _, biz_type, key, payload, created_at, _ = row
    one.key, one.biz_type = key, biz_type
    try:
        one.message, one.fault = parse(payload, biz_type, one.outbox_id, key, milliseconds(created_at), registry), None
    except Unreadable as fault:
        one.message, one.fault = None, fault
