"""Migrations: the schema is what the dump says, and migrating is safe.

Safe twice, and from several processes.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from click.testing import CliRunner
from sqlalchemy import Connection, NullPool

from streams.cli import cli
from streams.database import migrate as migrations
from streams.database import partitions, query, revisions, sync_engine
from streams.database.lock_waits import LockWaits
from streams.database.migrate import CHAT_TABLES, TABLES
from streams.dev.postgres import PostgresServer
from streams.errors import NotMigrated, ServiceUnreachable, SettingsInvalid, UsageError
from streams.registry import configured
from streams.relay.leader.wal_guard import SlotCare
from streams.relay.postgres import checks
from streams.settings import Settings, load
from streams.testing.services import UNSAFE
from tests.conftest import Eventually
from tests.fixtures import schema

ROOT = Path(__file__).parents[2]
PARTITION = re.compile(r"(outbox|outbox_state)_\d+")


@pytest.fixture
def empty(postgres: PostgresServer, name: str) -> Iterator[str]:
    """The URL of a database with nothing in it."""
    name = f"{name}_empty"  # a test may have `database` too
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres.url_of(name)
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        slots = (
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE database = %s"
        )
        connection.execute(slots, [name])
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def at() -> Iterator[Callable[[str], Connection]]:
    """`at(url)`: a connection that ends with the test."""
    opened = []

    def connection(url: str) -> Connection:
        engine = sync_engine(url)
        opened.append((engine, engine.connect()))
        return opened[-1][1]

    yield connection
    for engine, each in opened:
        each.close()
        engine.dispose()


def settings(url: str, name: str, **environ: str) -> Settings:
    return load(environ={"DATABASE_URL": url, "STREAMS_RELAY__NAME": name, **environ})


def migrate(given: Settings) -> list[str]:
    return list(migrations.migrate(given, configured(given)))


def planned(given: Settings) -> list[revisions.Revision]:
    return migrations.plan(given, configured(given))


def migrate_to(revision: str, database: Connection) -> None:
    """As an earlier release has left it."""
    config = Config()
    config.set_main_option("script_location", str(revisions.MIGRATIONS))
    config.set_main_option("path_separator", "newline")
    config.set_main_option("version_locations", str(revisions.MIGRATIONS / "versions"))
    config.attributes |= {"connection": database, "version_table": revisions.VERSION_TABLE}
    command.upgrade(config, revision)
    database.commit()


def catalog(url: str) -> dict[str, list[Any]]:
    """Columns in their order, constraints, indexes, sequences and options.

    Partitions and Alembic's table are left out.
    """
    queries = {
        "columns": (
            "SELECT relname, attname, format_type(atttypid, atttypmod), attnotnull, attidentity,"
            " pg_get_expr(adbin, adrelid) FROM pg_attribute AS a"
            " JOIN pg_class AS c ON c.oid = attrelid"
            " LEFT JOIN pg_attrdef AS d ON adrelid = attrelid AND adnum = attnum"
            " WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND attnum > 0"
            " ORDER BY 1, attnum"
        ),
        "constraints": (
            "SELECT relname, conname, pg_get_constraintdef(k.oid) FROM pg_constraint AS k"
            " JOIN pg_class AS c ON c.oid = conrelid"
            " WHERE relnamespace = 'public'::regnamespace ORDER BY 1, 2"
        ),
        "indexes": (
            "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'"
            " ORDER BY 1, 2"
        ),
        "sequences": (
            "SELECT sequencename, data_type::text, start_value, increment_by, cache_size"
            " FROM pg_sequences WHERE schemaname = 'public' ORDER BY 1"
        ),
        "storage": (
            "SELECT relname, reloptions FROM pg_class"
            " WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL ORDER BY 1"
        ),
        "partitioned": (
            "SELECT relname, pg_get_partkeydef(oid) FROM pg_class WHERE relkind = 'p' ORDER BY 1"
        ),
    }
    with psycopg.connect(url) as connection:
        return {
            kind: [
                row
                for row in connection.execute(query.encode()).fetchall()
                if not PARTITION.fullmatch(row[0])
                and not row[0].startswith(revisions.VERSION_TABLE)
            ]
            for kind, query in queries.items()
        }


def test_the_schema_file_is_what_the_migrations_make(database: str) -> None:
    made = schema.dump(database)
    if os.environ.get("WRITE_SCHEMA"):
        schema.FILE.write_text(made, encoding="utf-8")
    assert schema.FILE.read_text(encoding="utf-8") == made, "run `make schema`"


def test_no_table_of_ours_is_forgotten_when_policies_are_looked_for(database: str) -> None:
    tables = {row[0] for row in catalog(database)["columns"]}
    assert {*TABLES, *CHAT_TABLES} == tables


def test_the_files_are_named_by_their_revisions(
    database: str, at: Callable[[str], Connection]
) -> None:
    config = Config()
    config.set_main_option("script_location", str(revisions.MIGRATIONS))
    scripts = ScriptDirectory.from_config(config)
    assert revisions.revisions() == [script.revision for script in scripts.walk_revisions()][::-1]
    assert revisions.current(at(database)) == revisions.head() == scripts.get_current_head()


def test_migrating_twice_changes_nothing_the_second_time(empty: str, name: str) -> None:
    given = settings(empty, name)
    assert migrate(given) == [
        f"database at revision {revisions.head()}",
        "publication outbox_pub created",
        f"replication slot {name} created",
    ]
    before = catalog(empty)
    assert migrate(given) == [f"database at revision {revisions.head()}"]
    assert catalog(empty) == before


def test_what_is_open_when_a_database_is_migrated_is_open_afterwards(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """Whoever may read the states may read what is open of them: new workers ask there."""
    database = at(empty)
    migrate_to("0014", database)
    partitions.ensure_sync(database, ahead=3000, width=1000)
    database.exec_driver_sql(
        f"CREATE ROLE {name}_reader; GRANT SELECT ON outbox_state TO {name}_reader;"
        " INSERT INTO outbox_state (outbox_id, status, topic, key, arrived, attempts, error_code)"
        " VALUES (1, 'retrying', 't', 'a', 2, 3, '22003'), (1500, 'parked', 't', 'a', 3, 0, NULL),"
        " (2500, 'dead', 't', 'b', 1, 0, 'json'), (2501, 'dead', NULL, NULL, 4, 0, 'json'),"
        " (2, 'consumed', NULL, NULL, NULL, 0, NULL)"
    )
    database.commit()
    migrate(settings(empty, name, STREAMS_RELAY__MODE="poll"))
    with psycopg.connect(empty) as connection:
        assert (
            connection.execute(
                query("audit_open"), {"after": -1, "until": 2**62, "ids": None}
            ).fetchall()
            == []
        )
        rows = "SELECT outbox_id, key, status, attempts FROM outbox_open ORDER BY arrived"
        assert connection.execute(rows).fetchall() == [
            (2500, "b", "dead", 0),
            (1, "a", "retrying", 3),
            (1500, "a", "parked", 0),
        ]
        connection.execute(f"SET ROLE {name}_reader".encode())
        assert len(connection.execute(rows).fetchall()) == 3
        connection.execute(
            f"RESET ROLE; DROP OWNED BY {name}_reader; DROP ROLE {name}_reader".encode()
        )


async def test_whoever_holds_a_revision_up_holds_nobody_else_up(
    empty: str, name: str, at: Callable[[str], Connection], eventually: Eventually
) -> None:
    """A dump reads relay_position for an hour: workers go on writing states meanwhile."""
    database = at(empty)
    migrate_to("0014", database)
    partitions.ensure_sync(database, ahead=1, width=1000)
    database.commit()
    given = settings(empty, name, STREAMS_RELAY__MODE="poll")
    lines: list[str] = []

    def migrate_on() -> None:
        lines.extend(line for line in migrations.migrate(given, configured(given)))

    with (
        psycopg.connect(empty, application_name="pg_dump") as reader,
        psycopg.connect(empty, autocommit=True) as worker,
    ):
        reader.execute("SELECT FROM relay_position")
        pid = reader.info.backend_pid
        migration = asyncio.create_task(asyncio.to_thread(migrate_on))
        waiting = "SELECT FROM pg_locks WHERE NOT granted AND relation = 'relay_position'::regclass"
        await eventually(lambda: worker.execute(waiting).fetchall(), 20, every=0.05)
        worker.execute("SET statement_timeout = '2s'")
        for outbox_id in range(1, 4):
            await asyncio.to_thread(
                worker.execute,
                "INSERT INTO outbox_state (outbox_id, status, topic, key, arrived)"
                " VALUES (%s, 'retrying', 't', 'c', %s)",
                [outbox_id, outbox_id],
            )
        assert worker.execute("SELECT count(*) FROM outbox_open").fetchall() == [(3,)]
        await eventually(lambda: any("waits for pid" in line for line in lines), 20)
        assert not migration.done()
        reader.rollback()
        await migration
    [line] = [line for line in lines if "waits for pid" in line]
    assert re.fullmatch(
        rf"revision 0016 waits for pid {pid} \(pg_dump, since [-0-9]+ [:0-9]+ UTC\); it goes on"
        rf" when that has ended, or end it: SELECT pg_terminate_backend\({pid}\)",
        line,
    )
    assert [line.partition(":")[0] for line in lines][:2] == ["revision 0015", "revision 0016"]
    assert lines[-1] == f"database at revision {revisions.head()}"


def test_a_migration_that_ends_half_way_goes_on_from_there(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """Its time is up, or it is killed: what was done stays, and older code works with it."""
    database = at(empty)
    migrate_to("0014", database)
    given = settings(empty, name, STREAMS_RELAY__MODE="poll")
    with psycopg.connect(empty, application_name="pg_dump") as reader:
        reader.execute("SELECT FROM relay_position")
        pid = reader.info.backend_pid
        with pytest.raises(
            ServiceUnreachable,
            match=rf"revision 0016 did not get its locks within 0\.1 s, held by pid {pid}"
            r" \(pg_dump, since .*\): run `streams migrate` again when that has ended, it goes on"
            r" from there$",
        ):
            list(migrations.migrate(given, configured(given), timeout=0.1))
        assert revisions.current(database) == "0015"
        assert revisions.works_with_newer(database)
        database.rollback()
        with pytest.raises(NotMigrated, match="is at revision 0015, expected"):
            migrations.check(database)
        database.rollback()
    lines = migrate(given)
    assert [line.partition(":")[0] for line in lines] == [
        *(f"revision {each}" for each in revisions.revisions() if each > "0015"),
        f"database at revision {revisions.head()}",
    ]
    migrations.check(database, configured(given))


def test_what_a_revision_works_is_no_wait_for_a_lock(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """One copies millions of rows: the next one has its time all the same."""
    database, told = at(empty), settings(empty, name)
    database.exec_driver_sql("CREATE TABLE things (id int)")
    database.commit()

    def another() -> Connection:
        return sync_engine(told.database_url, poolclass=NullPool).connect()

    def works() -> None:
        database.exec_driver_sql("SELECT pg_sleep(1.1)")

    def waits() -> None:
        database.exec_driver_sql("LOCK TABLE things")

    with (
        closing(psycopg.connect(empty)) as other,
        LockWaits(database, another, seconds=1) as waiting,
    ):
        assert list(waiting.run("the copy", works)) == []
        other.execute("LOCK TABLE things")
        other.execute("SET LOCAL idle_in_transaction_session_timeout = '700ms'")
        assert list(waiting.run("the lock", waits, in_the_way=False)) == []


def test_a_second_migration_says_whom_it_waits_for(empty: str, name: str) -> None:
    given = settings(empty, name, STREAMS_RELAY__MODE="poll")
    with psycopg.connect(empty, autocommit=True, application_name="another one") as other:
        other.execute("SELECT pg_advisory_lock(%s)", [revisions.LOCK])
        steps = migrations.migrate(given, configured(given))
        assert next(steps) == (
            f"this migration waits for pid {other.info.backend_pid} (another one); it goes on when"
            " that has ended"
        )
        # Interrupted it leaves nothing behind that takes the lock later.
        steps.close()
        asleep = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s"
        assert other.execute(asleep, [revisions.LOCK]).fetchall() == []
        line = "this migration did not get its locks within 0 s, held by pid"
        with pytest.raises(ServiceUnreachable, match=line):
            list(migrations.migrate(given, configured(given), timeout=0))
    assert migrate(given) == [f"database at revision {revisions.head()}"]


@pytest.mark.long
def test_four_processes_at_once_migrate_once(empty: str, name: str, tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "DATABASE_URL": empty,
        "STREAMS_RELAY__NAME": name,
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", "from streams.cli import main; main(['migrate'])"]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=pipe, stderr=pipe, text=True)
        for _ in range(4)
    ]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in started]
    assert [(error, code) for _, error, code in ended] == [("", 0)] * 4
    lines = [
        line
        for output, _, _ in ended
        for line in output.splitlines()
        # Said by whoever has to wait longer than a moment.
        if not line.startswith("this migration waits for pid")
    ]
    assert sorted(lines) == sorted(
        [f"database at revision {revisions.head()}"] * 4
        + ["publication outbox_pub created", f"replication slot {name} created"]
    )


def test_publication_and_slot_are_made_under_the_lock_too(empty: str, name: str) -> None:
    """Else two processes both find neither, and the second to create one fails."""

    def free() -> bool:
        with psycopg.connect(empty) as connection:
            return connection.execute(
                "SELECT pg_try_advisory_lock(%s)", [revisions.LOCK]
            ).fetchall() == [(True,)]

    given = settings(empty, name)
    steps = migrations.migrate(given, configured(given))
    assert next(steps).startswith("database at revision")
    assert not free()
    assert len(list(steps)) == 2
    assert free()


def test_the_publication_is_older_than_the_slot(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """PostgreSQL 18 skips rows silently otherwise."""
    migrate(settings(empty, name))
    with psycopg.connect(empty) as connection:
        shape = connection.execute(
            "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, pubviaroot, puballtables"
            " FROM pg_publication"
        ).fetchall()
        assert shape == [(True, False, False, False, True, False)]
        assert (
            connection.execute("SELECT * FROM pg_publication_tables").fetchall()[0][2] == "outbox"
        )
        connection.execute(
            "SELECT outbox_enqueue('chat_history_persist', 'c', '{\"conversation_id\": \"c\"}')"
        )
        connection.commit()
        # A slot made before its publication reports it as missing here.
        changes = connection.execute(
            "SELECT count(*) FROM pg_logical_slot_peek_binary_changes(%s, NULL, NULL,"
            " 'proto_version', '1', 'publication_names', 'outbox_pub')",
            [name],
        ).fetchall()
    assert changes[0][0] >= 3  # begin, insert, commit, and the relation before it


def test_in_poll_mode_there_is_neither_publication_nor_slot(empty: str, name: str) -> None:
    assert migrate(settings(empty, name, STREAMS_RELAY__MODE="poll")) == [
        f"database at revision {revisions.head()}"
    ]
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT FROM pg_publication").fetchall() == []


async def test_without_logical_decoding_the_slot_is_only_noted(tmp_path: Path, name: str) -> None:
    async with PostgresServer(
        tmp_path / "replica", settings={**UNSAFE, "wal_level": "replica"}, trusting=True
    ) as server:
        lines = migrate(settings(server.url, name))
    assert lines == [
        f"database at revision {revisions.head()}",
        "publication outbox_pub created",
        "no replication slot: wal_level is replica, and relay mode cdc needs logical",
    ]


def test_an_unmigrated_database_says_so(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    connection = at(empty)
    with pytest.raises(
        NotMigrated,
        match=rf"is at revision \(none\), expected {revisions.head()}: run `streams migrate`",
    ):
        migrations.check(connection)
    connection.rollback()
    migrate(settings(empty, name, STREAMS_RELAY__MODE="poll"))
    migrations.check(connection)


def test_another_alembic_of_the_business_is_left_alone(empty: str, name: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num text)")
        connection.execute("INSERT INTO alembic_version VALUES ('theirs')")
        migrate(settings(empty, name, STREAMS_RELAY__MODE="poll"))
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            ("theirs",)
        ]


def test_the_biz_types_are_known_with_topic_and_limit(empty: str, name: str) -> None:
    def known() -> list[tuple[Any, ...]]:
        with psycopg.connect(empty) as connection:
            return connection.execute(
                "SELECT biz_type, topic, max_bytes FROM outbox_biz_types"
            ).fetchall()

    migrate(settings(empty, name, STREAMS_RELAY__MODE="poll"))
    assert known() == [("chat_history_persist", "chat-history", 900_000)]
    changed = {"STREAMS_OUTBOX__MAX_BYTES": "1000", "STREAMS_BROKER__TOPIC_PREFIX": "x."}
    migrate(settings(empty, name, STREAMS_RELAY__MODE="poll", **changed))
    assert known() == [("chat_history_persist", "x.chat-history", 1000)]


def test_partitions_have_the_configured_width(empty: str, name: str) -> None:
    migrate(
        settings(empty, name, STREAMS_RELAY__MODE="poll", STREAMS_OUTBOX__PARTITION_ROWS="1000")
    )
    with psycopg.connect(empty) as connection:
        bound = connection.execute(
            "SELECT pg_get_expr(relpartbound, oid) FROM pg_class WHERE relname = 'outbox_0'"
        )
        assert bound.fetchall() == [("FOR VALUES FROM ('0') TO ('1000')",)]


def test_a_server_that_does_not_answer_is_unreachable_in_one_line(name: str) -> None:
    with pytest.raises(ServiceUnreachable) as caught:
        migrate(settings("postgresql://me:hunter2@127.0.0.1:1/d", name))
    assert str(caught.value).startswith(
        "PostgreSQL at postgresql://me:***@127.0.0.1:1/d cannot be reached: "
    )
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


def test_an_option_that_libpq_does_not_know_is_a_setting_to_change(
    name: str, postgres: PostgresServer
) -> None:
    with pytest.raises(
        SettingsInvalid, match=r"setting 'database.url' is '.*\?\*\*\*': .*\"nope\""
    ):
        migrate(settings(f"{postgres.url}?nope=hunter2", name))


def test_a_role_that_may_not_is_refused_in_one_line(
    empty: str, name: str, postgres: PostgresServer
) -> None:
    role = f"{name}_role"
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        with pytest.raises(
            UsageError, match=r"refuses to migrate: permission denied for schema public"
        ) as caught:
            migrate(settings(empty.replace("postgres@", f"{role}@"), name))
        assert "\n" not in str(caught.value)
    finally:
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            connection.execute(f"DROP ROLE {role}")


def test_our_own_agent_can_be_left_out_with_its_tables(empty: str, name: str) -> None:
    """The name chat_histories may be somebody else's."""
    without = settings(empty, name, STREAMS_RELAY__MODE="poll", STREAMS_AGENTS="[]")
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE TABLE chat_histories (id int, text text)")
        assert migrate(without) == [f"database at revision {revisions.head()}"]
        there = (
            "SELECT to_regclass('agent_chats') IS NOT NULL, (SELECT count(*) FROM outbox_biz_types)"
        )
        assert connection.execute(there.encode()).fetchall() == [(False, 0)]
        with pytest.raises(
            UsageError,
            match=(
                r"table chat_histories is there and is not ours: leave streams\.agents out of"
                r" `agents` in faust\.yml, or"
            ),
        ):
            migrate(settings(empty, name, STREAMS_RELAY__MODE="poll"))
        assert [row[1] for row in catalog(empty)["columns"] if row[0] == "chat_histories"] == [
            "id",
            "text",
        ]
        connection.execute("DROP TABLE chat_histories")
    migrate(settings(empty, name, STREAMS_RELAY__MODE="poll"))
    [line] = [each for each in migrate(without) if "biz_type" in each]
    assert line == (
        "biz_type chat_history_persist is registered and no agent here knows it:"
        " add its package to `agents`, or run `streams biz-types retire chat_history_persist`"
    )


