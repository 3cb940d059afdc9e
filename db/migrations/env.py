"""Alembic's entry: runs on the connection that `streams.database.revisions` was given."""

from alembic import context

given = context.config.attributes
# A revision that waits for a lock must not hold those of the revisions before it.
context.configure(
    connection=given["connection"],
    version_table=given["version_table"],
    transaction_per_migration=True,
)
context.run_migrations()
