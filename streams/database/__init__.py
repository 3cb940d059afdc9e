"""Everything that speaks SQL: engines, tables, named queries, migrations and partitions."""

from streams.database.engine import async_engine, connect, connect_sync, sync_engine
from streams.database.queries import query

__all__ = ["async_engine", "connect", "connect_sync", "query", "sync_engine"]
