"""The pages' own connections: two, read-only, two seconds a statement; none while nobody looks.

They work in threads of their own, so that neither a slow statement nor the making of a page keeps
a worker's event loop; and there are two, so that pages can take nothing from a run.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from streams.database import sync_engine
from streams.database.engine import KEEPALIVES
from streams.database.refusals import PASSING, sqlstate, words
from streams.database.sessions import Settings as Session
from streams.errors import ServiceUnreachable

T = TypeVar("T")

SILENT = "PostgreSQL does not answer: "
IDLE_SECONDS = 60.0
# Seconds beyond a statement's own limit after which a server that says nothing is a lost one
GRACE = 1.5
READ: Session = {
    "statement_timeout": "2000",
    "default_transaction_read_only": "on",
    # Two connections are two of the server's processors, whatever it would spend on a statement.
    "max_parallel_workers_per_gather": "0",
}
MISSING = ("42P01", "42703", "42883")  # a table, a column, a function
ACT: Session = {
    "statement_timeout": "30000",
    "lock_timeout": "5000",
    "idle_in_transaction_session_timeout": "40000",
}


class DatabaseRefuses(ServiceUnreachable):
    """The database answers, and says no: a right or a table is missing, or it takes no writes."""


class Pool:
    """Connections to one database for `purpose`.

    They are opened at the first use and closed after a minute without one.
    """

    def __init__(self, url: Callable[[], str], purpose: str, session: Session, size: int) -> None:
        self._url, self._purpose, self._session, self._size = url, purpose, session, size
        self._patience = int(session["statement_timeout"]) / 1000 + GRACE
        self._threads: ThreadPoolExecutor | None = None
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._idle: asyncio.TimerHandle | None = None
        self._working = 0
        self._spent = 0.0
        self._retired: list[Engine] = []

    def run(self, work: Callable[[Connection], T]) -> asyncio.Future[T]:
        """Do this with a connection, in no transaction, in a thread.

        The future's error is ServiceUnreachable when there is none, or it goes away or takes too
        long, DatabaseRefuses when it says no; else the work's own.
        """
        loop = asyncio.get_running_loop()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(
                self._size, thread_name_prefix=f"pages-{self._purpose}"
            )
        if self._idle is not None:
            self._idle.cancel()
        self._idle = loop.call_later(IDLE_SECONDS, self.rest)
        deadline = _Deadline()
        future = loop.run_in_executor(self._threads, self._work, work, deadline)
        timer = loop.call_later(self._patience, deadline.pass_)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def spent(self) -> float:
        """How much processor time the work has taken, in seconds."""
        return self._spent

    @property
    def is_open(self) -> bool:
        """Whether there may be connections."""
        return self._engine is not None

    def close(self) -> None:
        """Close all connections; work that is under way ends first, and nobody waits for it."""
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None
        self.rest()

    def rest(self) -> None:
        """Close the connections, as soon as nobody works with one."""
        with self._lock:
            if self._engine is not None:
                self._retired.append(self._engine)
                self._engine = None
            self._dispose()

    def _dispose(self) -> None:
        if not self._working:
            while self._retired:
                self._retired.pop().dispose()

    def _work(self, work: Callable[[Connection], T], deadline: _Deadline) -> T:
        began = time.thread_time()
        with self._lock:
            self._working += 1
        try:
            with self._connected() as connection, deadline.of(connection):
                return work(connection)
        finally:
            with self._lock:
                self._spent += time.thread_time() - began
                self._working -= 1
                self._dispose()

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._opened().connect() as connection:
                yield connection
        except PoolTimeout:
            raise ServiceUnreachable("all connections of the pages are busy") from None
        except DBAPIError as error:
            raise _told(error) from error
        except SQLAlchemyError as error:
            raise DatabaseRefuses(
                f"the pages' database cannot be used: {type(error).__name__}"
            ) from error

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = sync_engine(
                    self._url(),
                    session=self._session,
                    pool_size=self._size,
                    max_overflow=0,
                    pool_timeout=2,
                    pool_pre_ping=False,
                    connect_args={
                        **KEEPALIVES,
                        "connect_timeout": 2,
                        "application_name": f"outbox-streams {self._purpose}",
                    },
                )
            return self._engine


class _Deadline:
    """Ends a connection that has been silent for too long, as after a firewall has forgotten it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._passed = False

    @contextmanager
    def of(self, connection: Connection) -> Iterator[None]:
        """The connection that the deadline is for, within the block."""
        driver: Any = connection.connection.driver_connection
        with socket.socket(fileno=os.dup(driver.fileno())) as ours:
            with self._lock:
                if self._passed:
                    raise ServiceUnreachable("all connections of the pages are busy")
                self._socket = ours
            try:
                yield
            finally:
                with self._lock:
                    self._socket = None

    def pass_(self) -> None:
        """From now on whoever waits for the server is told that it is lost."""
        with self._lock:
            self._passed = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)


def _told(error: DBAPIError) -> Exception:
    """One line for a person: what the server says, without parameters or message text."""
    state, reason = sqlstate(error), words(error)
    if state == "57014":
        return ServiceUnreachable("PostgreSQL takes too long to answer the pages")
    if state == "25006":
        return DatabaseRefuses("the database takes no writes now")
    if state == "42501":
        reason += "; web.database_url and web.acts_url may name a role that may"
    elif state in MISSING:
        reason += "; `streams migrate` makes what pages of this version read"
    if state and not state.startswith(PASSING):
        return DatabaseRefuses(f"PostgreSQL refuses: {reason}")
    return ServiceUnreachable(f"{SILENT}{reason}")
