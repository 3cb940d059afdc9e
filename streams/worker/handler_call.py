"""One call of a handler: for so long, on a connection that it cannot commit, judged by the transaction it leaves.

A run counts as done only when its own COMMIT was answered with COMMIT, so nothing that a handler does may end the
transaction, break it in silence, or outlive the call:

    INSERT fails, the handler catches the error and returns     the transaction is aborted: the call has failed
    await db.commit(), text("COMMIT"), db.close(), ...          refused before anything is sent
    a statement that is still running, a task that goes on      the call has failed, its connection is taken back
    a CancelledError, SystemExit that is let out                the call has failed, as with any exception
    the transaction is another one than before                  TransactionEnded: what was claimed is dead, and said loudly

The handler runs in a task of its own.  What it cancels, swallows or leaves behind in its task stays there: on Python 3.11
before 3.11.4 a TaskGroup leaves a cancellation request behind that would spoil every timeout after it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, NoReturn, cast

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection

from streams.events import Batch, Message
from streams.registry import Agent
from streams.worker.fate import (
    HandlerMisuse,
    HandlerTimeout,
    LetOut,
    SwallowedError,
    TransactionEnded,
    Verdict,
    decisive,
    judge,
)

GRACE = 5.0  # seconds that a handler gets to end once it was cancelled
# Set for the transaction alone, with its first lock: the server says by itself when it has its old value again.
APPLICATION_NAME = b"application_name"

# Of a task that does not end when it is told to, a reference is kept until it does.
_abandoned: set[asyncio.Task[None]] = set()


class HandlerCaller:
    """Calls handlers within one transaction; `progressed` is called whenever one has ended."""

    def __init__(
        self,
        connection: AsyncConnection,
        driver: psycopg.AsyncConnection[Any],
        seconds: float,
        progressed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connection, self._driver, self._seconds, self._progressed = connection, driver, seconds, progressed

    @property
    def lost(self) -> bool:
        """Whether the connection is of no use any more."""
        return self._connection.invalidated or self._connection.closed or self._driver.closed

    async def call(self, agent: Agent, messages: Sequence[Message[Any]]) -> None:
        """Call the handler with these messages; raises what it did wrong, whether it raised that itself or not."""
        driver, before = self._driver, self._driver.pgconn.parameter_status(APPLICATION_NAME)
        guard = _Guard(agent.where)
        try:
            with guard.over(driver), _lent(self._connection, agent.where) as connection:
                await _in_time(agent.handler(Batch(messages), connection), self._seconds)
        except Exception as error:
            self._check(agent, guard, before, error)
            raise
        finally:
            self._progressed()
        self._check(agent, guard, before, None)

    def _check(self, agent: Agent, guard: _Guard, before: bytes | None, raised: Exception | None) -> None:
        """Raise what the state of the transaction says of the call, where that is more than `raised` says."""
        driver = self._driver
        status = driver.pgconn.transaction_status
        if status == TransactionStatus.UNKNOWN or self.lost:
            if raised is None:
                raise HandlerMisuse(f"{agent.where} lost or closed its connection and did not say so")
        elif status == TransactionStatus.INERROR:
            cause = guard.broken_by
            if raised is None or isinstance(decisive(raised), psycopg.errors.InFailedSqlTransaction):
                raise SwallowedError(agent.where) from cause
            # An outage is an outage, whatever the handler makes of it.
            if cause is not None and _is_worse(cause, raised):
                raise cause from raised
        elif driver.pgconn.parameter_status(APPLICATION_NAME) != before or status == TransactionStatus.IDLE:
            # An aborted transaction has lost its settings too: it was asked for before.
            raise TransactionEnded(f"{agent.where} ended the transaction that it was given") from raised
        elif status == TransactionStatus.ACTIVE and raised is None:
            raise HandlerMisuse(f"{agent.where} returned while one of its statements was running: await all of them")


class HandlerConnection(AsyncConnection):
    """What a handler gets: the run's connection, in the run's transaction, for as long as the call."""

    __slots__ = ("_handler",)

    def __init__(self, connection: AsyncConnection, handler: str) -> None:
        below: Any = connection.sync_connection
        # One of its own on the same session: what a handler does to its state is gone with it.
        own = Connection(below.engine, below.connection).execution_options(**below.get_execution_options())
        own.begin()
        super().__init__(connection.engine, own)
        self._handler = handler

    def begin(self) -> NoReturn:
        """Refused: the transaction is begun."""
        _refuse(self._handler, "db.begin()", "the transaction is begun already, use db.begin_nested() for a part of it")

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
    """Watches the psycopg connection below, whichever way a handler takes to it, for the time of a call."""

    def __init__(self, handler: str) -> None:
        self._handler = handler
        self.broken_by: psycopg.Error | None = None

    @contextmanager
    def over(self, driver: psycopg.AsyncConnection[Any]) -> Iterator[None]:
        """Within this, nothing on this connection ends its transaction, and what breaks it is remembered."""
        patched: Any = driver
        kind: Any = driver.cursor_factory
        names = ("commit", "rollback", "close", "set_autocommit", "tpc_prepare")
        # Attributes of the one object: its class, and every other connection, stay as they are.
        patched.cursor_factory = partial(_guarded(kind), guard=self)
        for name in names:
            setattr(patched, name, partial(self._refused, driver, name, getattr(driver, name)))
        try:
            yield
        finally:
            patched.cursor_factory = kind
            for name in names:
                delattr(patched, name)

    def check(self, query: Any, connection: Any) -> None:
        """Refuse a statement that would end the transaction."""
        if not isinstance(query, str):
            query = query.as_string(connection) if isinstance(query, sql.Composable) else str(query, "utf-8", "replace")
        if (word := ending(query)) is not None:
            _refuse(self._handler, word)

    def note(self, error: psycopg.Error) -> None:
        """Remember what may have aborted the transaction; that it is aborted is no news."""
        if not isinstance(error, psycopg.errors.InFailedSqlTransaction):
            self.broken_by = error

    async def _refused(self, driver: psycopg.AsyncConnection[Any], name: str, act: Any, *how: Any) -> Any:
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
        with self._looked_at(query):
            return await super().execute(query, *arguments, **options)  # type: ignore[misc]

    async def executemany(self, query: Any, *arguments: Any, **options: Any) -> None:
        """As psycopg's."""
        with self._looked_at(query):
            await super().executemany(query, *arguments, **options)  # type: ignore[misc]

    @contextmanager
    def _looked_at(self, query: Any) -> Iterator[None]:
        self._guard.check(query, cast("Any", self).connection)
        try:
            yield
        except psycopg.Error as error:
            self._guard.note(error)
            raise


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
        lent.sync_connection = None


