"""The trigger by which PostgreSQL tells pollers of new rows, once a statement, at its commit."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from streams.database.queries import query

LOCK_NOT_AVAILABLE = "55P03"
ATTEMPTS, PAUSE_SECONDS = 10, 0.5


def prepare(connection: Connection, *, wanted: bool) -> Iterator[str]:
    """Make the trigger or remove it; yields a line when there was something to do.

    OperationalError when transactions that write to the outbox leave no moment for it.
    """
    if connection.exec_driver_sql(query("has_notify_trigger")).scalar_one() == wanted:
        connection.commit()
        return
    for attempt in range(1, ATTEMPTS + 1):
        try:
            # Whoever enqueues waits for as long as this waits: so it waits shortly, and tries
            # again.
            connection.exec_driver_sql(query("notify_patience"))
            connection.exec_driver_sql(
                query("make_notify_trigger" if wanted else "drop_notify_trigger")
            )
            connection.commit()
            break
        except OperationalError as error:
            connection.rollback()
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE or attempt == ATTEMPTS:
                raise
            time.sleep(PAUSE_SECONDS)
    yield f"trigger outbox_notify {'created' if wanted else 'removed'}"
