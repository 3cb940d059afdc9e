"""One call of a handler: for so long, without a commit, judged by the transaction it leaves.

A run counts as done only when its own COMMIT was answered with COMMIT, so nothing that a handler
does may end the transaction, break it in silence, or outlive the call:

    INSERT fails, the handler         the transaction is aborted: the call has failed
    catches the error and returns
    await db.commit(), db.close(),    refused before anything is sent
    text("COMMIT"), ...
    a task that goes on               its connection is closed to it, and lost if it had more time
    a statement, COPY or pipeline     the call has failed, with its connection
    that is left open
    SET, a temporary table, a         put back or dropped: neither our statements nor later calls
    cursor, row_factory, ...          see it
    a CancelledError, SystemExit      the call has failed, as with any exception
    that is let out
    the transaction is another one    TransactionEnded: what was claimed is dead, and said loudly
    than before

The handler runs in a task of its own. What it cancels, swallows or leaves behind in its task stays
there: on Python 3.11 before 3.11.4 a TaskGroup leaves a cancellation request behind that would
spoil every timeout after it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import Any, NoReturn, cast

import psycopg
from psycopg import sql
from psycopg.adapt import AdaptersMap
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.events import Batch, Message
from streams.registry import Agent
from streams.worker.database.response_deadline import hang_up
from streams.worker.failure.classify import (
    HandlerMisuse,
    HandlerTimeout,
    LetOut,
    SwallowedError,
    TransactionEnded,
    Verdict,
    decisive,
    name_of,
    verdict_on,
)
from streams.worker.failure.frames import waiting_at
from streams.worker.failure.session_settings import (
    Change,
    Left,
    Session,
    change,
    is_block,
    left,
    named,
    unquoted,
)

GRACE = 5.0  # seconds that a handler gets to end once it was cancelled
MOMENT = 0.5  # seconds that what it left open gets to end
SLICE = 5.0  # seconds after which a loop that stood still is noticed
# Set for the transaction alone, with its first lock: the server says by itself when it has its old
# value again.
APPLICATION_NAME = b"application_name"

# Of a task that does not end when it is told to, a reference is kept until it does.
_abandoned: set[asyncio.Task[None]] = set()


@dataclass(slots=True)
class Sent:
    """The statements that one call of a handler has sent, without their parameters."""

    texts: set[str] = field(default_factory=set)
    last: str | None = None


class HandlerCaller:
    """Calls handlers within one transaction; `progressed` is called whenever one has ended."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: psycopg.AsyncConnection[Any],
        seconds: float,
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection, self._driver, self._seconds, self._progressed = (
            connection,
            driver,
            seconds,
            progressed,
        )
        self._session = Session(driver)
        self.spoiled = False
        self.sent = Sent()  # by the last call

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more."""
        return self._connection.invalidated or self._connection.closed or self._driver.closed

    async def remember(self) -> None:
        """Read the session's settings now, for `restore`.

        Without this they are read before the first text that changes them.
        """
        await self._session.remember()

    async def restore(self) -> None:
        """Set the session's settings back, for what is ours of the transaction."""
        self.spoiled |= await self._session.restore()

    async def call(self, agent: Agent, messages: Sequence[Message[Any]]) -> None:
        """Call the handler with these messages.

        Raises what it did wrong, whether it raised that itself or not.

        Afterwards `spoiled` says whether the connection is to be thrown away after the transaction.
        """
        driver, before = self._driver, self._driver.pgconn.parameter_status(APPLICATION_NAME)
        guard, settings = _Guard(agent.where, self._session), self._session.reported()
        self.sent = guard.sent
        raised: Exception | None = None
        try:
            with guard.over(driver), _lent(self._connection, agent.where) as connection:
                task = asyncio.ensure_future(_contained(agent, messages, connection))
                async with _ending(task):
                    patience = Patience(self._seconds)
                    while not task.done() and (part := patience.part()):
                        await asyncio.wait([task], timeout=part)
                _raise(task)
        except Exception as error:
            raised = error
        finally:
            self._progressed()
        try:
            told = settings != self._session.reported()
            self.spoiled |= told or guard.change is Change.SESSION
            await self._check(agent, guard, before, raised)
            if raised is not None:
                raise raised
        finally:
            del raised
        if guard.leaves:
            try:
                await self._session.clear(guard.leaves)
            except _STAYS as error:
                state = error.sqlstate
                raise HandlerMisuse(
                    f"{agent.where} left a temporary table that cannot be dropped ({state})"
                ) from None
        if told or guard.change:
            await self.restore()

    async def _check(
        self, agent: Agent, guard: _Guard, before: bytes | None, raised: Exception | None
    ) -> None:
        """Raise what the state of the transaction says of the call.

        Only where that is more than `raised` says.
        """
        driver = self._driver
        if isinstance(raised, _GoesOn):
            await self._hang_up()
        elif self._is_busy():
            await self._end_what_is_open()
            if raised is None or self.lost:
                raise HandlerMisuse(
                    f"{agent.where} ended while a statement, COPY or pipeline of it was open:"
                    " await and close all of them"
                ) from raised
        status = driver.pgconn.transaction_status
        if status == TransactionStatus.UNKNOWN or self.lost:
            if raised is None:
                raise HandlerMisuse(
                    f"{agent.where} lost or closed its connection and did not say so"
                )
        elif status == TransactionStatus.INERROR:
            cause = guard.broken_by
            if raised is None or isinstance(
                decisive(raised), psycopg.errors.InFailedSqlTransaction
            ):
                raise SwallowedError(agent.where) from cause
            # An outage is an outage, whatever the handler makes of it.
            if cause is not None and _is_worse(cause, raised):
                raise cause from raised
        elif status == TransactionStatus.IDLE or (
            # An aborted transaction has lost its settings too: it was asked for before.
            driver.pgconn.parameter_status(APPLICATION_NAME) != before
            and not await self._holds_its_lock()
        ):
            raise TransactionEnded(
                f"{agent.where} ended the transaction that it was given"
            ) from raised

    def _is_busy(self) -> bool:
        pgconn = self._driver.pgconn
        return pgconn.transaction_status == TransactionStatus.ACTIVE or bool(pgconn.pipeline_status)

    async def _end_what_is_open(self) -> None:
        """Let what was dropped or still runs come to its end.

        The connection is lost when it does not.
        """
        driver: Any = self._driver
        for _ in range(3):  # the event loop ends generators that nobody holds any more
            await asyncio.sleep(0)
        with suppress(TimeoutError, psycopg.Error):
            async with asyncio.timeout(MOMENT), driver.lock:
                pass
            while (pipeline := driver._pipeline) is not None and pipeline.level > 0:
                async with asyncio.timeout(MOMENT):
                    await pipeline.__aexit__(None, None, None)
        if not driver.pgconn.pipeline_status:
            driver._pipeline = None
        if self._is_busy():
            await self._hang_up()

    async def _hang_up(self) -> None:
        """Nobody but the one who left it there knows how to end it."""
        if not self._driver.closed:
            hang_up(self._driver)
            await asyncio.sleep(0)  # who waits for the server is told first
            await self._driver.close()
            # A generator that somebody keeps keeps the lock, and would keep everybody from learning
            # that it is closed.
            self._driver.lock = asyncio.Lock()

    async def _holds_its_lock(self) -> bool:
        """Whether it is still the transaction that has locked its partitions.

        It may be called by another name.
        """
        async with psycopg.AsyncCursor(self._driver) as cursor:
            await cursor.execute(_HELD)
            return bool(await cursor.fetchall())


