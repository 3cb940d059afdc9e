"""What a deployment needs in the database: `migrate` creates it, `check` says in one line what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection
from sqlalchemy.exc import ArgumentError, DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

import db.migrate
import db.replication
from db import sync_engine
from db.engine import KEEPALIVES
from streams.errors import NotMigrated, ServiceUnreachable, SettingsInvalid, UsageError
from streams.registry import Registry
from streams.settings import Settings, redact


def migrate(settings: Settings, registry: Registry) -> Iterator[str]:
    """Create or upgrade everything in the database; yields one line a step.

    ServiceUnreachable when the database goes away, UsageError when it refuses: a missing right, no slot left.
    """
    try:
        with connection(settings) as database, db.migrate.locked(database):
            revision = db.migrate.upgrade(
                database, partition_rows=settings.outbox.partition_rows, biz_types=biz_types(settings, registry)
            )
            yield f"database at revision {revision}"
            if settings.relay.mode != "poll":
                yield from db.replication.prepare(database, settings.relay.publication, settings.relay.name)
    except DBAPIError as error:
        where, reason = redact(settings.database_url), _line(error)
        if error.connection_invalidated:
            raise ServiceUnreachable(f"PostgreSQL at {where} went away: {reason}") from error
        raise UsageError(f"PostgreSQL at {where} refuses to migrate: {reason}") from error


def check(connection: Connection) -> None:
    """NotMigrated unless the database is at the revision of this code."""
    found, needed = db.migrate.current(connection), db.migrate.head()
    if found != needed:
        raise NotMigrated(f"the database is at revision {found or '(none)'}, expected {needed}: run `streams migrate`")


def register(connection: Connection, settings: Settings, registry: Registry) -> None:
    """Tell outbox_enqueue() about the biz_types of this deployment."""
    db.migrate.sync_biz_types(connection, biz_types(settings, registry))
    connection.commit()


def biz_types(settings: Settings, registry: Registry) -> list[db.migrate.BizType]:
    """The registry as outbox_enqueue() needs it."""
    return [
        db.migrate.BizType(biz_type, agent.event.topic, settings.outbox.max_bytes)
        for biz_type, agent in sorted(registry.agents.items())
    ]


def connection(settings: Settings) -> Connection:
    """A connection to the configured database; ServiceUnreachable in one line when there is none."""
    url = settings.database_url
    options = {**KEEPALIVES, "connect_timeout": settings.database.connect_timeout}
    try:
        return sync_engine(url, poolclass=NullPool, connect_args=options).connect()
    except OperationalError as error:
        raise ServiceUnreachable(f"PostgreSQL at {redact(url)} cannot be reached: {_line(error)}") from None
    except (ProgrammingError, ArgumentError) as error:
        # libpq does not know an option of the URL; its message names the option, not its value.
        raise SettingsInvalid(f"setting 'database.url' is {redact(url)!r}: {_line(error)}") from None


def _line(error: SQLAlchemyError) -> str:
    reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
    return reason.strip().splitlines()[0]
