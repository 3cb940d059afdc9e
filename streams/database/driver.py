"""psycopg's connections and cursors, as every session of ours has them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.abc import Params, Query
from psycopg.pq import PipelineStatus, TransactionStatus


class Connection(psycopg.AsyncConnection[Any]):
    """One whose open transaction the server ends when its client falls silent, whatever it asked.

    A pipeline ends with a Sync, behind which psycopg may send a Flush: it stops the clock of
    idle_in_transaction_session_timeout, and only the next statement starts it again. A client that
    stopped or lost its network in between kept its locks for ever. `executemany` is a pipeline too.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.cursor_factory = Cursor

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """As psycopg's; the clock runs behind it."""
        async with super().pipeline() as pipeline:
            yield pipeline
        await self.start_clock()

    async def start_clock(self) -> None:
        """Let the server count from now, if a transaction is open: an empty statement does."""
        if (
            self.pgconn.pipeline_status == PipelineStatus.OFF
            and self.info.transaction_status == TransactionStatus.INTRANS
        ):
            await psycopg.AsyncCursor(self).execute("")


class Cursor(psycopg.AsyncCursor[Any]):
    """A cursor of such a connection."""

    async def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        """As psycopg's; the clock runs behind it."""
        await super().executemany(query, params_seq, returning=returning)
        if isinstance(self.connection, Connection):
            await self.connection.start_clock()


class BlockingCursor(psycopg.Cursor[Any]):
    """A cursor of a connection that blocks; none of ours has a pipeline of its own."""

    def executemany(
        self, query: Query, params_seq: Iterable[Params], *, returning: bool = False
    ) -> None:
        """As psycopg's; the clock runs behind it."""
        super().executemany(query, params_seq, returning=returning)
        if self.connection.info.transaction_status == TransactionStatus.INTRANS:
            psycopg.Cursor(self.connection).execute("")
