"""The revisions of the schema: which a database has, which it lacks, and how it gets one.

Doing it twice, or from two processes at once, is safe: whoever applies one holds an advisory lock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from psycopg import sql
from sqlalchemy import Connection

from streams.database.files import sql_folder
from streams.database.queries import query
from streams.errors import UsageError

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = sql_folder() / "migrations"
# The business database may well have an `alembic_version` of its own.
VERSION_TABLE = "outbox_streams_version"
# Our own agent is a default that can be left out: its tables are a branch of their own, with a
# revision of their own.
CHAT_HISTORY = "chat_history"
CHAT_HISTORY_VERSION_TABLE = "outbox_streams_version_chat_history"
LOCK = 7_201_001


# Code that knows this revision works with every schema since: revisions after it only added
# something. Set it to the number of a revision that takes away, or changes, what code before it
# uses.
CONTRACTED = "0012"
# Of the first revisions, which a database gets together.
NEW_TABLES = "nothing that was there before"


class Revision(NamedTuple):
    """A revision that a database lacks: what it is for, and what it locks, for how long."""

    number: str
    purpose: str
    locks: str


OF_CHAT_HISTORY = Revision(
    CHAT_HISTORY,
    "The tables of chat history, with the agent that writes them.",
    "nothing that was there before; tables of an earlier version are taken over",
)


class BizType(NamedTuple):
    """What outbox_enqueue() has to know about a biz_type, and a relay about its topic."""

    biz_type: str
    topic: str
    max_bytes: int
    partitions: int
    replication_factor: int
    retention_hours: int
    key_field: str


def apply(connection: Connection, revision: str) -> None:
    """Go up to this revision, in a transaction that the caller commits.

    What code may work with the schema is written down in that transaction too: a migration may end
    behind any revision.
    """
    _run(connection, MIGRATIONS / "versions", VERSION_TABLE, revision)
    comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(
        sql.Identifier(VERSION_TABLE), sql.Literal(min(CONTRACTED, revision))
    )
    connection.exec_driver_sql(comment.as_string())


def apply_chat_history(connection: Connection) -> None:
    """Create or upgrade the tables of chat history, in a transaction that the caller commits.

    UsageError when somebody else has tables of those names.
    """
    versions = MIGRATIONS / "versions" / CHAT_HISTORY
    _run(connection, versions, CHAT_HISTORY_VERSION_TABLE, "head")


def _run(connection: Connection, versions: Path, version_table: str, revision: str) -> None:
    # Every command of ours looks at the revision when it starts, and Alembic takes longer to import
    # than that takes.
    from alembic import command

    config = _config(versions, version_table)
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
    # Whoever is a member of the owner may migrate.
    for statement in connection.exec_driver_sql(query("made_by_another")).scalars().all():
        connection.exec_driver_sql(statement)


def _config(versions: Path, version_table: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(versions))
    config.attributes["version_table"] = version_table
    return config


def lock(connection: Connection) -> None:
    """One migration at a time, across processes, until `unlock`; the caller commits."""
    connection.exec_driver_sql("SELECT pg_advisory_lock(%(key)s)", {"key": LOCK})


def unlock(connection: Connection) -> None:
    """Let others migrate."""
    # A connection that broke has lost its locks, and its own error is the one to see.
    if not connection.invalidated:
        connection.rollback()
        connection.exec_driver_sql("SELECT pg_advisory_unlock(%(key)s)", {"key": LOCK})
        connection.commit()


@contextmanager
def our_schema_alone(connection: Connection) -> Iterator[None]:
    """See the first schema of the search_path alone, in transactions of the caller.

    What others have under our names, further down, is not taken for ours. UsageError when there is
    no schema.
    """
    path = connection.exec_driver_sql("SHOW search_path").scalar_one()
    if schema(connection) is None:
        raise UsageError(
            f"search_path names no schema that is there and that this role may use ({path}):"
            " run CREATE SCHEMA, or GRANT USAGE ON SCHEMA, or name another one"
        )
    connection.exec_driver_sql(
        "SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', false)"
    )
    connection.commit()
    try:
        yield
    finally:
        if not connection.invalidated:
            connection.rollback()
            connection.exec_driver_sql(
                "SELECT set_config('search_path', %(path)s, false)", {"path": path}
            )
            connection.commit()


def schema(connection: Connection) -> str | None:
    """Where our tables live: the first schema of the search_path that is there."""
    name = connection.exec_driver_sql("SELECT current_schema()").scalar()
    # Without a schema it is that of temporary tables, which every path of ours ends with.
    return str(name) if name and not name.startswith("pg_temp_") else None


def sync_biz_types(connection: Connection, biz_types: Iterable[BizType]) -> Iterator[str]:
    """Change what is registered to what these biz_types say.

    It yields a line for each that was something else. Others stay as they are.
    """
    known = {row.biz_type: row for row in connection.exec_driver_sql(query("biz_types"))}
    for wanted in biz_types:
        before = known.get(wanted.biz_type)
        if before is None or tuple(before[:7]) != tuple(wanted):
            connection.exec_driver_sql(query("register_biz_type"), wanted._asdict())
        if before is not None and (before.topic, before.max_bytes) != (
            wanted.topic,
            wanted.max_bytes,
        ):
            yield (
                f"biz_type {wanted.biz_type}: topic {wanted.topic}, at most {wanted.max_bytes}"
                f" bytes (before: topic {before.topic}, {before.max_bytes} bytes)"
            )
        if before is not None and before.retired_at is not None:
            yield (
                f"biz_type {wanted.biz_type} is retired: `streams biz-types retire --undo"
                f" {wanted.biz_type}` takes it back"
            )


def add_biz_types(connection: Connection, biz_types: Iterable[BizType]) -> None:
    """Register those of these biz_types that nobody has registered.

    What is registered stays as it is: it may be of a newer version.
    """
    for wanted in biz_types:
        connection.exec_driver_sql(query("add_biz_type"), wanted._asdict())


def works_with_newer(connection: Connection) -> bool:
    """Whether a newer database still has all that this code uses.

    The newer code has said so there.
    """
    oldest = connection.exec_driver_sql(
        "SELECT obj_description(to_regclass(%(name)s), 'pg_class')", {"name": VERSION_TABLE}
    ).scalar()
    return bool(oldest) and str(oldest) <= head()


def pending(connection: Connection) -> list[Revision]:
    """The revisions that the database lacks, oldest first."""
    from alembic.script import ScriptDirectory

    revision = current(connection) or ""
    scripts = ScriptDirectory.from_config(_config(MIGRATIONS / "versions", VERSION_TABLE))
    lacking = [script for script in scripts.walk_revisions() if script.revision > revision]
    return [
        Revision(
            each.revision,
            (each.doc or "").splitlines()[0],
            getattr(each.module, "locks", NEW_TABLES),
        )
        for each in reversed(lacking)
    ]


def head() -> str:
    """The revision this version of the code needs."""
    return revisions()[-1]


def revisions() -> list[str]:
    """Those this version of the code has, oldest first, as its files are named.

    It lacks those of a newer version.
    """
    files = (file.name for file in MIGRATIONS.joinpath("versions").iterdir())
    return sorted(name.partition("_")[0] for name in files if name.endswith(".py"))


def current(connection: Connection, table: str = VERSION_TABLE) -> str | None:
    """The revision that our schema is at; None when it was never migrated, whatever others are."""
    there = connection.exec_driver_sql(
        "SELECT to_regclass(quote_ident(current_schema()) || '.' || %(name)s)", {"name": table}
    ).scalar()
    revision = there and connection.exec_driver_sql(f"SELECT version_num FROM {table}").scalar()
    return str(revision) if revision else None


def lacks_chat_history(connection: Connection) -> bool:
    """Whether the tables of chat history were never made, or are those of an earlier version."""
    files = MIGRATIONS.joinpath("versions", CHAT_HISTORY).iterdir()
    newest = max(file.name.partition("_")[0] for file in files if file.name.endswith(".py"))
    return current(connection, CHAT_HISTORY_VERSION_TABLE) != newest
