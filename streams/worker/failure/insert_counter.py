"""How far a call of a handler got before it failed, by the rows that the server counted.

Nobody promises that a handler writes one row a message, in order, so this is where to look first,
and no proof.
"""

from __future__ import annotations

from typing import Any

from streams.database import query
from streams.worker.database.response_deadline import response_deadline
from streams.worker.failure.savepoint import Savepoint


class InsertCounter:
    """Counts the rows that one transaction's calls insert into one table."""

    def __init__(self, savepoint: Savepoint, table: str) -> None:
        self._savepoint, self._table = savepoint, {"table": table}
        self._expected: int | None = (
            None  # what the server has counted, if each message was one row so far
        )

    async def begin(self) -> None:
        """Before the first call; what earlier transactions inserted may still be in the count."""
        if self._expected is None:
            with response_deadline(self._savepoint.driver, self._savepoint.seconds):
                async with self._savepoint.driver.cursor() as cursor:
                    await cursor.execute(query("rows_inserted"), self._table)
                    self._expected = _count(await cursor.fetchall())

    def applied(self, messages: int) -> None:
        """A call succeeded."""
        if self._expected is not None:
            self._expected += messages

    async def undo(self) -> int | None:
        """Undo a call that failed; how many rows it had inserted, None when that cannot be told."""
        count, expected = (
            _count(await self._savepoint.undo_and_ask(query("rows_inserted"), self._table)),
            self._expected,
        )
        self._expected = count
        return count - expected if count is not None and expected is not None else None


def _count(rows: list[tuple[Any, ...]]) -> int | None:
    [(count,)] = rows
    return count if count is None else int(count)
