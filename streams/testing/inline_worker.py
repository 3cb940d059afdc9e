"""Events through your agents without Kafka: what a worker decides and writes, on a real PostgreSQL.

The rows are real outbox rows, and what they carry is encoded, decoded, claimed, handed to the
handlers and set aside by the code that a worker runs, its pipeline and its attempts. Only Kafka is
missing, and waiting: where a worker would wait, WouldWait says for what.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from streams.database import migrate, query, statement
from streams.errors import ServiceUnreachable, StreamsError, UsageError
from streams.outbox import insert_rows, outbox_row
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
from streams.worker.driver.runs import Run
from streams.worker.failure.classify import HandlerBroken, describe
from streams.worker.failure.strategy import Strategy
from streams.worker.run.attempt import Attempts, Outcome
from streams.worker.run.conversations import work_conversations
from streams.worker.run.decode import CREATE_TIME
from streams.worker.run.pipeline import work_run
from streams.worker.run.until_done import Work, until_done

Where = str | AsyncConnection | AsyncSession

PARTITION = 0
MANY = 10_000  # open messages of one conversation
MOST_REST = 30.0  # seconds that one call may rest for what others commit


class WouldWait(StreamsError):
    """Not the messages' fault, so a worker would wait and try them again, without end if need be.

    Its cause is what the worker met.
    """


async def persist(
    where: Where, events: Sequence[object], *, settings: Settings | None = None
) -> Fates:
    """Enqueue these events, deliver them once, and say what became of each.

    `where` is the URL of a migrated database, and everything is committed; or your AsyncConnection
    or AsyncSession, and it all happens in its transaction. An outbox id in place of an event: what
    was enqueued before is delivered (again). `settings` default to faust.yml and the environment,
    as everywhere.

    Raises PayloadInvalid where `enqueue` does, WouldWait, UsageError, NotMigrated or
    ServiceUnreachable.
    """
    async with InlineWorker(where, settings) as worker:
        return await worker.persist(events)


async def retry(where: Where, *, settings: Settings | None = None) -> Fates:
    """Try everything again that waits, as if its time had come.

    It is one more attempt for each conversation. Its first message goes first, and those parked
    behind it follow when it is through. Says what became of all that waited.
    """
    async with InlineWorker(where, settings) as worker:
        return await worker.retry()


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

    slow_tries = 1  # nobody else is there who could have been the cause

    def __init__(self, where: Where, settings: Settings | None) -> None:
        if not isinstance(where, Where):
            kind = type(where).__name__
            raise UsageError(
                f"a {kind} was given: expected a database URL, an AsyncConnection or an"
                " AsyncSession"
            )
        self._where = where
        self._settings = _at(where, settings or load())
        self._registry = configured(self._settings)
        self._attempts = Attempts(self._settings, self._registry)
        self._engine: AsyncEngine | None = None
        self._outcome = Outcome()
        self._rested = 0.0

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
        rows = [
            outbox_row(each, self._settings, self._registry)
            for each in events
            if not isinstance(each, int)
        ]
        async with self._transaction() as connection:
            # Ids ascend in the order given, whatever order the server returns them in.
            new = iter(sorted(await _inserted(connection, rows)) if rows else [])
            ids = [each if isinstance(each, int) else next(new) for each in events]
            records = [_record(row) for row in await _rows(connection, "deliverable", ids=ids)]
        if missing := set(ids) - {record.offset for record in records}:
            raise UsageError(
                f"no outbox row has the id {min(missing)}: expected an event,"
                " or the id of an enqueued one"
            )
        # One topic at a time, each in a transaction of its own: a worker has an agent for each.
        for topic, of_topic in groupby(
            sorted(records, key=attrgetter("topic")), key=attrgetter("topic")
        ):
            run = Run(topic, PARTITION, list(of_topic))
            await self._work(run, partial(work_run, partitions={PARTITION}, records=run.records))
        return await self._fates(ids)

    async def retry(self) -> Fates:
        async with self._transaction() as connection:
            await connection.exec_driver_sql(query("make_due"))
            waiting = await _rows(connection, "all_open")
        waiting.sort(key=lambda row: row[1:3])
        for (topic, partition), rows in groupby(waiting, key=lambda row: row[1:3]):
            keys = list(dict.fromkeys(row[3] for row in rows))
            calls = [
                _Record(topic, number, key.encode(), b"", [], 0) for number, key in enumerate(keys)
            ]
            most = MANY * len(keys)
            work = partial(work_conversations, partition=partition, keys=keys, most=most)
            await self._work(Run(topic, partition, calls), work)
        return await self._fates([row[0] for row in waiting])

    async def wait(self, run: Run, error: Exception, tries: int) -> None:
        """Say for what a worker would wait."""
        if isinstance(error, HandlerBroken):
            raise WouldWait(
                f"{error}, a bug or something that is missing: a worker would wait until it is"
                " mended"
            ) from (error.__cause__ or error)
        raise WouldWait(f"a worker would wait and try again: {_why(error)}") from (
            error.__cause__ or error
        )

    async def rest(self, seconds: float) -> None:
        """Pause, for a while in all."""
        self._rested += seconds
        if self._rested > MOST_REST:
            raise WouldWait("a worker would wait until what others commit is visible")
        await asyncio.sleep(seconds)

    async def reachable(self) -> bool:
        """Whether the database answers others: of nobody else is anything known."""
        return True

    async def _work(self, run: Run, work: Work) -> None:
        """Work as a worker does, but for waiting.

        All at once, then in pieces to find who is guilty.
        """
        attempt = partial(self._attempt, run.topic, work)
        outcome = await until_done(
            run, attempt, Strategy.WHOLE, self._attempts.history(run.topic), self
        )
        if outcome is not None:
            self._outcome.add(outcome)

    async def _attempt(self, topic: str, work: Work, strategy: Strategy) -> Outcome:
        lost = self._engine is not None
        seconds = self._settings.worker.handler_timeout + GRACE
        try:
            async with self._transaction() as connection:
                lost = False
                driver = await driver_of(connection)
                attempt = self._attempts.begin(connection, driver, topic, strategy, seconds=seconds)
                try:
                    async with attempt.spans:
                        outcome = await work(attempt)
                        await attempt.settle()
                except (
                    Exception
                ):  # raised again: only now is it known whether the connection survived
                    lost = is_lost(connection, driver)
                    raise
        except Exception as error:
            if lost and self._engine is None:
                raise ServiceUnreachable(f"the connection was lost: {_why(error)}") from error
            raise TransactionFailed(error, lost) from error
        return outcome

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
        connection = (
            await self._where.connection() if isinstance(self._where, AsyncSession) else self._where
        )
        async with connection.begin_nested():
            yield connection


def _at(where: Where, settings: Settings) -> Settings:
    """The settings with the database to use: a test touches no other one."""
    if not isinstance(where, str):
        return settings
    return msgspec.structs.replace(
        settings, database=msgspec.structs.replace(settings.database, url=where)
    )


def _check(settings: Settings) -> None:
    with migrate.connection(settings) as connection:
        migrate.check(connection)


async def _inserted(
    connection: AsyncConnection, rows: Sequence[tuple[str, str, str, str]]
) -> list[int]:
    name, parameters = insert_rows(rows)
    return [row[0] for row in await connection.execute(statement(name), parameters)]


async def _rows(connection: AsyncConnection, name: str, **parameters: Any) -> list[Any]:
    return list(await connection.exec_driver_sql(query(name), parameters))


def _record(row: Sequence[Any]) -> _Record:
    outbox_id, topic, key, payload, biz_type, traceparent, resend_of, created_ms = row
    headers = {
        "id": outbox_id,
        "biz_type": biz_type,
        "traceparent": traceparent,
        "resend_of": resend_of,
    }
    encoded = [
        (name, None if value is None else str(value).encode()) for name, value in headers.items()
    ]
    return _Record(topic, outbox_id, key.encode(), payload.encode(), encoded, created_ms)


def _why(error: BaseException) -> str:
    code, reason = describe(error)
    return reason if code in reason else f"{reason} ({code})"
