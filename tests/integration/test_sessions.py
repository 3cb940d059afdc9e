"""The session is ours.

What a role, a database or the environment says changes nothing that we rely on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, closing
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import NullPool, text

from streams.database import async_engine, connect, connect_sync, sync_engine
from streams.database.sessions import REQUIRED, UNLIMITED
from streams.relay.postgres.connections import replication_connection
from tests.conftest import Eventually

# Each differs from what we rely on, as PostgreSQL shows it.
OTHERS = {
    "client_encoding": "LATIN1",
    "datestyle": "SQL, DMY",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "array_nulls": "off",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "plan_cache_mode": "force_generic_plan",
    "jit": "on",
}
LIMITS = {**dict.fromkeys([*UNLIMITED, "transaction_timeout"], "59s")}
ENDED = {"idle_in_transaction_session_timeout": "59s", "tcp_keepalives_idle": "59"}
ENVIRONMENT = {
    "PGCLIENTENCODING": "LATIN1",
    "PGDATESTYLE": "SQL, DMY",
    "PGTZ": "Asia/Kathmandu",
    "PGGEQO": "off",
    "PGTARGETSESSIONATTRS": "standby",
    "PGOPTIONS": (
        "-c bytea_output=escape -c default_transaction_isolation=serializable -c search_path=theirs"
    ),
}
NAMES = [*REQUIRED, *LIMITS, *ENDED, "transaction_isolation", "synchronous_commit", "search_path"]
# Longer than a process that others keep from running is silent between two statements.
SILENT_MILLISECONDS = "500"
SHOW = "SELECT name, current_setting(name) FROM unnest(%s::text[]) AS asked (name)"

Shown = Callable[[str], Awaitable[dict[str, str]]]


async def by_connection(url: str) -> dict[str, str]:
    async with await connect(url) as connection:
        return dict(await (await connection.execute(SHOW, [NAMES])).fetchall())


async def by_plain_connection(url: str) -> dict[str, str]:
    with connect_sync(url) as connection:
        return dict(connection.execute(SHOW, [NAMES]).fetchall())


async def by_engine(url: str) -> dict[str, str]:
    engine = async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        rows: Any = (await connection.exec_driver_sql(SHOW, (NAMES,))).all()
    return dict(map(tuple, rows))


async def by_plain_engine(url: str) -> dict[str, str]:
    with sync_engine(url, poolclass=NullPool).begin() as connection:
        rows: Any = connection.exec_driver_sql(SHOW, (NAMES,)).all()
    return dict(map(tuple, rows))


async def by_walsender(url: str) -> dict[str, str]:
    async with await replication_connection(url, 10) as connection:
        cursor = psycopg.AsyncClientCursor(connection)
        return dict(await (await cursor.execute(SHOW, [NAMES])).fetchall())


OPENERS = (by_connection, by_plain_connection, by_engine, by_plain_engine, by_walsender)


@pytest.fixture
def role(database: str, name: str) -> Iterator[str]:
    """A role of this database whose sessions begin with everything that we do not want."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN REPLICATION").format(sql.Identifier(name)))
        for setting, value in {**OTHERS, **LIMITS, **ENDED, "synchronous_commit": "off"}.items():
            connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(
                    sql.Identifier(name), sql.Identifier(setting), value
                )
            )
    yield name
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_role_changes_nothing_that_we_rely_on(
    database: str, role: str, opener: Shown
) -> None:
    shown = await opener(database.replace("postgres@", f"{role}@"))
    assert {name: shown[name] for name in REQUIRED} == REQUIRED
    assert {shown[name] for name in LIMITS} == {"0"}
    assert not {shown[name] for name in ENDED} & {"0", "59", "59s"}
    assert (shown["transaction_isolation"], shown["synchronous_commit"]) == (
        "read committed",
        "local",
    )
    assert shown["search_path"] == '"$user", public, pg_temp'


@pytest.mark.parametrize("opener", OPENERS)
async def test_the_environment_changes_nothing_that_we_rely_on(
    database: str, opener: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    shown = await opener(database)
    assert {name: shown[name] for name in REQUIRED} == REQUIRED
    assert shown["search_path"] == "theirs, pg_temp"  # where the outbox is, is for them to say


async def test_a_session_that_waits_for_standbys_still_does(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET synchronous_commit = remote_apply").format(
                sql.Identifier(connection.info.dbname)
            )
        )
    assert (await by_connection(database))["synchronous_commit"] == "remote_apply"


