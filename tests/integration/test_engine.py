"""Connections from one URL: what the URL says of the session stays true beside what we ask for."""

from __future__ import annotations

from urllib.parse import quote

import psycopg
import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.exc import OperationalError

from streams.database import async_engine, connect, sync_engine
from streams.database.engine import _engine
from streams.dev.ports import HOST

SHOWN = ("search_path", "datestyle")
OURS = {"datestyle": "German, DMY"}


def with_options(url: str) -> str:
    return f"{url}?options={quote('-c search_path=app')}"


async def test_options_of_the_url_and_ours_both_count(database: str) -> None:
    async with await connect(with_options(database), session=OURS) as connection:
        shown = [await (await connection.execute(f"SHOW {name}")).fetchone() for name in SHOWN]
    assert shown == [("app, pg_temp",), ("German, DMY",)]


async def test_of_options_given_twice_the_last_counts(database: str) -> None:
    twice = (
        f"{database}?options={quote('-c search_path=old')}&options={quote('-c search_path=app')}"
    )
    for url in (twice, twice.replace(f"@{HOST}:", f"@{HOST}:1,{HOST}:")):
        with sync_engine(url, poolclass=NullPool).connect() as connection:
            assert connection.execute(text("SHOW search_path")).scalar_one() == "app, pg_temp"


async def test_an_engine_keeps_them_too(database: str) -> None:
    with sync_engine(
        with_options(database), poolclass=NullPool, session=OURS
    ).connect() as connection:
        shown = [connection.execute(text(f"SHOW {name}")).scalar_one() for name in SHOWN]
        assert shown == ["app, pg_temp", "German, DMY"]
    engine = async_engine(with_options(database))
    async with engine.connect() as connection:
        assert (await connection.execute(text("SHOW search_path"))).scalar_one() == "app, pg_temp"
    await engine.dispose()


async def test_of_several_servers_the_primary_is_found_unless_the_url_says_otherwise(
    database: str,
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        [[name]] = connection.execute("SELECT current_database()").fetchall()
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        await connect(database)
    await (await connect(f"{database}?target_session_attrs=any")).close()
    with sync_engine(database, poolclass=NullPool).connect() as alone:
        assert alone.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
    both = database.replace(f"@{HOST}:", f"@{HOST},{HOST}:")
    with pytest.raises(OperationalError, match="read-only"):
        sync_engine(both, poolclass=NullPool).connect()
    port = database.rpartition(":")[2].partition("/")[0]
    for each in (both, database.replace(f"@{HOST}:", f"@{HOST}:1,{HOST}:")):
        with pytest.raises(OperationalError, match="read-only"):
            await async_engine(each, poolclass=NullPool).connect()
    # As libpq reads it: the first port is the default one.
    assert _engine(both, {})[2]["connect_args"]["port"] == f",{port}"
    with sync_engine(
        f"{both}?target_session_attrs=any", poolclass=NullPool
    ).connect() as any_of_them:
        assert any_of_them.execute(text("SHOW transaction_read_only")).scalar_one() == "on"