async def _in_time(handler: Any, seconds: float) -> None:
    """Await the handler in a task of its own; HandlerTimeout when it takes longer than these seconds."""
    task = asyncio.ensure_future(_contained(handler))
    try:
        await asyncio.wait([task], timeout=seconds)
        if not task.done():
            await _end(task)
            raise HandlerTimeout
    except asyncio.CancelledError:  # this task's own: whatever the handler let out is in its task
        await _end(task)
        raise
    if task.cancelled():
        raise LetOut("CancelledError")
    if (error := task.exception()) is not None:
        raise error


async def _contained(handler: Any) -> None:
    try:
        await handler
    except Exception:
        raise
    except (SystemExit, GeneratorExit, BaseExceptionGroup) as error:  # one ends the event loop, another one the lane
        raise LetOut(type(error).__name__) from error


async def _end(task: asyncio.Task[None]) -> None:
    """Cancel it; one that goes on all the same has lost its connection."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait([task], timeout=GRACE)
    if not task.done():
        _abandoned.add(task)
        task.add_done_callback(_abandoned.discard)


def _is_worse(cause: Exception, raised: Exception) -> bool:
    """Whether what broke the transaction is more than a message's fault, and what was raised does not say so."""
    return judge(cause, connection_lost=False) is not Verdict.ISOLATE is judge(raised, connection_lost=False)


def _refuse(handler: str, way: str, why: str = "") -> NoReturn:
    why = why or "the worker commits a run as a whole, raise an error to undo what the call did"
    raise HandlerMisuse(f"{handler} called {way}, which a handler may not: {why}")


_WORDS = re.compile(r"\b(?:commit|rollback|abort|end|prepare\s+transaction)\b", re.IGNORECASE)
_ENDING = re.compile(
    r"\s*(commit|abort|end|prepare\s+transaction|rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b", re.IGNORECASE
)
# What a semicolon or a word in it means nothing in: strings, quoted names, comments.
_QUOTED = re.compile(
    r"""\b[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)


def ending(statement: str) -> str | None:
    """The words by which this text ends the transaction, if it does: `ROLLBACK TO` a savepoint does not."""
    if _WORDS.search(statement) is None:
        return None
    for part in _QUOTED.sub(" ", statement).split(";"):
        if (match := _ENDING.match(part)) is not None:
            return " ".join(match[1].upper().split())
    return None
