"""Run an async handler on a plain Connection: the twin of `record` for synchronous business code.

A handler that awaits nothing but its connection never suspends on a synchronous driver, so its
coroutine runs to the end in one step, without an event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from streams.errors import UsageError


def run_sync(connection: Connection, work: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Run `work` on `connection`, in the caller's transaction.

    UsageError when it awaits something else.
    """
    coroutine = cast("Any", work(_Borrowed(connection)))
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise UsageError(
        "a handler awaits more than its connection: call outbox.record from async code instead"
    )


class _Borrowed(AsyncConnection):
    """An AsyncConnection whose statements run on the caller's Connection, without a greenlet."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(cast("AsyncEngine", _Engine(connection)), connection)
        self._plain = connection

    async def execute(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain.execute(*args, **kwargs)

    async def exec_driver_sql(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain.exec_driver_sql(*args, **kwargs)

    async def scalar(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain.scalar(*args, **kwargs)

    async def scalars(self, *args: Any, **kwargs: Any) -> Any:
        return self._plain.scalars(*args, **kwargs)

    async def run_sync(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return fn(self._plain, *args, **kwargs)


class _Engine:
    """The two names AsyncConnection reads of its engine."""

    def __init__(self, connection: Connection) -> None:
        self.sync_engine = connection.engine
        self.dialect = connection.dialect
