"""Engines and connections from one plain `postgresql://` URL, psycopg 3 underneath."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

# A peer that vanished without a goodbye is noticed within about 15 seconds instead of hours.
KEEPALIVES: dict[str, Any] = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}

# The same for the server's end, as options of a session: it frees the locks of a client that vanished.
SERVER_KEEPALIVES = (
    "-c tcp_keepalives_idle=5 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=15000"
)

PRIMARY = "read-write"
DRIVER = "postgresql+psycopg"


def sync_engine(url: str, **options: Any) -> Engine:
    """A SQLAlchemy engine for `postgresql://...`; `options` go to `create_engine`."""
    address, both = _engine(url, options)
    return create_engine(address, **both)


def async_engine(url: str, **options: Any) -> AsyncEngine:
    """An async SQLAlchemy engine for `postgresql://...`; `options` go to `create_async_engine`."""
    address, both = _engine(url, options)
    return create_async_engine(address, **both)


async def connect(url: str, **options: Any) -> psycopg.AsyncConnection[Any]:
    """A psycopg connection in autocommit mode, for sessions that hold locks or stream replication.

    To a server that takes writes, unless the URL says otherwise: a standby knows no writers, and its locks are its own.
    """
    said = conninfo_to_dict(url)
    ours = _parameters(said, {"target_session_attrs": PRIMARY, **KEEPALIVES, **options})
    return await psycopg.AsyncConnection.connect(url, autocommit=True, **ours)


def _several(url: str) -> dict[str, Any]:
    """All that a URL with several hosts says; nothing of one with a single host."""
    try:
        said = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        return {}  # SQLAlchemy says it again, with its own error
    return said if "," in str(said.get("host", "")) else {}


def _engine(url: str, options: dict[str, Any]) -> tuple[URL, dict[str, Any]]:
    """What SQLAlchemy's two functions take."""
    ours = options.get("connect_args", KEEPALIVES)
    if several := _several(url):
        # libpq alone knows whose port is whose.  Of several servers the one that takes writes is taken; a single one says
        # itself that it is read only.
        address = URL.create(DRIVER)
        parameters = several | _parameters(several, {"target_session_attrs": PRIMARY, **ours})
    else:
        address = make_url(url).set(drivername=DRIVER)
        # libpq takes the last of several.
        said = {name: value if isinstance(value, str) else value[-1] for name, value in address.query.items()}
        parameters = _parameters(said, ours)
    # SQLAlchemy repeats the parameters of a statement in its errors: those hold message text.
    return address, {"hide_parameters": True, **options, "connect_args": parameters}


def _parameters(said: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    """libpq's parameters beside a URL that says these: a parameter would replace what the URL says."""
    both = {"target_session_attrs": said.get("target_session_attrs") or ours.get("target_session_attrs")}
    both["options"] = " ".join(found for found in (said.get("options"), ours.get("options")) if found)
    return {**ours, **{name: value for name, value in both.items() if value}}