def test_tables_of_chat_history_that_an_earlier_version_made_are_taken_over(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """Up to revision 0012 they were part of the schema, whoever used them."""
    given = settings(empty, name, STREAMS_RELAY__MODE="poll")
    migrate(given)
    before = catalog(empty)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("INSERT INTO agent_chats VALUES (1, 'c', 1, now())")
        connection.execute(f"DROP TABLE {revisions.CHAT_HISTORY_VERSION_TABLE}".encode())
        with pytest.raises(
            NotMigrated, match="the tables chat_histories and agent_chats are not there, or are old"
        ):
            migrations.check(at(empty), configured(given))
        migrate(given)
        migrations.check(at(empty), configured(given))
        assert connection.execute("SELECT count(*) FROM agent_chats").fetchall() == [(1,)]
    assert catalog(empty) == before


def test_a_slot_or_publication_of_somebody_else_is_named(
    empty: str, name: str, postgres: PostgresServer
) -> None:
    """Slots have one name for the whole server, publications one for all schemas of a database."""
    given = settings(empty, name)
    with (
        psycopg.connect(postgres.url, autocommit=True) as other,
        psycopg.connect(empty, autocommit=True) as connection,
    ):
        other.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
        try:
            assert migrate(given)[-1] == (
                f"no replication slot: {name} is the slot of database {other.info.dbname}:"
                " set relay.name to one that nobody has, and migrate again"
            )
        finally:
            other.execute("SELECT pg_drop_replication_slot(%s)", [name])
        connection.execute("CREATE SCHEMA ours")
        ours = settings(f"{empty}?options=-csearch_path%3Dours", f"{name}_2")
        line = (
            "publication outbox_pub is that of the outbox in schema public: set relay.publication"
            " and relay.name to names of their own, and run `streams migrate`"
        )
        with pytest.raises(UsageError, match=re.escape(line)):
            migrate(ours)
        with pytest.raises(UsageError, match=re.escape(line)):
            checks.check_log(ours)
        own = settings(
            f"{empty}?options=-csearch_path%3Dours",
            f"{name}_2",
            STREAMS_RELAY__PUBLICATION=f"{name}_2",
        )
        assert migrate(own)[1:] == [
            f"publication {name}_2 created",
            f"replication slot {name}_2 created",
        ]
        checks.check_log(own)


def test_a_slot_of_another_outbox_in_this_database_is_named(empty: str, name: str) -> None:
    """A slot says its database, not its schema; whoever reads it takes from the other."""
    theirs = settings(empty, name)

    def ours_in(mode: str) -> Settings:
        return settings(
            f"{empty}?options=-csearch_path%3Dours,public",
            name,
            STREAMS_RELAY__PUBLICATION=f"{name}_2",
            STREAMS_RELAY__MODE=mode,
        )

    migrate(theirs)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute("CREATE SCHEMA ours")
        line = re.escape(
            f"relay.name {name}, and the replication slot of that name, are those of the outbox in"
            " schema public: set relay.name to a name of its own, and run `streams migrate`; if"
        )
        with pytest.raises(UsageError, match=line):
            migrate(ours_in("cdc"))
        migrate(ours_in("poll"))  # without a slot they are in nobody's way
        connection.execute(
            f"CREATE PUBLICATION {name}_2 FOR TABLE ours.outbox WITH (publish ="
            " 'insert', publish_via_partition_root = true)".encode()
        )
        for refused in (checks.check_log, checks.check_slot):
            with pytest.raises(UsageError, match=line):
                refused(ours_in("cdc"))
        checks.check_log(theirs)
        monitor: Any = SimpleNamespace(may_drop=True)
        snapshot: Any = SimpleNamespace(relay=name, slot=SimpleNamespace(held=0))
        asyncio.run(SlotCare(ours_in("poll"), monitor)._drop(snapshot, "poll"))
        slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s"
        assert connection.execute(slots, [name]).fetchone() == (1,)
        assert not monitor.may_drop
        # Both have read it: it is the last reader's.
        connection.execute("UPDATE public.relay_position SET heartbeat = now() - interval '1 hour'")
        connection.execute(
            "INSERT INTO ours.relay_position (name, mode, heartbeat) VALUES (%s, 'cdc', now())",
            [name],
        )
        checks.check_log(ours_in("cdc"))
        with pytest.raises(UsageError, match=r"in schema ours: .* FROM ours\.relay_position WHERE"):
            checks.check_log(theirs)


def test_a_schema_of_its_own_takes_nothing_of_another_outbox_down_the_path(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """docs/frameworks.md puts `public` behind it, and another deployment may live there."""

    def ours_then(path: str) -> Settings:
        return settings(
            f"{empty}?options=-csearch_path%3D{path}",
            f"{name}_2",
            STREAMS_RELAY__PUBLICATION=f"{name}_2",
            STREAMS_BROKER__TOPIC_PREFIX="ours.",
        )

    def oids(schema: str) -> list[tuple[Any, ...]]:
        return connection.execute(
            "SELECT oid, relname FROM pg_class WHERE relnamespace = %s::regnamespace ORDER BY 1",
            [schema],
        ).fetchall()

    given = ours_then("ours,public")
    migrate(settings(empty, name))
    with psycopg.connect(empty, autocommit=True) as connection:
        missing = r"schema ours, the first of search_path in 'database\.url', is not there, or "
        for refused in (migrate, checks.check_log, planned):
            with pytest.raises(UsageError, match=missing):
                refused(given)
        connection.execute("CREATE SCHEMA ours")
        with pytest.raises(
            NotMigrated,
            match=r"no outbox is in schema ours, .* the one in schema public is another: run",
        ):
            migrations.check(at(given.database_url))
        assert [each.number for each in planned(given)][: len(revisions.revisions())] == (
            revisions.revisions()
        )
        before = oids("public"), connection.execute("SELECT * FROM public.outbox_biz_types")
        rows = before[1].fetchall()
        lines = migrate(given)
        assert lines[:2] == [
            "a new outbox in schema ours: the one in schema public is another, and stays as it is",
            f"database at revision {revisions.head()}",
        ]
        assert migrate(given) == lines[1:2]
        assert oids("public") == before[0]
        assert connection.execute("SELECT * FROM public.outbox_biz_types").fetchall() == rows
        assert {*TABLES, *CHAT_TABLES, revisions.VERSION_TABLE} <= {row[1] for row in oids("ours")}
        topics = connection.execute("SELECT DISTINCT topic FROM ours.outbox_biz_types").fetchall()
        assert topics == [("ours.chat-history",)]
        published = "SELECT prrelid::regclass::text FROM pg_publication_rel JOIN pg_publication"
        assert connection.execute(
            f"{published} AS p ON p.oid = prpubid WHERE pubname = %s".encode(), [f"{name}_2"]
        ).fetchall() == [("ours.outbox",)]
        migrations.check(at(given.database_url), configured(given))
        checks.check_log(given)
        connection.execute("DROP TABLE ours.outbox_rejects")
        line = (
            "table outbox_rejects is not in schema ours, where the outbox is, and search_path finds"
            " another's in schema public"
        )
        with pytest.raises(UsageError, match=line):
            migrations.check(at(given.database_url), configured(given))


def test_a_path_without_a_schema_is_refused(
    empty: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setenv("PGOPTIONS", '-csearch_path="Ours",public')
        with pytest.raises(UsageError, match="schema Ours, the first of search_path in PGOPTIONS,"):
            migrate(settings(empty, name))
        patched.setenv("PGOPTIONS", '-csearch_path=""')
        with pytest.raises(UsageError, match=r"search_path names no schema .* CREATE SCHEMA"):
            migrate(settings(empty, name))
    for path in ("", "nowhere"):
        with psycopg.connect(empty, autocommit=True) as connection:
            [(database,)] = connection.execute("SELECT current_database()")
            connection.execute(f"ALTER DATABASE {database} SET search_path = '{path}'".encode())
        with pytest.raises(UsageError, match=r"search_path names no schema .* CREATE SCHEMA"):
            migrate(settings(empty, name))


def test_older_code_works_with_a_newer_schema_that_only_added_something(
    empty: str, name: str, at: Callable[[str], Connection]
) -> None:
    """So old and new processes run side by side, and one release can be taken back."""
    given = settings(empty, name, STREAMS_RELAY__MODE="poll")
    migrate(given)
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(f"UPDATE {revisions.VERSION_TABLE} SET version_num = '9999'".encode())
        migrations.check(at(empty), configured(given))
        assert migrate(given) == [
            "database at revision 9999, of a newer version: left as it is, this one works with it"
        ]
        assert planned(given) == []
        connection.execute(f"COMMENT ON TABLE {revisions.VERSION_TABLE} IS '9999'".encode())
        for refused in (
            lambda: migrations.check(at(empty)),
            lambda: migrate(given),
            lambda: planned(given),
        ):
            with pytest.raises(
                UsageError,
                match=r"at revision 9999, which outbox-streams .* does not know .*: install a",
            ):
                refused()
        # Before there was such a comment nobody could say so.
        connection.execute(f"COMMENT ON TABLE {revisions.VERSION_TABLE} IS NULL".encode())
        with pytest.raises(UsageError, match="install a newer version"):
            migrations.check(at(empty))


def test_the_plan_says_what_each_revision_is_for_and_what_it_locks(
    empty: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(empty, name, STREAMS_RELAY__MODE="poll")
    for variable, value in {"DATABASE_URL": empty, "STREAMS_RELAY__MODE": "poll"}.items():
        monkeypatch.setenv(variable, value)
    said = CliRunner().invoke(cli, ["migrate", "--plan"], standalone_mode=False)
    assert said.exception is None
    lines = said.output.splitlines()
    assert [line.split()[0] for line in lines[::2]] == [*revisions.revisions(), "chat_history"]
    assert lines[0].startswith("0001  Outbox, state, positions")
    assert lines[1] == "      locks nothing that was there before"
    migrate(given)
    assert CliRunner().invoke(cli, ["migrate", "--plan"], standalone_mode=False).output == (
        f"nothing to do: the database is at revision {revisions.head()}\n"
    )
    with psycopg.connect(empty, autocommit=True) as connection:
        connection.execute(f"DROP TABLE {revisions.CHAT_HISTORY_VERSION_TABLE}".encode())
    [chats] = planned(given)
    assert chats.number == "chat_history"
    monkeypatch.setenv("STREAMS_AGENTS", "[]")
    said = CliRunner().invoke(cli, ["migrate", "--plan"], standalone_mode=False)
    assert said.output.startswith("nothing to do")


def test_every_revision_says_what_it_locks() -> None:
    """`streams migrate --plan` tells an operator.

    The first ones come together, to an empty database.
    """
    for file in sorted((revisions.MIGRATIONS / "versions").glob("*.py")):
        if file.name > "0013":
            assert re.search(r'^locks = ["(]', file.read_text(), re.MULTILINE), (
                f'{file.name}: add locks = "..."'
            )
