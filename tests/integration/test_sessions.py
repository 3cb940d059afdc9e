"""The session is ours.

What a role, a database or the environment says changes nothing that we rely on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import NullPool, text

from streams.database import async_engine, connect, connect_sync, sync_engine
from streams.database.sessions import REQUIRED, UNLIMITED
from streams.relay.postgres.connections import replication_connection

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
NAMES = [*REQUIRED, *LIMITS, "transaction_isolation", "synchronous_commit", "search_path"]
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
        for setting, value in {**OTHERS, **LIMITS, "synchronous_commit": "off"}.items():
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
