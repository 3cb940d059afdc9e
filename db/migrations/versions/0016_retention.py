"""Ranges of ids that were emptied, and what holds retention up."""

from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"
locks = "relay_position, its readers too, for a moment: a column is added"


def upgrade() -> None:
    # no_parameters: the text reaches the server as it is, several statements at once.
    connection = op.get_bind().execution_options(no_parameters=True)
    file = Path(__file__).with_name("0016_retention.sql")
    connection.exec_driver_sql(file.read_text("utf-8"))
