"""The audit's connection: named and composed statements, short snapshots, its own tables."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any, cast

import psycopg
from psycopg import IsolationLevel, sql
from sqlalchemy import Connection

from streams.database import locks, query
from streams.errors import ServiceUnreachable

# Seconds between two tries to be the only audit: no statement waits, whose snapshot would be old.
AGAIN = 0.5
LONGEST_WAIT = 3600.0


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
        # PostgreSQL cuts it at 63 bytes: what may be long comes last.
        name = f"outbox-streams audit {os.getpid()}@{socket.gethostname()}"
        self._driver.execute("SELECT set_config('application_name', %s, false)", [name])

    @property
    def lost(self) -> bool:
        """Whether the connection is gone."""
        return self._driver.closed

    def rows(self, statement: str | sql.Composed, **parameters: Any) -> list[tuple[Any, ...]]:
        """The rows of a named query, or of a composed one."""
        with self._driver.cursor() as cursor:
            cursor.execute(
                query(statement) if isinstance(statement, str) else statement, parameters
            )
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def alone(self, waits: Callable[[str], None]) -> Iterator[None]:
        """Nobody else audits within this; `waits` is told once who has to end first.

        The lock is the session's, and ends with it. ServiceUnreachable when somebody waits already,
        who will see the same, or when the other does not end in an hour.
        """
        if not self.rows("lock_alone", lock=locks.AUDIT)[0][0]:
            holder = f"another audit is under way{self._holder()}"
            if not self.rows("lock_alone", lock=locks.NEXT_AUDIT)[0][0]:
                raise ServiceUnreachable(f"{holder}, and the next one waits for its end already")
            waits(f"{holder}: waiting for its end")
            try:
                deadline = monotonic() + LONGEST_WAIT
                while not self.rows("lock_alone", lock=locks.AUDIT)[0][0]:
                    if monotonic() > deadline:
                        raise ServiceUnreachable(
                            f"another audit{self._holder()} does not end: see whether it is stopped"
                        )
                    sleep(AGAIN)
            finally:
                if not self.lost:
                    self.rows("lock_give", lock=locks.NEXT_AUDIT)
        try:
            yield
        finally:
            if not self.lost:
                self.rows("lock_give", lock=locks.AUDIT)

    def _holder(self) -> str:
        holders = self.rows("lock_holder", lock=locks.AUDIT)
        return f" ({holders[0][1]})" if holders else ""

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Retention empties no range within this; the one that it is at is waited for."""
        self.rows("emptying_wait")
        try:
            yield
        finally:
            if not self.lost:
                self.rows("emptying_go_on")

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """One moment of the database, to read only."""
        self._driver.isolation_level, self._driver.read_only = IsolationLevel.REPEATABLE_READ, True
        try:
            with self._driver.transaction():
                yield
        finally:
            if not self.lost:  # why it is, is what the caller has to hear
                self._driver.isolation_level = self._driver.read_only = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; inside a snapshot, a part that may fail without ending it."""
        with self._driver.transaction():
            yield
