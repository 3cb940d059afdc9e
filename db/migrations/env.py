"""Alembic's entry: runs on the connection that `db.migrate` opened and locked."""

from alembic import context

from db.migrate import VERSION_TABLE
from db.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
