"""Connections from one URL: what the URL says of the session stays true beside what we ask for."""

from __future__ import annotations

import re
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import NullPool, text
from sqlalchemy.exc import OperationalError

from streams.database import async_engine, connect, connect_sync, sync_engine
from streams.database.engine import _engine
from streams.dev.ports import HOST
from streams.errors import SettingsInvalid

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


@pytest.mark.parametrize("how", ["host", "login", "query", "several"])
async def test_every_way_to_write_a_url_means_the_same_to_engines_and_connections(
    database: str, how: str
) -> None:
    """libpq's way, which is PostgreSQL's: SQLAlchemy reads a host in %XX as it stands."""
    parts = conninfo_to_dict(database)
    port, coded = parts["port"], "".join(f"%{ord(letter):02X}" for letter in HOST)
    user, name = (
        "".join(f"%{ord(letter):02X}" for letter in str(parts[key])) for key in ("user", "dbname")
    )
    login = database.rpartition("@")[0]
    url = {
        "host": f"{login}@{coded}:{port}/{parts['dbname']}",
        "login": database.replace(f"//{parts['user']}", f"//{user}").rpartition("/")[0]
        + f"/{name}",
        "query": f"postgresql:///?host={HOST}&port={port}&user={parts['user']}"
        f"&dbname={parts['dbname']}&password={parts.get('password', '')}",
        "several": f"{login}@{coded}:1,{coded}:{port}/{parts['dbname']}",
    }[how]
    async with await connect(url) as connection:
        rows = [await (await connection.execute("SELECT current_database()")).fetchone()]
    with connect_sync(url) as blocking:
        rows.append(blocking.execute("SELECT current_database()").fetchone())
    with sync_engine(url, poolclass=NullPool).connect() as ours:
        assert how == "several" or ours.engine.url.port == int(str(port))  # what others read there
        rows.append(tuple(ours.execute(text("SELECT current_database()")).one()))
    async with async_engine(url, poolclass=NullPool).connect() as others:
        rows.append(tuple((await others.execute(text("SELECT current_database()"))).one()))
    assert rows == [(parts["dbname"],)] * 4


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgresql://u:se%zzcret@h/d", "invalid percent-encoded token: ..."),
        ("postgresql://u:sec%00ret@h/d", "forbidden value %00 in percent-encoded value: ..."),
        ("postgresql://u:sec ret@h/d", "unexpected spaces found in ..."),
        ("postgresql://u:s@cret@h/d", "write these within them as %40 and %2F"),
        ("postgresql://u:12/cret@h/d", "write these within them as %40 and %2F"),
        ("postgresql://u:/se/cret@h/d", "write these within them as %40 and %2F"),
        ("postgresql://h/d?password=secr%zzet", "invalid percent-encoded token: ..."),
        ("postgresql://u:secret@h/d?bogus=secret", 'invalid URI query parameter: "bogus"'),
        ("postgresql://u:secret@[::1/d", "end of string reached"),
    ],
)
async def test_a_url_that_libpq_cannot_read_is_refused_in_one_line_without_its_password(
    url: str, reason: str
) -> None:
    errors = []
    for refused in (connect_sync, sync_engine, async_engine):
        with pytest.raises(SettingsInvalid) as error:
            refused(url)
        errors.append(str(error.value))
    with pytest.raises(SettingsInvalid) as error:
        await connect(url)
    [line] = {*errors, str(error.value)}
    assert line.startswith("setting 'database.url' is 'postgresql://")
    assert reason in line
    assert "\n" not in line
    assert not re.search("se.*ret|cret", line)
