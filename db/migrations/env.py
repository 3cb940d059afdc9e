"""Alembic's entry: runs on the connection that `streams.database.revisions` opened and locked."""

from alembic import context

from streams.database.revisions import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
