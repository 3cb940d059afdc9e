"""One statement's rows in portions as the server sends them: no cursor, no round trips.

psycopg's own `stream` makes a Python object of every value; a relay wants the bytes.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import psycopg
from psycopg import capabilities, generators, pq


async def portions(
    connection: psycopg.AsyncConnection[Any], statement: str, portion: int
) -> AsyncGenerator[pq.abc.PGresult]:
    """What one statement sees, at most `portion` rows in each result.

    Who leaves early has it cancelled.

    psycopg.Error when it fails.
    """
    pgconn = connection.pgconn
    async with connection.lock:
        pgconn.send_query(statement.encode())
        if capabilities.has_stream_chunked():
            pgconn.set_chunked_rows_mode(portion)
        else:
            pgconn.set_single_row_mode()
        try:
            await connection.wait(generators.send(pgconn))
            while (result := await connection.wait(generators.fetch(pgconn))) is not None:
                if result.status == pq.ExecStatus.FATAL_ERROR:
                    raise psycopg.errors.error_from_result(result)
                yield result
        finally:
            if pgconn.transaction_status == pq.TransactionStatus.ACTIVE:
                await _give_up(connection)


async def _give_up(connection: psycopg.AsyncConnection[Any]) -> None:
    """Cancel what runs, and let go of what it has sent."""
    with contextlib.suppress(psycopg.Error):
        await connection.cancel_safe()
        while await connection.wait(generators.fetch(connection.pgconn)) is not None:
            pass