class HandlerConnection(AsyncConnection):
    """What a handler gets: the run's connection, in its transaction, as long as the call."""

    __slots__ = ("_handler",)

    def __init__(self, connection: AsyncConnection, handler: str) -> None:
        below: Any = connection.sync_connection
        # One of its own on the same session: what a handler does to its state is gone with it.
        own = Connection(below.engine, below.connection).execution_options(
            **below.get_execution_options()
        )
        own.begin()
        super().__init__(connection.engine, own)
        self._handler = handler

    def begin(self) -> NoReturn:
        """Refused: the transaction is begun."""
        _refuse(
            self._handler,
            "db.begin()",
            "the transaction is begun already, use db.begin_nested() for a part of it",
        )

    async def commit(self) -> NoReturn:
        """Refused: the worker commits, once for the whole run."""
        _refuse(self._handler, "db.commit()")

    async def rollback(self) -> NoReturn:
        """Refused: raise an error instead, and the worker undoes what the call did."""
        _refuse(self._handler, "db.rollback()")

    async def close(self) -> NoReturn:
        """Refused: the connection is the worker's."""
        _refuse(self._handler, "db.close()", "the connection is the worker's")

    async def aclose(self) -> NoReturn:
        """Refused, as `close` is."""
        _refuse(self._handler, "db.aclose()", "the connection is the worker's")

    async def invalidate(self, exception: BaseException | None = None) -> NoReturn:
        """Refused, as `close` is."""
        _refuse(self._handler, "db.invalidate()", "the connection is the worker's")


