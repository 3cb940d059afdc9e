"""Steps of a migration that wait for locks: shortly, again and again, saying whom they wait for.

Who asks for a strong lock stands in a queue, and everybody who comes later stands behind him, also
those whom the present holder would let through. So a step that a reader of an hour holds up (a
dump) must not stand there for an hour: it waits briefly, lets everybody go on, and comes back when
those whom it waited for have ended.

    attempt        waits for the lock, 0.5 to 2 seconds; whoever comes meanwhile waits behind it
    pause          0.5 seconds at least, then until those have ended, 10 seconds at most

A step runs in a thread of its own, so that a second connection can ask meanwhile whom it waits for:
when the wait is over, nobody knows any more.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar, cast

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from streams.database.queries import query
from streams.database.refusals import IN_THE_WAY, sqlstate
from streams.errors import ServiceUnreachable, StreamsError

Result = TypeVar("Result")

PATIENCE_SECONDS, LONGEST_SECONDS = 0.5, 2.0
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 10.0
SAID_AGAIN_SECONDS = 30.0
LIMIT_SECONDS = 86_400.0  # the server's has one too
_LOOK_SECONDS = 0.1


class Blocker(NamedTuple):
    """Whom a session waits for.

    `pid` is 0 for a prepared transaction; `since` is when its transaction began, where that may be
    seen; `transaction` is its virtual id.
    """

    pid: int
    name: str | None
    since: datetime | None
    transaction: str | None

    def __str__(self) -> str:
        if not self.pid:
            return "a prepared transaction, see pg_prepared_xacts"
        since = f", since {self.since.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"pid {self.pid} ({self.name or 'without a name'}{since})"


class LockWaits:
    """Runs steps on a connection that is in no transaction; each commits its own.

    `another` opens a second connection to the same database. All steps together wait so many
    seconds for locks, then it is ServiceUnreachable; what they work is not counted.
    """

    def __init__(
        self, database: Connection, another: Callable[[], Connection], *, seconds: float
    ) -> None:
        self._database, self._another, self._seconds = database, another, seconds
        self._left = seconds
        self._pid = database.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        database.commit()
        self._observer: Connection | None = None
        self._said = -SAID_AGAIN_SECONDS
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="migrate")

    def __enter__(self) -> LockWaits:
        return self

    def __exit__(self, *exception: object) -> None:
        self._thread.shutdown()
        if self._observer is not None:
            self._observer.close()

    def run(
        self, name: str, step: Callable[[], Result], *, in_the_way: bool = True
    ) -> Generator[str, None, Result]:
        """What the step returns, once it was committed; a line now and then while it waits.

        A step that is in nobody's way while it waits needs no second attempt. `name` says in those
        lines what waits.
        """
        patience = PATIENCE_SECONDS
        self._said = time.monotonic() - SAID_AGAIN_SECONDS + (0.0 if in_the_way else 1.0)
        blockers: list[Blocker] = []
        while True:
            limit = patience if in_the_way else max(self._left, PATIENCE_SECONDS)
            limit, began = min(LIMIT_SECONDS, limit), time.monotonic()
            attempt = self._thread.submit(self._attempt, step, limit)
            try:
                while not wait([attempt], _LOOK_SECONDS).done:
                    if seen := self._blockers():
                        blockers = seen
                        if not in_the_way:
                            yield from self._say(name, blockers)
            finally:
                self._end(attempt)
            try:
                return attempt.result()
            except DBAPIError as error:
                if sqlstate(error) not in IN_THE_WAY:
                    raise
            self._left -= min(limit, time.monotonic() - began)
            if self._left <= 0:
                raise ServiceUnreachable(
                    f"{name} did not get its locks within {self._seconds:g} s, held by"
                    f" {_all(blockers)}: run `streams migrate` again when that has ended, it goes"
                    " on from there"
                )
            yield from self._say(name, blockers, end=True)
            self._pause(blockers)
            patience = min(2 * patience, LONGEST_SECONDS)

    def _attempt(self, step: Callable[[], Result], seconds: float) -> Result:
        try:
            limit = {"milliseconds": str(int(seconds * 1000))}
            self._database.exec_driver_sql(query("lock_patience"), limit)
            result = step()
            self._database.commit()
        except BaseException:  # interrupted too: the connection is in no transaction afterwards
            if not self._database.invalidated:
                self._database.rollback()
            raise
        return result

    def _end(self, attempt: Future[Result]) -> None:
        """Whoever was interrupted leaves no statement behind that goes on by itself."""
        if not attempt.done():
            driver = self._database.connection.driver_connection
            cast("psycopg.Connection[Any]", driver).cancel()
            wait([attempt])

    def _say(self, name: str, blockers: list[Blocker], *, end: bool = False) -> Iterator[str]:
        if time.monotonic() - self._said < SAID_AGAIN_SECONDS:
            return
        self._said = time.monotonic()
        pids = [blocker.pid for blocker in blockers if blocker.pid and end]
        by_hand = f", or end it: SELECT pg_terminate_backend({pids[0]})" if pids else ""
        yield f"{name} waits for {_all(blockers)}; it goes on when that has ended{by_hand}"

    def _pause(self, blockers: list[Blocker]) -> None:
        """Until those have ended, or it has been long enough."""
        paused = 0.0
        transactions = [blocker.transaction for blocker in blockers if blocker.transaction]
        while self._left > 0 and paused <= LONGEST_PAUSE_SECONDS:
            # Those who stood behind us go first.
            pause = min(PAUSE_SECONDS, max(self._left, _LOOK_SECONDS))
            time.sleep(pause)
            self._left, paused = self._left - pause, paused + pause
            asked = {"transactions": transactions}
            if transactions and not self._ask("transactions_open", asked):
                return

    def _blockers(self) -> list[Blocker]:
        return [Blocker(*row) for row in self._ask("blockers", {"pid": self._pid})]

    def _ask(self, name: str, parameters: Mapping[str, object]) -> list[tuple[Any, ...]]:
        """Rows of this query, none where no second connection is to be had."""
        try:
            if self._observer is None:
                self._observer = self._another().execution_options(isolation_level="AUTOCOMMIT")
            rows = self._observer.exec_driver_sql(query(name), parameters)
            return [tuple(row) for row in rows]
        except (SQLAlchemyError, StreamsError):
            if self._observer is not None:
                with contextlib.suppress(SQLAlchemyError):
                    self._observer.close()
            self._observer = None
            return []


def _all(blockers: list[Blocker]) -> str:
    return ", ".join(map(str, blockers)) or "somebody else's transaction"
