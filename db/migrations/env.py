"""Alembic's entry: runs on the connection that `streams.database.revisions` opened and locked."""

from alembic import context

given = context.config.attributes
context.configure(connection=given["connection"], version_table=given["version_table"])
context.run_migrations()
