"""What a deployment needs in the database: `migrate` creates it, `check` says what is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version

import psycopg
from sqlalchemy import Connection
from sqlalchemy.exc import (
    DBAPIError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.pool import NullPool

import streams.database.notify
import streams.database.replication
from streams.database import query, revisions, sync_engine
from streams.database.engine import KEEPALIVES, read_url
from streams.database.lock_waits import LockWaits
from streams.database.partitions import FIRST_WIDTH, ensure_sync
from streams.database.refusals import told, words
from streams.database.sessions import SessionRefused, split_options
from streams.errors import NotMigrated, ServiceUnreachable, SettingsInvalid, UsageError
from streams.registry import Registry
from streams.settings import AGENTS, Settings, redact

# Longer than what a deployment does; shorter than a dump.  Whoever started it starts it again.
TIMEOUT_SECONDS = 600.0

# Every table of ours but the partitions; `db/schema.sql` says what is in them.
TABLES = (
    "outbox", "outbox_direct", "outbox_biz_types", "outbox_state", "outbox_open", "outbox_retired",
    "outbox_foreign", "outbox_run_crashes", "outbox_partition_crashes", "outbox_message_crashes",
    "outbox_rejects", "outbox_topics", "relay_position", "relay_shards", "outbox_actions",
    "outbox_audit_ranges", "outbox_audit_left", "outbox_audits", "outbox_stats", "outbox_processes",
    "outbox_lag", "outbox_gauges", "outbox_primary", "outbox_dead_letters", "outbox_operations",
    "outbox_operation_items",
)  # fmt: skip
# Those of our own agent, where it is used.
CHAT_TABLES = ("chat_histories", "agent_chats")


def migrate(
    settings: Settings, registry: Registry, *, timeout: float = TIMEOUT_SECONDS
) -> Generator[str, None, None]:
    """Create or upgrade everything in the database; yields one line a step.

    Each revision is a transaction of its own, and waits for locks shortly, again and again, in all
    no longer than `timeout` seconds; lines say whom it waits for. What was done stays done when it
    ends before the last one: migrating again goes on from there.

    ServiceUnreachable when the database goes away or the time is up, UsageError when it refuses: a
    missing right, no slot left.
    """
    try:
        with _connect(settings) as database:
            yield from _new_beside_another(database)
            with LockWaits(database, lambda: _connect(settings), seconds=timeout) as waits:
                yield from waits.run(
                    "this migration", lambda: revisions.lock(database), in_the_way=False
                )
                try:
                    with revisions.our_schema_alone(database):
                        yield from _migrate(settings, registry, database, waits)
                finally:
                    revisions.unlock(database)
    except DBAPIError as error:
        raise told(error, redact(settings.database_url), to="migrate") from error


def _migrate(
    settings: Settings, registry: Registry, database: Connection, waits: LockWaits
) -> Iterator[str]:
    newer = _newer(database)
    lacking = [] if newer is not None else revisions.pending(database)
    fresh = newer is None and revisions.current(database) is None
    database.commit()
    if fresh:
        # Nobody has anything there yet: all of it, or nothing.
        newest = revisions.head()
        yield from waits.run("the schema", lambda: revisions.apply(database, newest))
    for revision in [] if fresh else lacking:
        yield f"revision {revision.number}: {revision.purpose}"
        yield from waits.run(
            f"revision {revision.number}", partial(revisions.apply, database, revision.number)
        )
    if newer is None:
        width = settings.outbox.partition_rows or FIRST_WIDTH
        yield from waits.run("partitions", lambda: ensure_sync(database, ahead=1, width=width))
        yield f"database at revision {revisions.head()}"
    else:
        yield (
            f"database at revision {newer}, of a newer version: left as it is,"
            " this one works with it"
        )
    if uses_chat_history(registry):
        yield from waits.run("chat history", lambda: revisions.apply_chat_history(database))
    different = yield from waits.run(
        "the biz_types", lambda: _register(settings, registry, database), in_the_way=False
    )
    yield from different
    yield from streams.database.notify.prepare(database, waits, wanted=settings.relay.notify)
    if settings.relay.mode != "poll":
        yield from streams.database.replication.prepare(
            database, waits, settings.relay.publication, settings.relay.name
        )


def _register(settings: Settings, registry: Registry, database: Connection) -> list[str]:
    """Tell the database of the biz_types of this deployment; lines of what is different now."""
    lines = [
        *revisions.sync_biz_types(database, biz_types(settings, registry)),
        *_unknown(database, registry),
    ]
    check_promises(database, registry)
    return lines


def plan(settings: Settings, registry: Registry) -> list[revisions.Revision]:
    """The revisions that `migrate` would apply, oldest first.

    Of a database that is newer only what our own agent lacks.
    """
    with connection(settings) as database:
        lacking = [] if _newer(database) is not None else revisions.pending(database)
        if uses_chat_history(registry) and revisions.lacks_chat_history(database):
            lacking.append(revisions.OF_CHAT_HISTORY)
        return lacking


def check(connection: Connection, registry: Registry | None = None) -> None:
    """NotMigrated unless the database is at a revision that works with this code.

    That is the revision of this code, or that of a newer version which took nothing away.
    UsageError when a newer version has taken something away. With a registry the tables of our own
    agent have to be there too, if it has it. All of them are in the first schema of the
    search_path: what it finds further down is another's.
    """
    revision, needed = revisions.current(connection), revisions.head()
    chats = uses_chat_history(registry)
    if revision is None and (another := _elsewhere(connection, [revisions.VERSION_TABLE])):
        raise NotMigrated(
            f"no outbox is in schema {revisions.schema(connection)}, the first of the search_path,"
            f" and the one in schema {another[1]} is another: run `streams migrate` to make one,"
            f" or name {another[1]} first"
        )
    if _newer(connection) is None and revision != needed:
        raise NotMigrated(
            f"the database is at revision {revision or '(none)'}, expected {needed}:"
            " run `streams migrate`"
        )
    if chats and revisions.lacks_chat_history(connection):
        raise NotMigrated(
            f"the tables {' and '.join(CHAT_TABLES)} are not there, or are old:"
            " run `streams migrate`"
        )
    if another := _elsewhere(connection, [*TABLES, *(CHAT_TABLES if chats else ())]):
        raise UsageError(
            f"table {another[0]} is not in schema {revisions.schema(connection)}, where the outbox"
            f" is, and search_path finds another's in schema {another[1]}: restore what is missing"
        )


def check_promises(connection: Connection, registry: Registry | None = None) -> None:
    """UsageError when ids and places in line are not drawn one by one, or policies hide rows."""
    sequence = connection.exec_driver_sql(query("sequence_at_fault")).first()
    if sequence is not None:
        raise UsageError(sequence_fault(*sequence))
    tables = [*TABLES, *(CHAT_TABLES if uses_chat_history(registry) else ())]
    hidden = connection.exec_driver_sql(query("hidden_tables"), {"tables": tables}).scalar_one()
    if hidden:
        raise UsageError(
            f"row level security hides rows of {hidden} from this role: run ALTER ROLE ..."
            " BYPASSRLS, or ALTER TABLE ... DISABLE ROW LEVEL SECURITY"
        )


def _unknown(connection: Connection, registry: Registry) -> Iterator[str]:
    """A line for each registered biz_type that no agent here knows.

    What is enqueued of it waits.
    """
    for row in connection.exec_driver_sql(query("biz_types")):
        if row.retired_at is None and row.biz_type not in registry.agents:
            yield (
                f"biz_type {row.biz_type} is registered and no agent here knows it:"
                f" add its package to `agents`, or run `streams biz-types retire {row.biz_type}`"
            )


def sequence_fault(name: str, cache: int, increment: int, cycle: bool) -> str:
    """What is wrong with a sequence of ids or places in line, and what mends it."""
    return (
        f"sequence {name} has CACHE {cache} INCREMENT {increment}{' CYCLE' if cycle else ''}, so"
        f" that a later message may get a smaller number: run ALTER SEQUENCE {name} CACHE 1"
        " INCREMENT 1 NO CYCLE, then end every session that has drawn from it since, as it may have"
        " kept some"
    )


def uses_chat_history(registry: Registry | None) -> bool:
    """Whether our own agent is among the agents."""
    agents = registry.agents.values() if registry else ()
    return any(f"{agent.handler.__module__}.".startswith(f"{AGENTS}.") for agent in agents)


def register(connection: Connection, settings: Settings, registry: Registry) -> None:
    """Tell outbox_enqueue() about those biz_types of this deployment that it does not know."""
    revisions.add_biz_types(connection, biz_types(settings, registry))
    connection.commit()


def biz_types(settings: Settings, registry: Registry) -> list[revisions.BizType]:
    """The registry as outbox_enqueue() and relays need it."""
    known = []
    for biz_type, agent in sorted(registry.agents.items()):
        name, topic = agent.event.topic, settings.topic_settings(agent.event.topic)
        counts = topic.partitions, topic.replication_factor, topic.retention_hours
        known.append(
            revisions.BizType(biz_type, name, settings.outbox.max_bytes, *counts, agent.event.key)
        )
    return known


@contextmanager
def connection(settings: Settings) -> Iterator[Connection]:
    """A connection to the configured database.

    Whatever PostgreSQL refuses inside the block is one line too.

    ServiceUnreachable when there is none or it goes away, UsageError when a right or a table is
    missing.
    """
    try:
        with _connect(settings) as database:
            driver = database.connection.driver_connection
            try:
                yield database
            except psycopg.Error:
                # Of the driver itself: SQLAlchemy, which did not see it, would end a transaction.
                if getattr(driver, "closed", False):
                    database.invalidate()
                raise
    except (DBAPIError, psycopg.Error) as error:
        raise told(error, redact(settings.database_url)) from error


def _connect(settings: Settings) -> Connection:
    url = settings.database_url
    options = {
        **KEEPALIVES,
        "connect_timeout": settings.database.connect_timeout,
        "fallback_application_name": "outbox-streams migrate",
    }
    try:
        database = sync_engine(url, poolclass=NullPool, connect_args=options).connect()
    except OperationalError as error:
        if isinstance(error.orig, SessionRefused):
            raise UsageError(f"PostgreSQL at {redact(url)}: {words(error)}") from None
        raise ServiceUnreachable(
            f"PostgreSQL at {redact(url)} cannot be reached: {words(error)}"
        ) from None
    except ProgrammingError as error:
        # libpq does not know an option of the URL; its message names the option, not its value.
        raise SettingsInvalid(
            f"setting 'database.url' is {redact(url)!r}: {words(error)}"
        ) from None
    try:
        _refuse_missing_schema(database, url)
    except BaseException:  # interrupted too: nobody else would close it
        database.close()
        raise
    return database


def _new_beside_another(connection: Connection) -> Iterator[str]:
    """A line when the outbox that is to be made is not the one that the search_path finds."""
    another = _elsewhere(connection, [revisions.VERSION_TABLE])
    schema = revisions.schema(connection)
    connection.rollback()
    if another and schema:
        yield (
            f"a new outbox in schema {schema}: the one in schema {another[1]} is another, and"
            " stays as it is"
        )


def _elsewhere(connection: Connection, tables: list[str]) -> tuple[str, str] | None:
    """(table, schema) of the first that the search_path finds in another schema than ours."""
    row = connection.exec_driver_sql(query("tables_elsewhere"), {"tables": tables}).first()
    return (str(row[0]), str(row[1])) if row else None


def _refuse_missing_schema(connection: Connection, url: str) -> None:
    """UsageError when the schema that we were told to use first is none that we can use.

    The next one in the path would count as ours, and may be another's.
    """
    by_url = str(read_url(url).get("options") or "")
    path = split_options(by_url or os.environ.get("PGOPTIONS", ""))[0].get("search_path")
    # As PostgreSQL reads it: what is not in quotes is lower case.
    named = re.match(r'\s*(?:"((?:[^"]|"")*)"|([^,\s]*))', path or "")
    if named is None or not (
        first := (named[1] or "").replace('""', '"') or (named[2] or "").lower()
    ):
        return
    schema = revisions.schema(connection)
    connection.rollback()
    if first not in ("$user", schema):
        source = "'database.url'" if by_url else "PGOPTIONS"
        raise UsageError(
            f"schema {first}, the first of search_path in {source}, is not there, or this role may"
            f" not use it: run CREATE SCHEMA {first}, or GRANT USAGE ON SCHEMA {first}"
        )


def _newer(connection: Connection) -> str | None:
    """The revision of a database that is newer than this code and has all that it uses.

    UsageError when it lacks some.
    """
    revision = revisions.current(connection)
    if revision is None or revision in revisions.revisions():
        return None
    if not revisions.works_with_newer(connection):
        raise UsageError(
            f"the database is at revision {revision}, which outbox-streams"
            f" {version('outbox-streams')} does not know"
            f" (its newest: {revisions.head()}): install a newer version"
        )
    return revision