async def test_a_temporary_table_hides_none_of_ours(database: str) -> None:
    with sync_engine(database, poolclass=NullPool).begin() as connection:
        connection.execute(text("CREATE TEMPORARY TABLE outbox (id bigint)"))
        assert connection.execute(
            text("SELECT 'outbox'::regclass::oid = 'public.outbox'::regclass::oid")
        ).scalar_one()


async def test_limits_that_a_url_sets_stay(database: str) -> None:
    shown = await by_engine(f"{database}?options=-c%20statement_timeout%3D7s%20--lock-timeout%3D3s")
    assert (shown["statement_timeout"], shown["lock_timeout"]) == ("7s", "3s")


async def test_triggers_that_do_not_fire_are_refused(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET session_replication_role = replica").format(
                sql.Identifier(connection.info.dbname)
            )
        )
    for opener in OPENERS:
        with pytest.raises(
            Exception, match="session_replication_role is replica, so triggers do not fire"
        ):
            await opener(database)


async def in_a_pipeline(connection: psycopg.AsyncConnection[Any]) -> None:
    async with connection.pipeline():
        for _ in range(3):
            await connection.execute("SELECT 1")


async def several_times(connection: psycopg.AsyncConnection[Any]) -> None:
    async with connection.cursor() as cursor:
        await cursor.executemany("SELECT %s::integer", [(1,), (2,), (3,)])


async def once(connection: psycopg.AsyncConnection[Any]) -> None:
    await connection.execute("SELECT 1")


@pytest.mark.parametrize("ask", [in_a_pipeline, several_times, once])
@pytest.mark.parametrize("opened", ["by connection", "by engine"])
async def test_the_server_ends_who_falls_silent_in_a_transaction_whatever_was_asked_last(
    database: str,
    eventually: Eventually,
    ask: Callable[[psycopg.AsyncConnection[Any]], Awaitable[None]],
    opened: str,
) -> None:
    """A Flush behind the end of a pipeline stopped the server's clock: locks were kept for ever."""
    session = {"idle_in_transaction_session_timeout": SILENT_MILLISECONDS}
    async with AsyncExitStack() as stack:
        connection: Any
        if opened == "by connection":
            connection = await stack.enter_async_context(await connect(database, session=session))
            await connection.set_autocommit(False)
        else:
            engine = async_engine(database, session=session, poolclass=NullPool)
            stack.push_async_callback(engine.dispose)
            pooled = await stack.enter_async_context(engine.connect())
            connection = (await pooled.get_raw_connection()).driver_connection
        await ask(connection)
        await eventually(lambda: not _there(database, connection.info.backend_pid))
        await connection.close()


@pytest.mark.parametrize("opened", ["by connection", "by engine"])
async def test_the_server_ends_who_blocks_and_falls_silent_after_many_statements(
    database: str, eventually: Eventually, opened: str
) -> None:
    session = {"idle_in_transaction_session_timeout": SILENT_MILLISECONDS}
    with ExitStack() as stack:
        connection: Any
        if opened == "by connection":
            connection = stack.enter_context(closing(connect_sync(database, session=session)))
            connection.autocommit = False
        else:
            engine = sync_engine(database, session=session, poolclass=NullPool)
            connection = stack.enter_context(closing(engine.raw_connection())).driver_connection
        connection.cursor().executemany("SELECT %s::integer", [(1,), (2,), (3,)])
        await eventually(lambda: not _there(database, connection.info.backend_pid))
        connection.close()


async def test_no_session_of_ours_keeps_its_locks_for_ever_when_it_vanishes(database: str) -> None:
    for shown in (await by_connection(database), await by_engine(database)):
        assert shown["idle_in_transaction_session_timeout"] in ("1min", "5min")
        assert shown["tcp_keepalives_idle"] == "5"


def _there(database: str, pid: int) -> bool:
    with psycopg.connect(database) as other:
        session = "SELECT 1 FROM pg_stat_activity WHERE pid = %s"
        return other.execute(session, [pid]).fetchone() is not None
