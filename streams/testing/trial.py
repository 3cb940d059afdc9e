"""Events through your agents without Kafka: what a worker decides and writes, on a real PostgreSQL.

The rows are real outbox rows, and what they carry is encoded, decoded, claimed, handed to the handlers and set aside by the
code that a worker runs.  Only Kafka is missing, and waiting: where a worker would wait, WouldWait says for what.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from streams.database import migrate, query
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.outbox import insert_rows, outbox_row, statement
from streams.registry import configured
from streams.settings import Settings, load
from streams.testing.fates import Fates
from streams.worker.database.connections import (
    GRACE,
    TransactionFailed,
    commit,
    driver_of,
    is_lost,
    worker_engine,
)
from streams.worker.failure.classify import HandlerBroken, MessageExhausted, Verdict, describe, verdict_on
from streams.worker.failure.handlers import Strategy
from streams.worker.failure.isolate import FailureHistory
from streams.worker.run.conversations import work_open
from streams.worker.run.decode import CREATE_TIME, read
from streams.worker.run.pipeline import work_records
from streams.worker.run.transaction import Outcome, Transaction

Where = str | AsyncConnection | AsyncSession
Work = Callable[[Transaction], Awaitable[None]]

PARTITION = 0
MANY = 10_000  # open messages of one conversation


class WouldWait(StreamsError):
    """Not the messages' fault, so a worker would wait and try them again, without end if need be; its cause is chained."""


async def persist(where: Where, events: Sequence[object], *, settings: Settings | None = None) -> Fates:
    """Enqueue these events, deliver them once, and say what became of each.

    `where` is the URL of a migrated database, and everything is committed; or your AsyncConnection or AsyncSession, and it
    all happens in its transaction.  An outbox id in place of an event: what was enqueued before is delivered (again).
    `settings` default to faust.yml and the environment, as everywhere.

    Raises PayloadInvalid where `enqueue` does, WouldWait, UsageError, NotMigrated or ServiceUnreachable.
    """
    async with InlineWorker(where, settings) as trial:
        return await trial.persist(events)


async def retry(where: Where, *, settings: Settings | None = None) -> Fates:
    """Try everything again that waits, as if its time had come: one more attempt for each conversation.

    Its first message goes first, and those parked behind it follow when it is through.  Says what became of all that waited.
    """
    async with InlineWorker(where, settings) as trial:
        return await trial.retry()


def persist_sync(url: str, events: Sequence[object], *, settings: Settings | None = None) -> Fates:
    """Like `persist`, for a test without an event loop."""
    return asyncio.run(persist(url, events, settings=settings))


def retry_sync(url: str, *, settings: Settings | None = None) -> Fates:
    """Like `retry`, for a test without an event loop."""
    return asyncio.run(retry(url, settings=settings))


class _Record(NamedTuple):
    """One outbox row as a consumer would get it from its topic."""

    topic: str
    offset: int
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes | None]]
    timestamp: int
    partition: int = PARTITION
    timestamp_type: int = CREATE_TIME


