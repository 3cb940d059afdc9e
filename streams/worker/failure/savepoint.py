"""One savepoint after another on a transaction's connection, each in one round trip."""

from __future__ import annotations

from typing import Any, LiteralString

import psycopg

from streams.worker.database.response_deadline import response_deadline

SET: LiteralString = "SAVEPOINT outbox_piece"
RELEASE: LiteralString = "RELEASE SAVEPOINT outbox_piece"
UNDO: LiteralString = "ROLLBACK TO SAVEPOINT outbox_piece"
# Undone again, so that a handler's next statement finds the constraints as deferred as before.
CHECK: LiteralString = (
    "SAVEPOINT outbox_check; SET CONSTRAINTS ALL IMMEDIATE;"
    " ROLLBACK TO SAVEPOINT outbox_check; RELEASE SAVEPOINT outbox_check"
)


class Savepoint:
    """A savepoint, set straight at the driver.

    What a handler does through SQLAlchemy runs behind it, and does not know it.
    """

    def __init__(self, driver: psycopg.AsyncConnection[Any], seconds: float) -> None:
        self.driver, self.seconds = driver, seconds
        self._is_set = self._is_clean = False

    async def set(self) -> None:
        """Set the savepoint: what is done from here on can be undone.

        What was done before cannot be undone by itself any more.
        """
        if not self._is_clean:
            await self._execute(f"{RELEASE}; {SET}" if self._is_set else SET)
        self._is_set, self._is_clean = True, False

    def left(self) -> None:
        """Others have written since, or may have: what they did is not undone with what comes."""
        self._is_clean = False

    async def undo(self) -> None:
        """Undo what was done since `set`."""
        await self._execute(UNDO)
        self._is_clean = True

    async def check_constraints(self) -> None:
        """Raise now what a deferred constraint would raise at the commit.

        Then nobody knows any more whose it is.
        """
        await self._execute(CHECK)

    async def undo_and_ask(
        self, statement: LiteralString, parameters: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        """Undo what was done since `set`, and the rows of this statement, in one round trip."""
        with response_deadline(self.driver, self.seconds):
            async with self.driver.cursor() as undo, self.driver.cursor() as ask:
                async with self.driver.pipeline():
                    await undo.execute(UNDO)
                    await ask.execute(statement, parameters)
                rows = await ask.fetchall()
        self._is_clean = True
        return rows

    async def _execute(self, statement: LiteralString) -> None:
        with response_deadline(self.driver, self.seconds):
            async with self.driver.cursor() as cursor:
                await cursor.execute(statement, prepare=False)
