"""What a deployment needs in the database: `migrate` creates it, `check` says in one line what is missing."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

import db.migrate
import db.replication
from db import sync_engine
from streams.errors import NotMigrated, ServiceUnreachable
from streams.registry import Registry
from streams.settings import Settings, redact


def migrate(settings: Settings, registry: Registry) -> Iterator[str]:
    """Create or upgrade everything in the database; yields one line a step."""
    with connection(settings) as database:
        revision = db.migrate.upgrade(
            database, partition_rows=settings.outbox.partition_rows, biz_types=biz_types(settings, registry)
        )
        yield f"database at revision {revision}"
        if settings.relay.mode == "poll":
            return
        yield from db.replication.prepare(database, settings.relay.publication, settings.relay.name)


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
    engine = sync_engine(url, poolclass=NullPool)
    try:
        return engine.connect()
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise ServiceUnreachable(f"PostgreSQL at {redact(url)} cannot be reached: {reason}") from None