class InlineWorker:
    """One call: its database, its settings, and what it wrote so far."""

    def __init__(self, where: Where, settings: Settings | None) -> None:
        if not isinstance(where, Where):
            kind = type(where).__name__
            raise UsageError(f"a {kind} was given: expected a database URL, an AsyncConnection or an AsyncSession")
        self._where = where
        self._settings = _at(where, settings or load())
        self._registry = configured(self._settings)
        self._engine: AsyncEngine | None = None
        self._outcome = Outcome()

    async def __aenter__(self) -> InlineWorker:
        if isinstance(self._where, str):
            await asyncio.to_thread(_check, self._settings)
            self._engine = worker_engine(self._settings)
        else:
            async with self._transaction() as connection:
                await connection.run_sync(migrate.check)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._engine is not None:
            await self._engine.dispose()

    async def persist(self, events: Sequence[object]) -> Fates:
        rows = [outbox_row(each, self._settings, self._registry) for each in events if not isinstance(each, int)]
        async with self._transaction() as connection:
            # Ids ascend in the order given, whatever order the server returns them in.
            new = iter(sorted(await _inserted(connection, rows)) if rows else [])
            ids = [each if isinstance(each, int) else next(new) for each in events]
            records = [_record(row) for row in await _rows(connection, "deliverable", ids=ids)]
        if missing := set(ids) - {record.offset for record in records}:
            raise UsageError(
                f"no outbox row has the id {min(missing)}: expected an event, or the id of an enqueued one"
            )
        # One topic at a time, each in a transaction of its own: a worker has an agent for each.
        for topic, some in groupby(sorted(records, key=lambda one: one.topic), key=lambda one: one.topic):
            await self._deliver(topic, list(some))
        return await self._fates(ids)

    async def retry(self) -> Fates:
        async with self._transaction() as connection:
            await connection.exec_driver_sql(query("make_due"))
            waiting = await _rows(connection, "all_open")
        for (topic, partition), some in groupby(sorted(waiting, key=lambda row: row[1:3]), key=lambda row: row[1:3]):
            await self._wake(topic, partition, list(dict.fromkeys(row[3] for row in some)))
        return await self._fates([row[0] for row in waiting])

    async def _deliver(self, topic: str, records: Sequence[_Record]) -> None:
        async def work(transaction: Transaction) -> None:
            found, rejected = read(records, self._registry)
            await work_records(transaction, found, rejected, {PARTITION})

        await self._until_done(topic, work)

    async def _wake(self, topic: str, partition: int, keys: Sequence[str]) -> None:
        async def work(transaction: Transaction) -> None:
            await work_open(transaction, topic, partition, keys, MANY * len(keys))

        await self._until_done(topic, work)

    async def _until_done(self, topic: str, work: Work) -> None:
        """As a worker does it, but for waiting: all at once, then in pieces to find who is guilty."""
        care, memory = Strategy.WHOLE, FailureHistory()
        while True:
            try:
                self._outcome.add(await self._once(topic, work, care, memory))
                return
            except TransactionFailed as failed:
                error, lost = failed.error, failed.lost
            if isinstance(error, MessageExhausted):
                memory.known_failures[error.outbox_id] = error.error
                error = error.error
            if lost and self._engine is None:
                raise ServiceUnreachable(f"the connection was lost: {_why(error)}") from error
            verdict = verdict_on(error, lost)
            if verdict is Verdict.WAIT:
                raise _would_wait(error) from (error.__cause__ or error)
            if verdict is Verdict.SLOW:
                care = Strategy.SINGLE
            elif care is Strategy.WHOLE:
                care = Strategy.BISECT
            else:
                raise error

    async def _once(self, topic: str, work: Work, care: Strategy, memory: FailureHistory) -> Outcome:
        lost = self._engine is not None
        try:
            async with self._transaction() as connection:
                lost = False
                driver = await driver_of(connection)
                seconds = self._settings.worker.handler_timeout + GRACE
                transaction = Transaction(
                    connection,
                    driver,
                    self._registry,
                    topic,
                    care=care,
                    seconds=seconds,
                    memory=memory,
                    unknown_days=self._settings.worker.unknown_days,
                )
                try:
                    async with transaction.spans:
                        await work(transaction)
                except Exception:  # raised again: only now is it known whether the connection survived
                    lost = is_lost(connection, driver)
                    raise
        except Exception as error:
            raise TransactionFailed(error, lost) from error
        return transaction.outcome

    async def _fates(self, ids: Sequence[int]) -> Fates:
        async with self._transaction() as connection:
            return Fates(await _rows(connection, "fates", ids=list(ids)), self._outcome.consumed)

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        """Committed at the end; in a caller's transaction a savepoint."""
        if self._engine is not None:
            async with self._engine.connect() as connection:
                await connection.begin()
                yield connection
                await commit(await driver_of(connection))
            return
        assert not isinstance(self._where, str)
        connection = await self._where.connection() if isinstance(self._where, AsyncSession) else self._where
        async with connection.begin_nested():
            yield connection


def _at(where: Where, settings: Settings) -> Settings:
    """The settings with the database to use: a test touches no other one."""
    if not isinstance(where, str):
        return settings
    return msgspec.structs.replace(settings, database=msgspec.structs.replace(settings.database, url=where))


def _check(settings: Settings) -> None:
    with migrate.connection(settings) as connection:
        migrate.check(connection)


async def _inserted(connection: AsyncConnection, rows: Sequence[tuple[str, str, str, str]]) -> list[int]:
    name, parameters = insert_rows(rows)
    return [row[0] for row in await connection.execute(statement(name), parameters)]


async def _rows(connection: AsyncConnection, name: str, **parameters: Any) -> list[Any]:
    return list(await connection.exec_driver_sql(query(name), parameters))


def _record(row: Sequence[Any]) -> _Record:
    outbox_id, topic, key, payload, biz_type, traceparent, resend_of, created_ms = row
    headers = {"id": outbox_id, "biz_type": biz_type, "traceparent": traceparent, "resend_of": resend_of}
    encoded = [(name, None if value is None else str(value).encode()) for name, value in headers.items()]
    return _Record(topic, outbox_id, key.encode(), payload.encode(), encoded, created_ms)


def _would_wait(error: Exception) -> WouldWait:
    if isinstance(error, HandlerBroken):
        return WouldWait(f"{error}, a bug or something that is missing: a worker would wait until it is mended")
    return WouldWait(f"a worker would wait and try again: {_why(error)}")


def _why(error: BaseException) -> str:
    code, reason = describe(error)
    return reason if code in reason else f"{reason} ({code})"
