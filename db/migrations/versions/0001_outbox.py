"""Outbox, state, positions, `outbox_enqueue()` and the view of derived statuses."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, percent signs included, several
    # statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    for file in ("0001_tables.sql", "0001_enqueue.sql", "0001_messages.sql"):
        connection.exec_driver_sql(Path(__file__).with_name(file).read_text("utf-8"))
