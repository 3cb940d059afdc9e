"""Engines and connections from one plain `postgresql://` URL, psycopg 3 underneath."""

from __future__ import annotations

from typing import Any

import psycopg
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


# SQLAlchemy repeats the parameters of a statement in its errors: those hold message text.
DEFAULTS: dict[str, Any] = {"connect_args": KEEPALIVES, "hide_parameters": True}


def sync_engine(url: str, **options: Any) -> Engine:
    """A SQLAlchemy engine for `postgresql://...`; `options` go to `create_engine`."""
    return create_engine(_psycopg(url), **{**DEFAULTS, **options})


def async_engine(url: str, **options: Any) -> AsyncEngine:
    """An async SQLAlchemy engine for `postgresql://...`; `options` go to `create_async_engine`."""
    return create_async_engine(_psycopg(url), **{**DEFAULTS, **options})


async def connect(url: str, **options: Any) -> psycopg.AsyncConnection[Any]:
    """A psycopg connection in autocommit mode, for sessions that hold locks or stream replication."""
    return await psycopg.AsyncConnection.connect(url, autocommit=True, **{**KEEPALIVES, **options})


def _psycopg(url: str) -> URL:
    return make_url(url).set(drivername="postgresql+psycopg")
