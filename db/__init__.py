"""Everything that speaks SQL: engines, tables, named queries, migrations and partitions."""

from db.engine import async_engine, connect, sync_engine
from db.queries import query

__all__ = ["async_engine", "connect", "query", "sync_engine"]
