"""The trigger by which PostgreSQL tells pollers of new rows, once a statement, at its commit."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection

from streams.database.lock_waits import LockWaits
from streams.database.queries import query


def prepare(connection: Connection, waits: LockWaits, *, wanted: bool) -> Iterator[str]:
    """Make the trigger or remove it; yields a line when there was something to do."""
    there = connection.exec_driver_sql(query("has_notify_trigger")).scalar_one()
    connection.commit()
    if there == wanted:
        return
    statement = query("make_notify_trigger" if wanted else "drop_notify_trigger")
    yield from waits.run("trigger outbox_notify", lambda: connection.exec_driver_sql(statement))
    yield f"trigger outbox_notify {'created' if wanted else 'removed'}"