class _Guard:
    """Watches the psycopg connection below for the time of a call.

    A handler may take to it whichever way it likes.
    """

    def __init__(self, handler: str, session: Session) -> None:
        self._handler, self._session = handler, session
        self.broken_by: psycopg.Error | None = None
        self.change = Change.NONE
        self.leaves: set[Left] = set()
        self.sent = Sent()

    @contextmanager
    def over(self, driver: psycopg.AsyncConnection[Any]) -> Iterator[None]:
        """Within this, nothing on this connection ends its transaction.

        What breaks it is remembered.
        """
        patched: Any = driver
        kept = {name: getattr(driver, name) for name in _KEPT}
        adapters = driver.adapters
        names = ("commit", "rollback", "close", "set_autocommit", "tpc_prepare")
        # Attributes of the one object: its class, and every other connection, stay as they are.
        for name in ("cursor_factory", "server_cursor_factory"):
            setattr(patched, name, partial(_guarded(kept[name]), guard=self))
        patched._adapters = AdaptersMap(adapters)
        for name in names:
            setattr(patched, name, partial(self._refused, driver, name, getattr(driver, name)))
        patched.wait = partial(self._wait, driver.wait)
        try:
            yield
        finally:
            patched._adapters = adapters
            for name, value in kept.items():
                setattr(patched, name, value)
            for name in (*names, "wait"):
                delattr(patched, name)

    async def check(self, query: Any, connection: Any) -> None:
        """Refuse a statement that would end the transaction.

        Before one that changes the session, note what the session was.
        """
        if not isinstance(query, str):
            query = (
                query.as_string(connection)
                if isinstance(query, sql.Composable)
                else str(query, "utf-8", "replace")
            )
        self.sent.texts.add(query)
        self.sent.last = query
        # Few texts come again and again; what is long may be of one message, and is not kept.
        kept = len(query) < 10_000
        if (word := (ending if kept else ending.__wrapped__)(query)) is not None:
            _refuse(self._handler, word)
        self.leaves |= (left if kept else left.__wrapped__)(query)
        if (kind := (change if kept else change.__wrapped__)(query)) is not Change.NONE:
            if (
                not connection.pgconn.pipeline_status
                and connection.info.transaction_status == TransactionStatus.INTRANS
            ):
                await self._session.remember((named if kept else named.__wrapped__)(query))
            self.change = max(self.change, kind)

    async def _wait(self, wait: Any, *arguments: Any, **options: Any) -> Any:
        """Wait as the connection does.

        All that it asks the server goes through here, COPY and pipelines too.
        """
        try:
            return await wait(*arguments, **options)
        except psycopg.Error as error:
            self.note(error)
            raise
        except (
            asyncio.CancelledError
        ):  # the statement is cancelled by it: what failed before is not what breaks it now
            self.broken_by = None
            raise

    def note(self, error: psycopg.Error) -> None:
        """Remember what may have aborted the transaction; that it is aborted is no news."""
        if not isinstance(error, psycopg.errors.InFailedSqlTransaction):
            self.broken_by = error

    async def _refused(
        self, driver: psycopg.AsyncConnection[Any], name: str, act: Any, *how: Any
    ) -> Any:
        if not driver.closed:
            _refuse(self._handler, f"{name}() of the driver's connection")
        # SQLAlchemy clears away a connection that was lost.
        return await act(*how)


