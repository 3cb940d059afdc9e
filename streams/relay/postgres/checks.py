"""What has to be true before a relay streams; each finding says what mends it."""

from __future__ import annotations

import re

import psycopg
from sqlalchemy import Connection

from streams.database import connect, migrate, query
from streams.database.replication import other_outbox, refuse_shared_slot
from streams.errors import NotMigrated, ServiceUnreachable, UsageError
from streams.relay.postgres.connections import replication_connection
from streams.settings import Settings, redact

# What poolers say to a replication connection, each in its words; PostgreSQL itself never does.
_POOLER = re.compile(r"startup parameter|not supported|(n't|not) support", re.IGNORECASE)


class MayNotReplicate(UsageError):
    """The role lacks REPLICATION, or a pooler lets no replication connection through."""


def check_database(settings: Settings) -> None:
    """Reachable and migrated; raises NotMigrated or ServiceUnreachable; blocking."""
    with migrate.connection(settings) as connection:
        migrate.check(connection)
        migrate.check_promises(connection)


def check_log(settings: Settings) -> None:
    """`wal_level` logical, the publication as `streams migrate` makes it, no other outbox's slot.

    Raises UsageError or NotMigrated, or ServiceUnreachable; blocking.
    """
    with migrate.connection(settings) as connection:
        _check_wal_level(connection)
        _check_publication(connection, settings.relay.publication)
        refuse_shared_slot(connection, settings.relay.name)


def check_slot(settings: Settings) -> None:
    """The slot of this relay's name is no other outbox's.

    Raises UsageError, or ServiceUnreachable; blocking.
    """
    with migrate.connection(settings) as connection:
        refuse_shared_slot(connection, settings.relay.name)


async def check_replication(settings: Settings) -> None:
    """The role may stream, and the server lets it: the ordinary connection worked before.

    Raises MayNotReplicate or ServiceUnreachable.
    """
    url, timeout = settings.database_url, settings.database.connect_timeout
    try:
        connection = await replication_connection(url, timeout)
    except psycopg.OperationalError as error:
        role = await _role_without_replication(settings)
        if role is not None:
            raise MayNotReplicate(
                f"role {role} may not replicate: run ALTER ROLE {role} REPLICATION"
            ) from None
        reason = (str(error).strip().splitlines() or [""])[-1].strip()
        if _POOLER.search(reason):
            raise MayNotReplicate(
                f"a pooler at {redact(url)} lets no replication connection through ({reason}):"
                " give the relay the URL of the server itself, or set relay.mode: poll"
            ) from None
        raise ServiceUnreachable(
            f"PostgreSQL at {redact(url)} refuses a replication connection: {reason}"
        ) from None
    await connection.close()


def _check_wal_level(connection: Connection) -> None:
    level = connection.exec_driver_sql("SHOW wal_level").scalar_one()
    if level != "logical":
        raise UsageError(
            f"wal_level is {level}, relay mode cdc needs logical: run ALTER SYSTEM SET wal_level ="
            " 'logical', restart PostgreSQL, then run `streams migrate`"
        )


def _check_publication(connection: Connection, name: str) -> None:
    publication = (
        connection.exec_driver_sql(query("publication"), {"publication": name}).mappings().first()
    )
    if publication is None:
        raise NotMigrated(f"publication {name} does not exist: run `streams migrate`")
    if publication["other_outbox"]:
        raise UsageError(other_outbox(name, publication["other_outbox"]))
    if not publication["has_outbox"] or publication["other_tables"]:
        raise UsageError(
            f"publication {name} holds"
            f" {'other tables than' if publication['has_outbox'] else 'not'} the outbox:"
            f" run ALTER PUBLICATION {name} SET TABLE outbox"
        )
    if publication["others"] or not publication["inserts"] or not publication["via_root"]:
        raise UsageError(
            f"publication {name} must publish inserts through the partition root, and nothing else:"
            f" run ALTER PUBLICATION {name} SET (publish = 'insert', publish_via_partition_root ="
            " true)"
        )


async def _role_without_replication(settings: Settings) -> str | None:
    url, timeout = settings.database_url, settings.database.connect_timeout
    try:
        async with await connect(url, connect_timeout=timeout) as connection:
            row = await (await connection.execute(query("replication_role"))).fetchone()
    except psycopg.Error:
        return None
    return row[0] if row and not row[1] else None
