"""Everything that speaks SQL: engines, tables, named queries, migrations and partitions.

Engines and connections are loaded when they are asked for: business code that enqueues through a
connection of its own needs the named queries only, and starts sooner without psycopg and
SQLAlchemy.
"""

from typing import TYPE_CHECKING, Any

from streams.database.queries import query, statement

if TYPE_CHECKING:
    from streams.database.engine import async_engine, connect, connect_sync, sync_engine

__all__ = ["async_engine", "connect", "connect_sync", "query", "statement", "sync_engine"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from streams.database import engine

    return getattr(engine, name)