class _GuardedCursor:
    """Before the cursor class of a connection: each statement is looked at before it is sent."""

    def __init__(self, *arguments: Any, guard: _Guard, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._guard = guard

    async def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's."""
        await self._guard.check(query, cast("Any", self).connection)
        return await super().execute(query, *arguments, **options)  # type: ignore[misc]

    async def executemany(self, query: Any, *arguments: Any, **options: Any) -> None:
        """As psycopg's."""
        await self._guard.check(query, cast("Any", self).connection)
        await super().executemany(query, *arguments, **options)  # type: ignore[misc]

    async def stream(self, query: Any, *arguments: Any, **options: Any) -> Any:
        """As psycopg's."""
        await self._guard.check(query, cast("Any", self).connection)
        async for row in super().stream(query, *arguments, **options):  # type: ignore[misc]
            yield row


@cache
def _guarded(kind: Any) -> Any:
    return type("GuardedCursor", (_GuardedCursor, kind), {})


@contextmanager
def _lent(connection: AsyncConnection, handler: str) -> Iterator[AsyncConnection]:
    """The connection for a handler; what the handler has left behind finds it closed afterwards."""
    lent = HandlerConnection(connection, handler)
    try:
        yield lent
    finally:
        # A session that was made of it holds the one below, and would go on with the next
        # transaction.
        own: Any = lent.sync_connection
        own._dbapi_connection = own._transaction = own._nested_transaction = None
        own._Connection__can_reconnect = False
        lent.sync_connection = None


@asynccontextmanager
async def _ending(task: asyncio.Task[None]) -> AsyncIterator[None]:
    """Within this the handler's task is waited for; HandlerTimeout when it has not ended."""
    try:
        yield
        if not task.done():
            frames = waiting_at(
                cast("Coroutine[Any, Any, None]", task.get_coro())
            )  # before it is told to end
            raise HandlerTimeout(frames) if await _end(task) else _GoesOn(frames)
    except asyncio.CancelledError:  # this task's own: whatever the handler let out is in its task
        await _end(task)
        raise


class Patience:
    """How long a call may still take: time in which the event loop stood still is nobody's.

    A handler of another topic may have blocked it, and the answer lies there unread.
    """

    def __init__(self, seconds: float) -> None:
        self._clock = asyncio.get_running_loop().time
        self._left, self._part, self._since = seconds, 0.0, self._clock()

    def part(self) -> float:
        """For how many seconds to wait next; what the last part took longer does not count."""
        now = self._clock()
        self._left -= min(now - self._since, self._part)
        self._since, self._part = now, max(0.0, min(self._left, SLICE))
        return self._part


def _raise(task: asyncio.Task[None]) -> None:
    """Raise what the handler raised.

    This is no generator, which would make something else of a StopAsyncIteration.
    """
    if task.cancelled():
        raise LetOut("CancelledError")
    if (error := task.exception()) is not None:
        raise error


class _GoesOn(HandlerTimeout):
    """It does not end when it is told to."""


async def _contained(
    agent: Agent, messages: Sequence[Message[Any]], connection: AsyncConnection
) -> None:
    try:
        await agent.handler(Batch(messages), connection)
    except (Exception, asyncio.CancelledError):
        raise
    # One ends the event loop, another one the lane: a SystemExit, a panic of an extension in Rust,
    # a timeout of some library's.
    except BaseException as error:
        raise LetOut(name_of(error)) from error


async def _end(task: asyncio.Task[None]) -> bool:
    """Cancel it; whether it ended: one that goes on all the same loses its connection."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait([task], timeout=GRACE)
    if not task.done():
        _abandoned.add(task)
        task.add_done_callback(_abandoned.discard)
    return task.done()


def _is_worse(cause: Exception, raised: Exception) -> bool:
    """Whether what broke the transaction is more than what was raised says.

    It is when it is more than a message's fault, and what was raised does not say so.
    """
    return (
        verdict_on(cause, connection_lost=False)
        is not Verdict.ISOLATE
        is verdict_on(raised, connection_lost=False)
    )


def _refuse(handler: str, way: str, why: str = "") -> NoReturn:
    why = why or "the worker commits a run as a whole, raise an error to undo what the call did"
    raise HandlerMisuse(f"{handler} called {way}, which a handler may not: {why}")


_WORDS = re.compile(
    r"\b(?:commit|rollback|abort|end|prepare\s+transaction|set\s+transaction|transaction_read_only|outbox_piece|outbox_check)\b",
    re.IGNORECASE,
)
_ENDING = re.compile(
    r"\s*(commit|abort|end|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b)|set\s+transaction)\b"
    r"|.*\b(transaction_read_only|outbox_piece|outbox_check)\b",
    re.IGNORECASE | re.DOTALL,
)
_READ_ONLY = re.compile(r"\btransaction_read_only\b", re.IGNORECASE)
_HELD = (
    "SELECT FROM pg_catalog.pg_locks WHERE pid = pg_catalog.pg_backend_pid()"
    " AND locktype = 'advisory' LIMIT 1"
)
# Why a temporary table cannot be dropped: triggers of it are still to come, or a view needs it.
_STAYS = (psycopg.errors.ObjectInUse, psycopg.errors.DependentObjectsStillExist)
# What a handler may set of psycopg's connection, put back after its call.
_KEPT = (
    "cursor_factory",
    "server_cursor_factory",
    "row_factory",
    "prepare_threshold",
    "prepared_max",
)


@lru_cache(maxsize=256)
def ending(statement: str) -> str | None:
    """The words by which this text ends the transaction or spoils it, if it does.

    `ROLLBACK TO` a savepoint does not.
    """
    if _WORDS.search(statement) is None:
        return None
    plain = unquoted(statement)
    for part in plain.split(";"):
        if (match := _ENDING.match(part)) is not None:
            return " ".join((match[1] or match[2]).upper().split())
    if is_block(plain) and (inside := _READ_ONLY.search(statement)) is not None:
        return inside[0].upper()
    return None
