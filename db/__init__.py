"""Everything that speaks SQL: engines, tables, named queries, migrations and partitions."""

from db.engine import async_engine, connect, connect_sync, sync_engine
from db.queries import query

__all__ = ["async_engine", "connect", "connect_sync", "query", "sync_engine"]
