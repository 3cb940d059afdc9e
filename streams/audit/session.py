"""The audit's connection: named and composed statements, short snapshots, its own tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import psycopg
from psycopg import IsolationLevel, sql
from sqlalchemy import Connection

from streams.database import query


class Session:
    """A psycopg connection in autocommit mode; what it makes is gone with it."""

    def __init__(self, connection: Connection) -> None:
        connection.rollback()
        self._driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
        self._driver.autocommit = True
        # A prepared statement's generic plan does not know which of its parameters are null.
        self._driver.prepare_threshold = None
        # Ranges are sorted and joined in memory; compiling a statement costs more than running it
        # on one.
        self._driver.execute("SET work_mem = '64MB'; SET temp_buffers = '64MB'; SET jit = off")

    def rows(self, statement: str | sql.Composed, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query, or of a composed one."""
        with self._driver.cursor() as cursor:
            cursor.execute(
                query(statement) if isinstance(statement, str) else statement, parameters
            )
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Retention empties no range within this; the one that it is at is waited for."""
        self.rows("emptying_wait")
        try:
            yield
        finally:
            if not self._driver.closed:
                self.rows("emptying_go_on")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One moment of the database, to read only."""
        self._driver.isolation_level, self._driver.read_only = IsolationLevel.REPEATABLE_READ, True
        try:
            with self._driver.transaction():
                yield
        finally:
            self._driver.isolation_level = self._driver.read_only = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; inside a snapshot, a part that may fail without ending it."""
        with self._driver.transaction():
            yield
