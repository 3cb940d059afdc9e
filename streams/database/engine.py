"""Engines and connections from one plain `postgresql://` URL: nothing else opens one."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Mapping
from typing import Any, cast

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from streams.database.driver import BlockingCursor, Connection
from streams.database.sessions import Session, Settings, settle, settle_sync, split_options
from streams.errors import SettingsInvalid
from streams.settings import redact

# A peer that vanished without a goodbye is noticed within about 15 seconds instead of hours.
KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

PRIMARY = "read-write"
SOON = {"idle_in_transaction_session_timeout": "60000"}
DRIVER = "postgresql+psycopg"


def sync_engine(url: str, *, session: Settings | None = None, **options: Any) -> Engine:
    """A SQLAlchemy engine for `postgresql://...`.

    `options` are for `create_engine`, `session` is set beside what we rely on.
    """
    address, given, ours = _engine(url, options)
    engine = create_engine(address, **ours)
    wanted = Session(given, session or {})

    @event.listens_for(engine, "do_connect")
    def open_session(dialect: Dialect, record: Any, arguments: Any, parameters: Any) -> Any:
        def again() -> psycopg.Connection[Any]:
            return psycopg.connect(*arguments, **parameters)

        connection = dialect.connect(*arguments, cursor_factory=BlockingCursor, **parameters)
        try:
            settle_sync(cast("psycopg.Connection[Any]", connection), wanted, again)
        except BaseException:  # interrupted too: nobody else would close it
            connection.close()
            raise
        return connection

    return engine


def async_engine(url: str, *, session: Settings | None = None, **options: Any) -> AsyncEngine:
    """An async engine for `postgresql://...`.

    `options` are for `create_async_engine`, `session` is set beside what we rely on.
    """
    address, given, ours = _engine(url, options)
    engine = create_async_engine(address, **ours)
    wanted = Session(given, session or {})

    @event.listens_for(engine.sync_engine, "do_connect")
    def open_session(dialect: Dialect, record: Any, arguments: Any, parameters: Any) -> Any:
        def again() -> Awaitable[psycopg.AsyncConnection[Any]]:
            return psycopg.AsyncConnection.connect(*arguments, **parameters)

        connection: Any = dialect.connect(
            *arguments, async_creator_fn=Connection.connect, **parameters
        )
        try:
            connection.run_async(lambda driver: settle(driver, wanted, again))
        except BaseException:  # cancelled too
            connection.close()
            raise
        return connection

    return engine


async def connect(
    url: str, *, session: Settings | None = None, **parameters: Any
) -> psycopg.AsyncConnection[Any]:
    """A psycopg connection in autocommit mode, for sessions that hold locks or stream replication.

    `session` is set beside what we rely on, `parameters` are libpq's. To a server that takes
    writes, unless the URL says otherwise: a standby knows no writers, and its locks are its own.
    None of ours thinks for long in a transaction.
    """
    given, both = _parameters(
        read_url(url), {"target_session_attrs": PRIMARY, **KEEPALIVES, **parameters}
    )

    def again() -> Awaitable[psycopg.AsyncConnection[Any]]:
        return psycopg.AsyncConnection.connect(url, **both)

    connection = await Connection.connect(url, autocommit=True, **both)
    try:
        await settle(connection, Session(given, {**SOON, **(session or {})}), again)
    except BaseException:  # cancelled too
        await connection.close()
        raise
    return connection


def connect_sync(
    url: str, *, session: Settings | None = None, **parameters: Any
) -> psycopg.Connection[Any]:
    """A psycopg connection in autocommit mode, to any server that the URL names."""
    given, both = _parameters(read_url(url), {**KEEPALIVES, **parameters})
    connection = psycopg.connect(url, autocommit=True, cursor_factory=BlockingCursor, **both)
    try:
        settle_sync(connection, Session(given, session or {}), lambda: psycopg.connect(url, **both))
    except BaseException:  # interrupted too: nobody else would close it
        connection.close()
        raise
    return connection


def read_url(url: str) -> dict[str, Any]:
    """libpq's parameters of a URL, read as libpq reads it, whoever connects with them.

    SettingsInvalid when libpq cannot read it, in a line that shows nothing of its password.
    """
    try:
        parameters = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        reason = str(error).strip().splitlines()[0]
        if not reason.startswith(
            "invalid URI query parameter"
        ):  # which is named, without its value
            # libpq repeats what it cannot read: that may be the password.
            unread = re.sub('".*"', "...", reason)
            reason = f"{unread} (what is no letter or digit is written %XX)"
        raise SettingsInvalid(f"setting 'database.url' is {redact(url)!r}: {reason}") from None
    # One in front of a host is an abstract socket.
    if "@" in str(parameters.get("host", "")).lstrip("@") or _at_sign_behind_a_slash(url):
        raise SettingsInvalid(
            f"setting 'database.url' is {redact(url)!r}: for libpq user and password end at the"
            " first @ or /: write these within them as %40 and %2F"
        )
    return parameters


def _at_sign_behind_a_slash(url: str) -> bool:
    """Whether what was meant as a password is the name of a database."""
    _, is_uri, rest = url.partition("://")
    return bool(is_uri) and "@" in rest.partition("?")[0].partition("/")[2]


def _engine(url: str, options: dict[str, Any]) -> tuple[URL, dict[str, str], dict[str, Any]]:
    """What SQLAlchemy's two functions take, and what the URL says of the session."""
    ours = options.get("connect_args", KEEPALIVES)
    by_url = read_url(url)
    # Of several servers the one that takes writes is taken; a single one says itself that it is
    # read only.
    address = URL.create(DRIVER)
    if "," in str(by_url.get("host", "")):
        ours = {"target_session_attrs": PRIMARY, **ours}
    else:  # for whoever asks the engine; what connects is beside it
        names = {"username": "user", "password": "password", "host": "host", "database": "dbname"}
        address = address.set(**{part: by_url.get(name) for part, name in names.items()})
        port = str(by_url.get("port") or "")
        address = address.set(port=int(port) if port.isdecimal() else None)
    given, both = _parameters(by_url, ours)
    # SQLAlchemy reads a URL in another way than libpq does: a host in %XX, several ports, `host=`.
    parameters = by_url | both
    # SQLAlchemy repeats the parameters of a statement in its errors: those hold message text.
    return address, given, {"hide_parameters": True, **options, "connect_args": parameters}


def _parameters(
    by_url: Mapping[str, Any], ours: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """(what a URL says of the session, libpq's parameters beside that URL).

    A parameter replaces what the URL says. Whatever could come from libpq's environment instead is
    given here.
    """
    settings, rest = split_options(str(by_url.get("options") or os.environ.get("PGOPTIONS", "")))
    attributes = by_url.get("target_session_attrs") or ours.get("target_session_attrs") or "any"
    fixed = {"target_session_attrs": attributes, "client_encoding": "UTF8", "options": rest}
    return settings, {**ours, **fixed}
